"""``flora-async gallery``: the history as one page to look at."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import anyio

from flora_async import Generation, GenerationList, _render, errors
from flora_async.cli import showing


async def write(history: GenerationList, out: Path, limit: int | None) -> int:
    """Write the newest *limit* runs of a history to a page, and give how many they were.

    The page takes its place when it is whole: until then, and if anything goes wrong, there is what was there before.

    Raises:
        ResponseDecodeError: an item is not what the reference promises; the page is there, with all others.
    """
    part = out.with_name(f"{out.name}.part")
    shown = 0
    broken: errors.ResponseDecodeError | None = None
    try:
        async with await anyio.open_file(part, "w", encoding="utf-8", newline="\n") as file, history:
            written = datetime.now(UTC)
            await file.write(_render.head("FLORA runs", f"The history as it was on {written:%Y-%m-%d at %H:%M} UTC"))
            try:
                async for generation in history:
                    await file.write(_card(generation))
                    shown += 1
                    if shown == limit:
                        break
            except errors.ResponseDecodeError as error:
                broken = error
            await file.write(_render.foot())
        part.replace(out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
    if broken is not None:
        raise broken
    return shown


def _card(generation: Generation) -> str:
    return _render.card(showing.plain(generation, created=generation.created))
