"""``flora-async gallery``: write the history as one HTML page, atomically."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from flora_async import Generation, GenerationList, ResponseDecodeError
from flora_async._aio import run_in_thread
from flora_async._file_names import EXTENSIONS, file_stems
from flora_async._html.cards import card
from flora_async._html.page import Totals, page_end, page_start
from flora_async.cli import output
from flora_async.cli.arguments import UsageError, check_output_file

CARDS_PER_WRITE = 100
"""Number of runs that are collected before they are written."""


class _Prompt(msgspec.Struct):
    prompt: str


class _Run(msgspec.Struct):
    run_id: str


class _Failure(msgspec.Struct):
    run: _Run | None = None


class _PromptLine(msgspec.Struct):
    """A line with ``run_id`` and ``prompt``, or a line of the results of ``flora-async batch``."""

    run_id: str | None = None
    prompt: str | None = None
    order: _Prompt | None = None
    run: _Run | None = None
    error: _Failure | None = None


def read_prompts(path: Path) -> dict[str, str]:
    """Return the prompt of each run: from lines with ``run_id`` and ``prompt``, or from the results of a batch."""
    decoder = msgspec.json.Decoder(_PromptLine)
    prompts: dict[str, str] = {}
    with path.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            where = f"--prompts {path}, line {number}"
            try:
                line = decoder.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(f"{where}: {error}; each line is a JSON object with run_id and prompt") from None
            run = line.run or (line.error.run if line.error else None)
            run_id = line.run_id or (run.run_id if run else None)
            prompt = line.order.prompt if line.order else line.prompt
            if prompt is None or (run_id is None and line.order is None):
                raise UsageError(f"{where}: each line is a JSON object with run_id and prompt")
            if run_id is not None:
                prompts[run_id] = prompt
    return prompts


async def write(
    listing: GenerationList, out: Path, *, limit: int | None, prompts: Mapping[str, str], local: Path | None = None
) -> Path:
    """Write the newest *limit* runs of a history as a page, and return its path.

    Outputs whose files are in the folder *local*, as ``download`` names them, are shown from there.

    A run that cannot be parsed is reported on stderr and left out.

    Raises:
        UsageError: *out* is a folder, a link or a device, or *limit* is less than 1.
        FloraError: the history could not be read completely; an existing *out* is unchanged.
        OSError: the page cannot be written.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, not {limit}")
    await run_in_thread(check_output_file, "--out", out)
    out = await run_in_thread(out.absolute)
    totals = Totals()
    saved = {} if local is None else await run_in_thread(find_saved, local, out.parent)
    # The page shows the totals before the cards, and they are known only after all cards.
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="", dir=out.parent) as cards:
        async with listing:
            pending: list[Generation] = []
            generations = aiter(listing)
            while limit is None or totals.runs + len(pending) < limit:
                try:
                    pending.append(await anext(generations))
                except StopAsyncIteration:
                    break
                except ResponseDecodeError as error:
                    if not (error.field or "").startswith("$.generations["):
                        raise
                    output.print_status(f"skipped an item that cannot be parsed: {error}")
                    break
                if len(pending) == CARDS_PER_WRITE:
                    await run_in_thread(partial(_write_cards, cards, totals, pending, prompts, saved))
                    pending.clear()
        await run_in_thread(partial(_write_cards, cards, totals, pending, prompts, saved))
        await run_in_thread(partial(_write_page, cards, totals, out, local=local is not None))
    return out


def find_saved(folder: Path, start: Path) -> dict[str, str]:
    """Return the URL of each saved output, relative to the folder *start*, by the name of its file without extension.

    Raises:
        UsageError: *folder* cannot be read.
    """
    try:
        paths = [
            path for path in sorted(folder.absolute().iterdir()) if path.suffix[1:] in EXTENSIONS and path.is_file()
        ]
    except OSError as error:
        raise UsageError(f"--local {folder}: {error.strerror}") from None
    return {path.stem: quote(Path(os.path.relpath(path, start)).as_posix()) for path in paths}


def _write_cards(
    cards: IO[str],
    totals: Totals,
    generations: list[Generation],
    prompts: Mapping[str, str],
    saved: Mapping[str, str],
) -> None:
    for generation in generations:
        known = {"created": generation.created, "prompt": prompts.get(generation.run_id)}
        record: dict[str, Any] = output.to_dict(generation) | known
        if saved and generation.outputs:
            stems = file_stems(generation.run_id, generation.outputs)
            record["outputs"] = [
                made | {"local": saved.get(stem)} for made, stem in zip(record["outputs"], stems, strict=True)
            ]
        totals.add(record)
        cards.write(card(record))


def _write_page(cards: IO[str], totals: Totals, out: Path, *, local: bool) -> None:
    part = out.with_name(f".gallery.{secrets.token_hex(4)}.part")
    cards.seek(0)
    try:
        with part.open("x", encoding="utf-8", newline="") as page:
            page.write(
                page_start("FLORA gallery", f"as of {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", totals, local=local)
            )
            shutil.copyfileobj(cards, page)
            page.write(page_end())
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
