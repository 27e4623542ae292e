"""Export a listing to a file through a resumable page file beside it.

Pages are first appended to ``<target>.pages``. When all are there, they are converted to ``<target>.part``, which then
replaces the target.
"""

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

WriteRuns: TypeAlias = Callable[[Sequence[Generation]], object]
OpenFormat: TypeAlias = Callable[[Path], AbstractContextManager[WriteRuns]]
"""Opens a file of one format and returns the function that writes runs to it."""

MAX_BATCH_RUNS = 10_000
"""Runs converted at once. In a Parquet file this is a row group."""
MAX_BATCH_BYTES = 2**24
"""Size of a batch as JSON. Outputs of type text can be long."""

_page = msgspec.json.Decoder(GenerationPage)


class ExportResult(Record, frozen=True, kw_only=True):
    """The result of an export."""

    path: Path
    rows: int
    """Number of runs in the file."""
    broken: int
    """Number of items that could not be parsed and are not in the file. The log names each."""


async def export_listing(
    listing: GenerationList, path: str | PathLike[str], since: datetime | None, open_format: OpenFormat
) -> ExportResult:
    """Write a listing to the file at *path*. Resume the export if an earlier call was interrupted."""
    check_listing(listing)
    if since is not None and since.tzinfo is None:
        raise errors.ConfigurationError("since has no time zone: pass one, like datetime(2026, 11, 1, tzinfo=UTC)")
    target = check_path("path", path)
    pages, part = (target.with_name(f"{target.name}.{ending}") for ending in ("pages", "part"))
    try:
        if reason := await run_in_thread(not_replaceable, target):
            raise errors.ExportError(f"cannot write {target}: it is {reason}, which is not replaced. Use another path")
        await _download_pages(listing, pages, since)
        written, broken = await _convert_pages(pages, part, target, since, open_format)
        await run_in_thread(pages.unlink)
    except errors.FloraError:  # APITimeoutError is also an OSError.
        raise
    except (OSError, UnicodeError) as error:
        strerror = isinstance(error, OSError) and error.strerror
        raise errors.ExportError(f"cannot write {target}: {strerror or error}") from None
    return ExportResult(path=target, rows=written, broken=broken)


def not_replaceable(path: Path) -> str | None:
    """Return the kind of a target that is not replaced: a link, a folder or a device. ``None`` for a regular file."""
    if path.is_symlink():
        return "a link"
    if path.is_dir():
        return "a folder"
    return "a device or a pipe" if path.exists() and not path.is_file() else None


def check_listing(listing: object) -> None:
    """Raise ConfigurationError if the argument is no listing."""
    if not isinstance(listing, GenerationList):
        raise errors.ConfigurationError(f"pass a listing, flora.generations.list(...), not {type(listing).__name__}")


async def _download_pages(listing: GenerationList, path: Path, since: datetime | None) -> None:
    """Append the missing pages to the file at *path*. Its header identifies the listing."""
    header = msgspec.json.encode({"url": listing.url, "since": since}) + b"\n"
    last = await run_in_thread(_resume_pages, path, header)
    if last is not None and not last.next_cursor:
        return
    try:
        await _append_pages(listing, path, since, last)
    except errors.BadRequestError:
        if last is None:
            raise
        log.warning(
            "FLORA no longer accepts the cursor in %s: the export starts again", path, extra={"pages": str(path)}
        )
        await run_in_thread(path.unlink)
        await run_in_thread(_resume_pages, path, header)
        await _append_pages(listing, path, since, None)


def _resume_pages(path: Path, header: bytes) -> GenerationPage | None:
    """Prepare the file for more pages and return its last complete page. Bytes of an incomplete page are removed."""
    with path.open("a+b") as file:
        file.seek(0)
        found = last = file.readline()
        if not found.endswith(b"\n"):  # The file is new, or its header is incomplete.
            file.truncate(0)
            file.write(header)
            return None
        size = len(found)
        for line in file:
            if not line.endswith(b"\n"):  # The process was killed during the write.
                file.truncate(size)
                break
            size += len(line)
            last = line
    if found != header:
        raise errors.ExportError(
            f"cannot resume {path}: it belongs to another listing. Finish that one, or delete the file"
        )
    return None if last is found else _decode_page(last)


async def _append_pages(
    listing: GenerationList, path: Path, since: datetime | None, last: GenerationPage | None
) -> None:
    with path.open("ab") as file:
        async with listing.pages(cursor=last.next_cursor if last else None) as pages:
            async for page in pages:
                log_broken_items(page)
                await run_in_thread(_append_page, file, page)
                # The history is sorted by creation time, newest first: no later page has a newer run.
                if since and page.generations and all(row.created < since for row in page.generations):
                    return


def _append_page(file: BinaryIO, page: GenerationPage) -> None:
    file.write(msgspec.json.encode(page) + b"\n")
    file.flush()


async def _convert_pages(
    pages: Path, part: Path, target: Path, since: datetime | None, open_format: OpenFormat
) -> tuple[int, int]:
    """Write each run of the pages once. Return the number of runs and of items that could not be parsed."""
    files = ExitStack()
    try:
        file = await run_in_thread(_open_pages, files, pages)
        write = await run_in_thread(files.enter_context, open_format(part))
        written = broken = 0
        once = Deduplicator()
        while batch := await run_in_thread(_read_batch, file):
            broken += sum(len(page.broken) for page in batch)
            fresh = [row for page in batch for row in once.filter_new(page.generations)]
            if since:
                fresh = [row for row in fresh if row.created >= since]
            if fresh:
                await run_in_thread(write, fresh)
            written += len(fresh)
        await run_in_thread(files.close)
        await run_in_thread(part.replace, target)
    finally:
        _discard_part(files, part)
    return written, broken


def _open_pages(files: ExitStack, pages: Path) -> BinaryIO:
    file = files.enter_context(pages.open("rb"))
    file.readline()  # Skip the header.
    return file


def _discard_part(files: ExitStack, part: Path) -> None:
    """Close the files of a failed export and delete its partial file. Errors are ignored."""
    with suppress(OSError, ValueError):
        files.close()
    with suppress(OSError):
        part.unlink(missing_ok=True)


def _read_batch(file: BinaryIO) -> list[GenerationPage]:
    """Read the next pages, up to the limits of a batch."""
    batch: list[GenerationPage] = []
    generations = size = 0
    while generations < MAX_BATCH_RUNS and size < MAX_BATCH_BYTES and (line := file.readline()):
        batch.append(_decode_page(line))
        generations += len(batch[-1].generations)
        size += len(line)
    return batch


def _decode_page(line: bytes) -> GenerationPage:
    try:
        return _page.decode(line)
    except msgspec.MsgspecError:
        raise errors.ExportError(
            "cannot resume the export: its .pages file is damaged. Delete that file to start again"
        ) from None
