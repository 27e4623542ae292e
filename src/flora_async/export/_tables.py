"""Runs in memory as records and frames. One definition of the columns serves every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, TypeVar

from flora_async import errors
from flora_async._lazy import LazyModule
from flora_async.models import Generation, Run

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow
else:
    pandas, polars, pyarrow = LazyModule("pandas"), LazyModule("polars"), LazyModule("pyarrow")

T = TypeVar("T")

Row: TypeAlias = dict[str, object]
"""The columns of one run, by name."""

Kind: TypeAlias = Literal["text", "number", "time", "outputs"]


class Column(NamedTuple):
    """A column of every table: its name, its type, and the function that reads its value from a run."""

    name: str
    kind: Kind
    read: Callable[[Run], object]


def _read_placement(name: str) -> Callable[[Run], object]:
    """Return a function that reads a field that only the history's records have."""
    return lambda run: getattr(run, name) if isinstance(run, Generation) else None


def _read_model_id(run: Run) -> str | None:
    return run.model.model_id if isinstance(run, Generation) and run.model else None


def _read_outputs(run: Run) -> list[dict[str, object]]:
    return [{"output_id": output.output_id, "type": output.type, "url": output.url} for output in run.outputs]


SCHEMA = (
    Column("run_id", "text", attrgetter("run_id")),
    Column("status", "text", attrgetter("status")),
    Column("progress", "number", attrgetter("progress")),
    Column("created", "time", attrgetter("created")),
    Column("started", "time", attrgetter("started")),
    Column("completed", "time", attrgetter("completed")),
    Column("charged_cost", "number", attrgetter("charged_cost")),
    Column("model_id", "text", _read_model_id),
    Column("project_id", "text", _read_placement("project_id")),
    Column("workspace_id", "text", _read_placement("workspace_id")),
    Column("error_code", "text", attrgetter("error_code")),
    Column("error_message", "text", attrgetter("error_message")),
    Column("outputs", "outputs", _read_outputs),
)
COLUMNS = tuple(column.name for column in SCHEMA)


def rows(runs: Iterable[Run]) -> list[Row]:
    """Return runs as plain dicts, for any library that reads records. Times are datetimes, outputs lists of dicts."""
    return [{column.name: column.read(run) for column in SCHEMA} for run in runs]


def to_arrow(runs: Iterable[Run]) -> pyarrow.Table:
    """Return runs as an Arrow table.

    Raises:
        ConfigurationError: pyarrow is not installed.
    """
    require_module("pyarrow", "'flora-async[export]'")
    import pyarrow

    return pyarrow.Table.from_batches([record_batch(runs)], schema=arrow_schema())


def to_pandas(runs: Iterable[Run]) -> pandas.DataFrame:
    """Return runs as a pandas frame. ``DataFrame(runs)`` would have a single column, of objects.

    Each column has one dtype for any runs, also for none, so that frames and their Parquet files can be concatenated.
    Text has pandas 3's ``str`` (``string`` before it), times are ``datetime64[us, UTC]``, and numbers are ``float64``.
    ``outputs`` holds lists of dicts, as ``object``.

    Raises:
        ConfigurationError: pandas is not installed.
    """
    require_module("pandas", "pandas")
    import pandas

    frame = pandas.DataFrame(rows(runs), columns=list(COLUMNS))
    text = "str" if str(pandas.Series([""]).dtype) == "str" else "string"
    dtypes: dict[Kind, str] = {"text": text, "number": "float64", "time": "datetime64[us, UTC]", "outputs": "object"}
    return frame.astype(_type_columns(dtypes))


def to_polars(runs: Iterable[Run]) -> polars.DataFrame:
    """Return runs as a polars frame. ``DataFrame(runs)`` would have a single column, of objects.

    Raises:
        ConfigurationError: polars is not installed.
    """
    require_module("polars", "polars")
    import polars

    text = polars.String()
    output = polars.Struct({"output_id": text, "type": text, "url": text})
    types: dict[Kind, polars.DataType] = {
        "text": text,
        "number": polars.Float64(),
        "time": polars.Datetime("us", "UTC"),
        "outputs": polars.List(output),
    }
    return polars.DataFrame(rows(runs), schema=_type_columns(types))


def arrow_schema() -> pyarrow.Schema:
    """Return the columns as an Arrow schema."""
    import pyarrow

    text = pyarrow.string()
    types: dict[Kind, pyarrow.DataType] = {
        "text": text,
        "number": pyarrow.float64(),
        "time": pyarrow.timestamp("us", tz="UTC"),
        "outputs": pyarrow.list_(pyarrow.struct([("output_id", text), ("type", text), ("url", text)])),
    }
    return pyarrow.schema(_type_columns(types))


def record_batch(runs: Iterable[Run]) -> pyarrow.RecordBatch:
    """Return runs as one Arrow record batch."""
    import pyarrow

    return pyarrow.RecordBatch.from_pylist(rows(runs), schema=arrow_schema())


def require_module(module: str, package: str) -> None:
    """Raise ConfigurationError if an optional library is not installed."""
    if find_spec(module) is None:
        raise errors.ConfigurationError(f"{module} is not installed: pip install {package}")


def _type_columns(types: Mapping[Kind, T]) -> dict[str, T]:
    """Return each column's type in one library."""
    return {column.name: types[column.kind] for column in SCHEMA}
