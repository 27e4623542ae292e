"""The command ``flora-async``: a sandbox to talk to, and a demonstration of everything on it."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import backoff

from flora_async import Flora, FloraError, GenerationType, Run
from flora_async.sandbox import Sandbox

PROMPTS = ("a ceramic mug on a sunlit table", "a lighthouse in a storm")
FOLDER = Path("flora-demo")

PROGRAM = """\
import asyncio
from flora_async import Flora

async def main() -> None:
    async with Flora() as flora:  # FLORA_API_KEY, FLORA_BASE_URL
        order = {"prompt": "a lighthouse in a storm", "workspace_id": "ws_demo", "project_id": "prj_demo"}
        kinds = ("image", "video", "audio", "text")
        for run in await asyncio.gather(*(flora.generate(type=kind, **order) for kind in kinds)):
            print(run.run_id, run.status, *await flora.download(run, "flora-demo"))
        async for generation in flora.generations.list(project_id="prj_demo"):
            print(generation.run_id, generation.status, generation.charged_cost)

asyncio.run(main())
"""
"""The ten lines of the README."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 wrong usage or settings, 3 any other error, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="flora-async", description="FLORA from the terminal, and a FLORA of one's own."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="generate images, videos, sounds and texts on a sandbox, without a key")
    demo.add_argument("prompt", nargs="*", default=list(PROMPTS), metavar="PROMPT", help="what to generate")
    sandbox = commands.add_parser("sandbox", help="serve a small FLORA on this machine until interrupted")
    sandbox.add_argument("--port", type=int, default=8080, help="0: any free one (default: 8080)")
    sandbox.add_argument("--api-key", help="take this key only (default: any)")
    sandbox.add_argument("--time-scale", type=float, default=1.0, help="how long runs take: 0.1 is ten times faster")
    options = parser.parse_args(arguments)
    try:
        if options.command == "demo":
            asyncio.run(_demo(options.prompt))
        else:
            asyncio.run(_serve(options.port, options.api_key, options.time_scale))
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError) as error:  # a ConfigurationError is a ValueError
        print(f"flora-async: {error}", file=sys.stderr)
        return 2
    except FloraError as error:
        print(f"flora-async: {error}", file=sys.stderr)
        return 3
    return 0


async def _serve(port: int, api_key: str | None, time_scale: float) -> None:
    async with Sandbox(port=port, api_key=api_key, any_key=api_key is None, time_scale=time_scale) as sandbox:
        print(f"export FLORA_BASE_URL={sandbox.base_url}\nexport FLORA_API_KEY={sandbox.api_key}", flush=True)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()


async def _demo(prompts: Sequence[str]) -> None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ModuleNotFoundError:
        raise ValueError("the demo needs rich: pip install 'flora-async[demo]'") from None

    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    async with (
        Sandbox(time_scale=0.5) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, poll=lambda: backoff.expo(base=1, factor=0.25)) as flora,
    ):
        console.print(f"A FLORA of your own at {sandbox.base_url}, until this ends.\n", highlight=False)
        with Progress(*columns, console=console) as progress:

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
        console.print("\nSaved:")
        for path in sorted(path for paths in made for path in paths):
            console.print(f"  {path}  {path.stat().st_size:,} bytes", highlight=False)
        console.print("\nThe history, newest first:")
        async for generation in flora.generations.list():
            cost = f"{generation.charged_cost or 0:.2f} USD"
            console.print(f"  {generation.run_id}  {generation.status}  {cost}", highlight=False)
    console.print("\nThe same in Python (start `flora-async sandbox` and export what it prints):\n")
    print(PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
