"""Order an image, and act on mistakes and failures: ``python careful_order.py "a mug" sandbox-image style=bold``."""

import asyncio
import json
import sys
from typing import Any

from flora_async import ConfigurationError, Flora, RunFailedError

FIXES = {
    "retry": "order it again",
    "retry_later": "order it again in a few minutes",
    "change_input": "change the prompt or the parameters: the same order fails again",
    "stop": "no order succeeds until the account is changed",
    None: "unknown to FLORA's list of codes: ask its support",
}


def read_value(text: str) -> Any:
    """Return the JSON value in a text, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


async def main(prompt: str, model: str, *settings: str) -> int:
    """Order one image, and print its URLs, or what to do."""
    pairs = (setting.partition("=") for setting in settings)
    params = {name: read_value(value) for name, _, value in pairs}
    async with Flora() as flora:
        try:
            run = await flora.generate(
                type="image", prompt=prompt, model=model, params=params, workspace_id="ws_demo", project_id="prj_demo"
            )
        except ConfigurationError as error:  # nothing was sent
            print(*[fault.message for fault in error.fields] or [str(error)], sep="\n", file=sys.stderr)
            return 2
        except RunFailedError as error:  # a failed run is not charged
            print(f"{error.code}: {FIXES[error.advice]}", file=sys.stderr)
            return 1
    print(*(output.url for output in run.outputs), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
