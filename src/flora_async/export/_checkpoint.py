"""A resumable page file beside the target of an export."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from flora_async import errors
from flora_async._aio import run_in_thread
from flora_async._resources.pagination import Deduplicator, GenerationList, log_broken_items
from flora_async._validation import check_path
from flora_async.models import Generation, GenerationPage, Record

log = logging.getLogger("flora_async")

Write: TypeAlias = Callable[[Sequence[Generation]], object]
Open: TypeAlias = Callable[[Path], AbstractContextManager[Write]]
"""Opens a file of some format, and gives what writes to it."""

BATCH = 10_000
"""How many runs are converted at once: a row group of a Parquet file."""
BATCH_BYTES = 2**24
"""Or as many as this, as JSON: a text is an output that can be long."""

_page = msgspec.json.Decoder(GenerationPage)


class ExportResult(Record, frozen=True, kw_only=True):
    """What was written."""

    path: Path
    rows: int
    """How many runs are in the file."""
    broken: int
    """How many items of the history could not be read, and are not in it; the log names each."""


async def save(
    listing: GenerationList, path: str | PathLike[str], since: datetime | None, opened: Open
) -> ExportResult:
    """Write a listing to the file at *path*, or go on with that."""
    check_listing(listing)
    if since is not None and since.tzinfo is None:
        raise errors.ConfigurationError("since must know its time zone, like datetime(2026, 11, 1, tzinfo=UTC)")
    target = check_path("path", path)
    pages, part = (target.with_name(f"{target.name}.{ending}") for ending in ("pages", "part"))
    try:
        if reason := await run_in_thread(not_replaceable, target):
            raise errors.ExportError(f"cannot write {target}: it is {reason}, which is not replaced")
        await _collect(listing, pages, since)
        written, broken = await _write(pages, part, target, since, opened)
        await run_in_thread(pages.unlink)
    except errors.FloraError:  # a time-out is an OSError too
        raise
    except (OSError, UnicodeError) as error:
        strerror = isinstance(error, OSError) and error.strerror
        raise errors.ExportError(f"cannot write {target}: {strerror or error}") from None
    return ExportResult(path=target, rows=written, broken=broken)


def not_replaceable(path: Path) -> str | None:
    """Return why a file must not be replaced: it is a link, a folder or a device. ``None`` if it may be."""
    if path.is_symlink():
        return "a link"
    if path.is_dir():
        return "a folder"
    return "a device or a pipe" if path.exists() and not path.is_file() else None


def check_listing(listing: object) -> None:
    """Check that something is a listing."""
    if not isinstance(listing, GenerationList):
        raise errors.ConfigurationError(f"pass a listing, flora.generations.list(...), not {type(listing).__name__}")


async def _collect(listing: GenerationList, path: Path, since: datetime | None) -> None:
    """Have all pages in the file at *path*: those that are missing. Its first line says what is exported."""
    begun = msgspec.json.encode({"url": listing.url, "since": since}) + b"\n"
    last = await run_in_thread(_resume, path, begun)
    if last is not None and not last.next_cursor:
        return
    try:
        await _walk(listing, path, since, last)
    except errors.BadRequestError:
        if last is None:
            raise
        said = {"pages": str(path)}
        log.warning("FLORA does not take the cursor in %s any more; the export begins anew", path, extra=said)
        await run_in_thread(path.unlink)
        await run_in_thread(_resume, path, begun)
        await _walk(listing, path, since, None)


def _resume(path: Path, begun: bytes) -> GenerationPage | None:
    """Make the file ready for more pages, and give the last one that is in it."""
    with path.open("a+b") as file:
        file.seek(0)
        head = last = file.readline()
        if not head.endswith(b"\n"):  # new, or cut in its first line
            file.truncate(0)
            file.write(begun)
            return None
        size = len(head)
        for line in file:
            if not line.endswith(b"\n"):  # cut while it was written
                file.truncate(size)
                break
            size += len(line)
            last = line
    if head != begun:
        raise errors.ExportError(f"{path} is of another listing: finish that with its own arguments, or delete it")
    return None if last is head else _decoded(last)


async def _walk(listing: GenerationList, path: Path, since: datetime | None, last: GenerationPage | None) -> None:
    with path.open("ab") as file:
        async with listing.pages(cursor=last.next_cursor if last else None) as pages:
            async for page in pages:
                log_broken_items(page)
                await run_in_thread(_append, file, page)
                # Newest first: a whole page of what is too old has nothing newer behind it.
                if since and page.generations and all(row.created < since for row in page.generations):
                    return


def _append(file: BinaryIO, page: GenerationPage) -> None:
    file.write(msgspec.json.encode(page) + b"\n")
    file.flush()


async def _write(pages: Path, part: Path, target: Path, since: datetime | None, opened: Open) -> tuple[int, int]:
    """Write the runs of all pages, each once; return how many runs, and how many items could not be read."""
    files = ExitStack()
    try:
        file = await run_in_thread(_open_pages, files, pages)
        write = await run_in_thread(files.enter_context, opened(part))
        written = broken = 0
        once = Deduplicator()
        while batch := await run_in_thread(_batch, file):
            broken += sum(len(page.broken) for page in batch)
            fresh = [row for page in batch for row in once.fresh(page.generations)]
            if since:
                fresh = [row for row in fresh if row.created >= since]
            if fresh:
                await run_in_thread(write, fresh)
            written += len(fresh)
        await run_in_thread(files.close)
        await run_in_thread(part.replace, target)
    finally:
        _discard(files, part)
    return written, broken


def _open_pages(files: ExitStack, pages: Path) -> BinaryIO:
    file = files.enter_context(pages.open("rb"))
    file.readline()  # which listing is exported
    return file


def _discard(files: ExitStack, part: Path) -> None:
    """Close the files of an export that has failed, and delete its part. This does not fail."""
    with suppress(OSError, ValueError):
        files.close()
    with suppress(OSError):
        part.unlink(missing_ok=True)


def _batch(file: BinaryIO) -> list[GenerationPage]:
    """Read some more pages."""
    batch: list[GenerationPage] = []
    generations = size = 0
    while generations < BATCH and size < BATCH_BYTES and (line := file.readline()):
        batch.append(_decoded(line))
        generations += len(batch[-1].generations)
        size += len(line)
    return batch


def _decoded(line: bytes) -> GenerationPage:
    try:
        return _page.decode(line)
    except msgspec.MsgspecError:
        raise errors.ExportError("the .pages beside the file are damaged: delete them to begin anew") from None
