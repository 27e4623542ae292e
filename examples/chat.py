"""A chat with FLORA, at a terminal or through a pipe: what is ordered goes on, and is told of when it is done."""

import asyncio
import sys
from contextlib import suppress
from threading import Thread
from typing import get_args

from flora_async import Flora, FloraError, GenerationType, Order

KINDS: dict[str, GenerationType] = {f"/{kind}": kind for kind in get_args(GenerationType)}
HELP = "say /image, /video, /audio or /text and what you want, or /quit"


def listen(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str]) -> None:
    """Hand on what is typed. A file of the thread's own does not hold up the end of the program."""
    with suppress(RuntimeError), open(0, closefd=False) as typed:  # the loop may have ended
        for line in typed:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "/quit")


async def answer(flora: Flora, number: int, kind: GenerationType, prompt: str) -> None:
    """Order something, and tell what became of it."""
    where = "may have been ordered"
    try:
        order = Order(type=kind, prompt=prompt, workspace_id="ws_demo", project_id="prj_demo")
        started = await flora.generations.create(order)
        where = f"{started.run_id} goes on at FLORA"
        print(f"[{number}] {kind} ordered, about {started.estimated_seconds or 0:.0f} seconds", flush=True)
        run = await flora.wait_for_run(started)
        print(f"[{number}] done:", *(output.url for output in run.outputs), flush=True)
    except FloraError as error:
        print(f"[{number}] {error}", flush=True)
    except asyncio.CancelledError:
        print(f"[{number}] {where}", flush=True)
        raise


async def main() -> None:
    """Read lines until there are no more, then wait for what is under way."""
    lines, number = asyncio.Queue[str](), 0
    async with Flora() as flora, asyncio.TaskGroup() as answers:
        print(HELP, flush=True)
        Thread(target=listen, args=(asyncio.get_running_loop(), lines), daemon=True).start()
        while (line := (await lines.get()).strip()) != "/quit":
            command, _, prompt = line.partition(" ")
            if (kind := KINDS.get(command)) and prompt:
                answers.create_task(answer(flora, number := number + 1, kind, prompt))
            else:
                print(HELP, flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except (FloraError, KeyboardInterrupt) as end:
        sys.exit(str(end) or 130)
