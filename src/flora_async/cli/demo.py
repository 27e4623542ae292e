"""``flora-async demo``: generate, download and list on a sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import backoff

from flora_async import Flora, GenerationType, Run
from flora_async.cli import output
from flora_async.cli.output import missing_extra, write

PROMPTS = ("a ceramic mug on a sunlit table", "a lighthouse in a storm")
FOLDER = Path("flora-demo")

PROGRAM = """\
import asyncio
from flora_async import Flora

async def main() -> None:
    async with Flora() as flora:
        run = await flora.generate(type="image", prompt="a mug", workspace_id="ws_demo", project_id="prj_demo")
        print(*await flora.download(run, "out"))

asyncio.run(main())
"""
"""The first program of the README."""


async def show(prompts: Sequence[str]) -> None:
    """Generate one run of each type for each prompt, and show the progress."""
    try:
        bars = output.build_progress_bars("state", on_stderr=False)
    except ModuleNotFoundError:
        raise missing_extra("demo", "the demo needs rich") from None
    from flora_async.sandbox import Sandbox

    async with (
        Sandbox(time_scale=0.5) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, poll=lambda: backoff.expo(base=1, factor=0.25)) as flora,
    ):
        write(f"A local FLORA at {sandbox.base_url}, until this ends.\n\n", flush=True)
        with bars as progress:

            async def make(kind: GenerationType, prompt: str) -> list[Path]:
                line = progress.add_task(f"{kind:5} {prompt[:48]}", total=100, state="ordered")

                def show(run: Run) -> None:
                    progress.update(line, completed=run.progress, state=run.status)

                run = await flora.generate(
                    type=kind, prompt=prompt, workspace_id="ws_demo", project_id="prj_demo", on_update=show
                )
                return await flora.download(run, FOLDER)

            kinds: tuple[GenerationType, ...] = get_args(GenerationType)
            made = await asyncio.gather(*(make(kind, prompt) for prompt in prompts for kind in kinds))
        write("\nSaved:\n")
        for path in sorted(path for paths in made for path in paths):
            write(f"  {path}  {path.stat().st_size:,} bytes\n")
        write("\nThe history, newest first:\n")
        async for generation in flora.generations.list():
            cost = f"{generation.charged_cost or 0:.2f} USD"
            write(f"  {generation.run_id}  {generation.status}  {cost}\n")
    write(f"\nThe same in Python, against FLORA or with `flora-async sandbox -- python program.py`:\n\n{PROGRAM}\n")
