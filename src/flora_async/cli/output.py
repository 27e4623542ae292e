"""Output of the command: results on stdout for programs, status messages on stderr for people.

Untrusted text (prompts, outputs, messages, paths) is never parsed as Rich's markup. A stream that is missing, closed or
not writable never causes a traceback.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

import msgspec

from flora_async import OnUpdate, Run
from flora_async.export import Row, csv_cell, rows

if TYPE_CHECKING:
    from rich.progress import Progress

FORMATS = ("json", "jsonl", "csv", "table")

ReportProgress: TypeAlias = Callable[[str, str, float], None]
"""Shows the progress of a run: its id, its state and its progress in percent."""

UNLIMITED_WIDTH = 10_000
"""Width of a table that is not written to a terminal."""
MIN_COLUMN_WIDTH = 8
"""Minimum width of a truncated value; with less space, its column is left out."""
COLUMN_GAP = 2
"""Spaces between two columns of a table."""

TABLE_COLUMNS = (
    "run_id",
    "status",
    "created",
    "charged_cost",
    "progress",
    "model_id",
    "project_id",
    "error_code",
    "outputs",
)
"""The columns of the table of runs; a narrow terminal leaves out the last ones first."""

_SPACE = re.compile(r"\s+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that control a terminal or change the text direction."""


class OutputError(Exception):
    """Standard output cannot be written."""

    def __init__(self, error: Exception) -> None:
        super().__init__(f"cannot write to stdout: {getattr(error, 'strerror', None) or error}")
        self.reader_gone: bool = isinstance(error, BrokenPipeError)
        """Whether the program at the other end of the pipe has ended."""


# -- streams


@contextmanager
def escape_unencodable() -> Generator[None]:
    """Escape characters that stdout or stderr cannot encode, while the command runs."""
    streams: list[TextIO | None] = [sys.stdout, sys.stderr]
    before = [_set_errors(stream, "backslashreplace") for stream in streams]
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            _set_errors(stream, errors)


def _set_errors(stream: TextIO | None, errors: str | None) -> str | None:
    """Set the encoding error handler of a stream, and return the previous one."""
    if not isinstance(stream, io.TextIOWrapper) or errors is None:
        return None
    before = stream.errors or "strict"
    with contextlib.suppress(OSError, ValueError):
        stream.reconfigure(errors=errors)
    return before


def write(text: str, *, flush: bool = False) -> None:
    """Write to stdout. Without a stdout, drop the text.

    Raises:
        OutputError: the reader of the pipe has exited, the disk is full, or the stream is closed.
    """
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison] - pythonw, cron and `>&-` start so
        return
    try:
        sys.stdout.write(text)
        if flush:
            sys.stdout.flush()
    except (OSError, ValueError) as error:
        raise OutputError(error) from None


def discard_buffer(name: Literal["stdout", "stderr"]) -> None:
    """Redirect a stream to the null device, so that the interpreter does not fail to flush its buffer at exit.

    A stream that the calling program replaced is not changed.
    """
    stream: TextIO | None = getattr(sys, name)
    if stream is None or stream is not getattr(sys, f"__{name}__"):
        return
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def print_status(*lines: str) -> None:
    """Write messages to stderr. A message that cannot be written is dropped and does not fail the command."""
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison]
        return
    try:
        for line in lines:
            print(f"flora-async: {_CONTROL.sub(chr(0xFFFD), line)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        discard_buffer("stderr")


def missing_extra(extra: str, what: str) -> ValueError:
    """Build the error for an extra that is not installed."""
    return ValueError(f"{what}: pip install 'flora-async[{extra}]'")


# -- JSON


def to_dict(value: object, **always: object) -> dict[str, Any]:
    """Return a Struct as a dict with FLORA's names; *always* holds defaults of fields that FLORA may omit."""
    return {**always, **msgspec.to_builtins(value)}


def run_to_dict(run: Run) -> dict[str, Any]:
    """Return a run as FLORA's record; one that failed with a known code has the ``advice`` too."""
    return to_dict(run) if run.advice is None else {**to_dict(run), "advice": run.advice}


def print_json(value: object) -> None:
    """Print one JSON document, indented."""
    write(_json(value, indent=2) + "\n", flush=True)


def print_json_line(value: object) -> None:
    """Print one line of JSON."""
    write(_json(value) + "\n", flush=True)


def _json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=not _is_unicode())


def _is_unicode() -> bool:
    """Return whether stdout can write every character."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


class Document:
    """Prints a JSON document item by item."""

    def __init__(self, name: str) -> None:
        self._before = f'{{\n  "{name}": ['

    def add(self, item: object) -> None:
        """Print an item."""
        indented = _json(item, indent=2).replace("\n", "\n    ")
        write(f"{self._before}\n    {indented}")
        self._before = ","

    def end(self, **more: object) -> None:
        """Print the end of the document, with its other members."""
        if self._before != ",":
            write(self._before)
        members = "".join(f",\n  {_json(name)}: {_json(value)}" for name, value in more.items())
        write(f"{'' if self._before != ',' else chr(10) + '  '}]{members}\n}}\n", flush=True)


# -- rows


def to_row(run: Run, form: str) -> Row:
    """Return a run as a row of the export; in a table the outputs are URLs or texts."""
    row = rows([run])[0]
    return row | {"outputs": " ".join(output.url for output in run.outputs)} if form == "table" else row


class Rows:
    """Prints rows as CSV, or collects them for a table."""

    def __init__(self, form: str, columns: Sequence[str]) -> None:
        self._columns = columns
        self._held: list[list[str]] | None = [] if form == "table" else None
        if self._held is None:
            self._write(columns)
        else:
            _require_rich()

    def add(self, row: Mapping[str, object]) -> None:
        """Print a row as CSV, or collect it for the table."""
        if self._held is None:
            self._write([csv_cell(row.get(column)) for column in self._columns])
        else:
            self._held.append([_one_line(row.get(column)) for column in self._columns])

    def _write(self, cells: Sequence[object]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        write(line.getvalue())

    def end(self) -> None:
        """Print the table."""
        if self._held is not None:
            write(_table(self._columns, self._held))
        write("", flush=True)


def _one_line(value: object) -> str:
    """Return a value as a cell of a table: one line, without control characters."""
    if value is None:
        return ""
    text = f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else str(value)
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", _SPACE.sub(" ", text))


def _require_rich() -> None:
    try:
        import_module("rich.table")
    except ModuleNotFoundError:
        raise missing_extra("cli", "tables need rich") from None


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table that fits the terminal: ids are complete, other values truncated. Piped, nothing is truncated."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
    room = Console().width if _is_terminal(sys.stdout) else UNLIMITED_WIDTH
    shown, needed = fit_columns(columns, widths, room)
    if len(shown) < len(columns):
        hidden = ", ".join(name for number, name in enumerate(columns) if number not in shown)
        print_status(f"columns left out: the terminal is too narrow for {hidden} (--format csv has all)")
    table = Table(box=None, padding=(0, COLUMN_GAP, 0, 0), pad_edge=False)
    for number in shown:
        table.add_column(Text(columns[number], no_wrap=True, overflow="ellipsis"), no_wrap=_is_id(columns[number]))
    for row in rows:
        table.add_row(*(Text(row[number], no_wrap=True, overflow="ellipsis") for number in shown))
    drawn = io.StringIO()
    canvas = Console(file=drawn, width=max(room, needed), color_system=None, markup=False, emoji=False, highlight=False)
    canvas.print(table)
    return "".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines())


def _is_id(column: str) -> bool:
    return column.endswith("_id")


def fit_columns(columns: Sequence[str], widths: Sequence[int], room: int) -> tuple[list[int], int]:
    """Choose the columns that fit into *room* characters. Return their numbers and the required width.

    Ids are always shown completely. Others may be truncated to ``MIN_COLUMN_WIDTH``; the last ones are left out first.
    """
    least = [
        width if _is_id(name) else min(width, MIN_COLUMN_WIDTH) for name, width in zip(columns, widths, strict=True)
    ]
    shown = list(range(len(columns)))

    def required_width() -> int:
        return sum(least[number] for number in shown) + COLUMN_GAP * len(shown)

    for number in reversed(range(len(columns))):
        if required_width() > room and not _is_id(columns[number]):
            shown.remove(number)
    return shown, required_width()


def print_list(name: str, listed: Iterable[msgspec.Struct], kind: type[msgspec.Struct], form: str) -> None:
    """Print a short list of records of one *kind*: as FLORA's JSON document, as JSON Lines, or as rows."""
    rows = [to_dict(item) for item in listed]
    if form == "json":
        print_json({name: rows})
    elif form == "jsonl":
        for row in rows:
            print_json_line(row)
    else:
        fields = msgspec.structs.fields(kind)
        columns = [field.encode_name for field in fields if field.encode_name not in ("params", "capabilities")]
        table = Rows(form, columns)
        for row in rows:
            table.add(row)
        table.end()


# -- progress


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # a closed stream
        return False


def is_live() -> bool:
    """Return whether stderr is a terminal that can move its cursor."""
    return _is_terminal(sys.stderr) and os.environ.get("TERM", "dumb" if os.name != "nt" else "") != "dumb"


def build_progress_bars(*fields: str, on_stderr: bool = True, timed: bool = True) -> Progress:
    """Build Rich's progress bars: a description, a bar, and the named fields of each task as plain text.

    Raises:
        ModuleNotFoundError: rich is not installed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=on_stderr, markup=False, emoji=False, highlight=False)
    columns = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in fields]
    columns += [TimeElapsedColumn()] if timed else []
    return Progress(*columns, console=console)


@contextmanager
def show_progress() -> Generator[ReportProgress]:
    """Show the progress of runs: one live line each on a terminal, otherwise one line for each change."""
    if is_live():
        try:
            bars = build_progress_bars("state")
        except ModuleNotFoundError:
            pass
        else:
            with bars:
                lines: dict[str, Any] = {}

                def report(run_id: str, state: str, percent: float) -> None:
                    if run_id not in lines:
                        lines[run_id] = bars.add_task(run_id, total=100, state=state)
                    bars.update(lines[run_id], completed=percent, state=state)

                yield report
            return
    yield lambda run_id, state, percent: print_status(f"{run_id} {state} {percent:g} %")


def progress_callback(report: ReportProgress) -> OnUpdate:
    """Return the ``on_update`` callback that reports each change of a run."""
    return lambda run: report(run.run_id, run.status, run.progress)
