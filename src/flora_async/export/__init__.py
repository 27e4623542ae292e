"""History as files and tables."""

from __future__ import annotations

import csv
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from flora_async import errors
from flora_async._aio import AsyncCloseable, run_in_thread
from flora_async._lazy import LazyModule
from flora_async._resources.pagination import Deduplicator, GenerationList, log_broken_items
from flora_async.export._checkpoint import BATCH, ExportResult, Write, check_listing, save
from flora_async.models import Generation, Run

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow
else:
    pandas, polars, pyarrow = LazyModule("pandas"), LazyModule("polars"), LazyModule("pyarrow")

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

Row: TypeAlias = dict[str, object]
"""The columns of one run, by name."""

TIMES = ("created", "started", "completed")
NUMBERS = ("progress", "charged_cost")
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""With one of these, text becomes a formula in a spreadsheet."""


# -- what fits in memory -----------------------------------------------------------------------------------------------


def rows(runs: Iterable[Run]) -> list[Row]:
    """Give runs as plain dicts, for anything that takes records: times as datetimes, outputs as lists of dicts."""
    return [_row(run) for run in runs]


def to_arrow(runs: Iterable[Run]) -> pyarrow.Table:
    """Give runs as an Arrow table.

    Raises:
        ConfigurationError: pyarrow is missing.
    """
    _need("pyarrow", "'flora-async[export]'")
    import pyarrow

    schema = _arrow_schema()
    return pyarrow.Table.from_batches([pyarrow.RecordBatch.from_pylist(rows(runs), schema=schema)], schema=schema)


def to_pandas(runs: Iterable[Run]) -> pandas.DataFrame:
    """Return runs as a pandas frame. ``DataFrame(runs)`` would have a single column, of objects.

    Each column has one dtype whatever the runs hold, also where there are none, so that frames and their Parquet files
    can be concatenated: text has the ``str`` of pandas 3 (``string`` before it), times are in UTC to the microsecond,
    numbers are ``float64``, and ``outputs`` holds lists of dicts, as ``object``.

    Raises:
        ConfigurationError: pandas is missing.
    """
    _need("pandas", "pandas")
    import pandas

    frame = pandas.DataFrame(rows(runs), columns=list(COLUMNS))
    text = "str" if str(pandas.Series([""]).dtype) == "str" else "string"
    kinds = dict.fromkeys(COLUMNS, text)
    kinds |= dict.fromkeys(TIMES, "datetime64[us, UTC]") | dict.fromkeys(NUMBERS, "float64")
    kinds["outputs"] = "object"
    return frame.astype(kinds)


def to_polars(runs: Iterable[Run]) -> polars.DataFrame:
    """Give runs as a polars frame. ``DataFrame(runs)`` would have a single column, of objects.

    Raises:
        ConfigurationError: polars is missing.
    """
    _need("polars", "polars")
    import polars

    text, time, number = polars.String(), polars.Datetime("us", "UTC"), polars.Float64()
    record = polars.Struct({"output_id": text, "type": text, "url": text})
    kinds = dict.fromkeys(TIMES, time) | dict.fromkeys(NUMBERS, number) | {"outputs": polars.List(record)}
    return polars.DataFrame(rows(runs), schema={name: kinds.get(name, text) for name in COLUMNS})


def _row(run: Run) -> Row:
    placed = run if isinstance(run, Generation) else None
    return {
        "run_id": run.run_id,
        "status": run.status,
        "progress": run.progress,
        "created": run.created,
        "started": run.started,
        "completed": run.completed,
        "charged_cost": run.charged_cost,
        "model_id": placed.model.model_id if placed and placed.model else None,
        "project_id": placed.project_id if placed else None,
        "workspace_id": placed.workspace_id if placed else None,
        "error_code": run.error_code,
        "error_message": run.error_message,
        "outputs": [{"output_id": made.output_id, "type": made.type, "url": made.url} for made in run.outputs],
    }


COLUMNS = tuple(_row(Run(run_id="", status="", progress=0, created_at=0)))


def _need(module: str, package: str) -> None:
    if find_spec(module) is None:
        raise errors.ConfigurationError(f"this needs {module}: pip install {package}")


def _arrow_schema() -> pyarrow.Schema:
    import pyarrow

    text = pyarrow.string()
    record = pyarrow.struct([("output_id", text), ("type", text), ("url", text)])
    kinds: dict[str, pyarrow.DataType] = {
        **dict.fromkeys(TIMES, pyarrow.timestamp("us", tz="UTC")),
        **dict.fromkeys(NUMBERS, pyarrow.float64()),
        "outputs": pyarrow.list_(record),
    }
    return pyarrow.schema({name: kinds.get(name, text) for name in COLUMNS})


# -- what is as long as it likes ---------------------------------------------------------------------------------------


class RecordBatches(AsyncCloseable):
    """The history as Arrow record batches of about 10,000 rows, one at a time: ``async for`` over it.

    After an error it can be asked again, and goes on with the page that it did not get.
    """

    next_cursor: str | None
    """Where the history goes on after the batch that came last; ``list(cursor=...)`` begins there."""
    broken: int
    """How many items could not be read so far, and are in no batch."""

    usage = "async for batch in export.record_batches(...)"

    def __init__(self, listing: GenerationList) -> None:
        self.next_cursor = None
        self.broken = 0
        self._pages = listing.pages()
        self._once = Deduplicator()
        self._cursor: str | None = None
        self._generations: list[Generation] = []
        """What was read since the last batch: it outlives an error."""

    def __aiter__(self) -> RecordBatches:
        return self

    async def __anext__(self) -> pyarrow.RecordBatch:
        async for page in self._pages:
            log_broken_items(page)
            self.broken += len(page.broken)
            self._generations += self._once.fresh(page.generations)
            self._cursor = page.next_cursor
            if len(self._generations) >= BATCH:
                break
        if not self._generations:
            raise StopAsyncIteration
        batch = await run_in_thread(_record_batch, self._generations)
        self._generations = []
        self.next_cursor = self._cursor
        return batch

    async def aclose(self) -> None:
        """End the walk."""
        await self._pages.aclose()


def record_batches(listing: GenerationList) -> RecordBatches:
    """Stream a listing as Arrow: ``async for batch in export.record_batches(flora.generations.list(limit=100))``.

    Raises:
        ConfigurationError: pyarrow is missing.
    """
    _need("pyarrow", "'flora-async[export]'")
    check_listing(listing)
    return RecordBatches(listing)


async def to_jsonl(
    listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None
) -> ExportResult:
    """Write a listing to a file of JSON Lines, one run a line; resumable, see the top of this module.

    Args:
        listing: ``flora.generations.list(limit=100, ...)``.
        path: a file there is replaced when the new one is whole.
        since: leave out what was created before; the walk ends where nothing newer can come.

    Raises:
        ExportError: the file cannot be written.
        FloraError: what the listing raises; the same call goes on.
    """
    return await save(listing, path, since, _json_lines)


async def to_csv(listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None) -> ExportResult:
    """Write a listing to a CSV file in UTF-8, with a row of names; otherwise like :func:`to_jsonl`.

    Text that a spreadsheet would take for a formula, because it begins with ``= + - @``, a tab or a carriage return,
    gets an apostrophe in front; the other formats have it as it is.
    """
    return await save(listing, path, since, _csv)


async def to_parquet(
    listing: GenerationList, path: str | PathLike[str], *, since: datetime | None = None
) -> ExportResult:
    """Write a listing to a Parquet file, compressed by zstd; otherwise like :func:`to_jsonl`.

    Raises:
        ConfigurationError: pyarrow is missing.
    """
    _need("pyarrow", "'flora-async[export]'")
    await run_in_thread(import_module, "pyarrow.parquet")  # a quarter of a second, which must not stop the loop
    return await save(listing, path, since, _parquet)


@contextmanager
def _json_lines(path: Path) -> Generator[Write]:
    with path.open("wb") as file:
        yield lambda generations: file.write(msgspec.json.Encoder().encode_lines(rows(generations)))


@contextmanager
def _csv(path: Path) -> Generator[Write]:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        yield lambda generations: table.writerows(
            [csv_cell(value) for value in row.values()] for row in rows(generations)
        )


def csv_cell(value: object) -> object:
    """Return a value as a cell of a CSV file: text that would be a formula is guarded, a list is JSON."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    if isinstance(value, list):
        return msgspec.json.encode(value).decode()
    return msgspec.to_builtins(value)


@contextmanager
def _parquet(path: Path) -> Generator[Write]:
    from pyarrow.parquet import ParquetWriter

    with path.open("wb") as file, ParquetWriter(file, _arrow_schema(), compression="zstd") as writer:
        yield lambda generations: writer.write_batch(_record_batch(generations))


def _record_batch(generations: Sequence[Generation]) -> pyarrow.RecordBatch:
    import pyarrow

    return pyarrow.RecordBatch.from_pylist(rows(generations), schema=_arrow_schema())
