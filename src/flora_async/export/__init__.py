"""The history as files and tables. This module streams; its functions ``rows`` and ``to_arrow`` work in memory."""

from __future__ import annotations

import csv
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from flora_async._aio import AsyncCloseable, run_in_thread
from flora_async._lazy import LazyModule
from flora_async._resources.pagination import Deduplicator, GenerationList, log_broken_items
from flora_async.export._checkpoint import MAX_BATCH_RUNS, ExportResult, WriteRuns, check_listing, export_listing
from flora_async.export._tables import (
    COLUMNS,
    Row,
    arrow_schema,
    record_batch,
    require_module,
    rows,
    to_arrow,
    to_pandas,
    to_polars,
)
from flora_async.models import Generation

if TYPE_CHECKING:
    import pyarrow
else:
    pyarrow = LazyModule("pyarrow")

__all__ = [
    "ExportResult",
    "RecordBatches",
    "Row",
    "record_batches",
    "rows",
    "to_arrow",
    "to_csv",
    "to_jsonl",
    "to_pandas",
    "to_parquet",
    "to_polars",
]

FORMULA_PREFIXES = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet reads text that begins with one of these as a formula."""


class RecordBatches(AsyncCloseable):
    """The history as Arrow record batches of about 10,000 rows, one at a time: ``async for`` over it.

    After an error you can iterate again. The walk continues with the page that failed.
    """

    next_cursor: str | None
    """The cursor after the last batch. ``list(cursor=...)`` resumes there. ``None`` at the end of the history."""
    broken: int
    """Number of items so far that could not be parsed. They are in no batch."""

    usage = "async for batch in export.record_batches(...)"

    def __init__(self, listing: GenerationList) -> None:
        self.next_cursor = None
        self.broken = 0
        self._pages = listing.pages()
        self._seen = Deduplicator()
        self._cursor: str | None = None
        self._generations: list[Generation] = []
        """Runs read since the last batch. They are kept after an error."""

    def __aiter__(self) -> RecordBatches:
        return self

    async def __anext__(self) -> pyarrow.RecordBatch:
        async for page in self._pages:
            log_broken_items(page)
            self.broken += len(page.broken)
            self._generations += self._seen.filter_new(page.generations)
            self._cursor = page.next_cursor
            if len(self._generations) >= MAX_BATCH_RUNS:
                break
        if not self._generations:
            raise StopAsyncIteration
        batch = await run_in_thread(record_batch, self._generations)
        self._generations = []
        self.next_cursor = self._cursor
        return batch

    async def aclose(self) -> None:
        """Stop reading the history. Closing twice does nothing."""
        await self._pages.aclose()


def record_batches(listing: GenerationList) -> RecordBatches:
    """Return a listing as a stream of Arrow record batches.

    Use it as ``async for batch in export.record_batches(flora.generations.list(limit=100))``.

    Raises:
        ConfigurationError: pyarrow is not installed, or *listing* is no listing.
    """
    require_module("pyarrow", "'flora-async[export]'")
    check_listing(listing)
    return RecordBatches(listing)


async def to_jsonl(
    listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None
) -> ExportResult:
    """Write a listing to a file of JSON Lines, one run a line.

    Each page is stored in ``<path>.pages`` as it arrives. After an error, the same call resumes with the next page.

    Args:
        listing: ``flora.generations.list(limit=100, ...)``.
        path: the target. An existing file is replaced once the new one is complete.
        since: skip runs created before this time. Reading stops at the first page that has only older runs.

    Raises:
        ConfigurationError: an argument is invalid.
        ExportError: the file cannot be written, or ``<path>.pages`` belongs to another listing.
        FloraError: the listing failed.
    """
    return await export_listing(listing, path, since, _open_json_lines)


async def to_csv(listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None) -> ExportResult:
    """Write a listing to a CSV file in UTF-8, with a header; otherwise like :func:`to_jsonl`.

    A spreadsheet reads text that begins with ``= + - @``, a tab or a carriage return as a formula. Such text gets a
    leading apostrophe in CSV. The other formats keep it unchanged.
    """
    return await export_listing(listing, path, since, _open_csv)


async def to_parquet(
    listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None
) -> ExportResult:
    """Write a listing to a Parquet file, compressed with zstd; otherwise like :func:`to_jsonl`.

    Raises:
        ConfigurationError: pyarrow is not installed, or an argument is invalid.
    """
    require_module("pyarrow", "'flora-async[export]'")
    await run_in_thread(import_module, "pyarrow.parquet")  # The import takes 0.25 s and would block the event loop.
    return await export_listing(listing, path, since, _open_parquet)


@contextmanager
def _open_json_lines(path: Path) -> Generator[WriteRuns]:
    with path.open("wb") as file:
        yield lambda generations: file.write(msgspec.json.Encoder().encode_lines(rows(generations)))


@contextmanager
def _open_csv(path: Path) -> Generator[WriteRuns]:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        yield lambda generations: table.writerows(
            [csv_cell(value) for value in row.values()] for row in rows(generations)
        )


def csv_cell(value: object) -> object:
    """Return a value as a CSV cell: a formula is escaped with an apostrophe, and a list is JSON."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA_PREFIXES) else value
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return msgspec.to_builtins(value)


@contextmanager
def _open_parquet(path: Path) -> Generator[WriteRuns]:
    from pyarrow.parquet import ParquetWriter

    with path.open("wb") as file, ParquetWriter(file, arrow_schema(), compression="zstd") as writer:
        yield lambda generations: writer.write_batch(record_batch(generations))
