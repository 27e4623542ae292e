"""What is shown: results on stdout, for programs; everything else on stderr, for people."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import msgspec

from flora_async import Generation, OnUpdate, Run

FORMATS = ("json", "jsonl", "csv", "table")

Move: TypeAlias = Callable[[str, str, float], object]
"""Takes a run's id, its state and its progress in percent."""

WIDE = 10_000
"""Columns."""

RUN_COLUMNS = (
    "run_id",
    "status",
    "progress",
    "created",
    "charged_cost",
    "model",
    "project_id",
    "outputs",
    "error_code",
)


def tell(*lines: str) -> None:
    """Say something to whoever sits there."""
    for line in lines:
        print(f"flora-async: {line}", file=sys.stderr, flush=True)


def missing(extra: str, what: str) -> ValueError:
    """Say that something needs an extra."""
    return ValueError(f"{what}: pip install 'flora-async[{extra}]'")


def plain(value: object, **always: object) -> dict[str, Any]:
    """Give a Struct as FLORA writes it, with what it promises *always* to be there."""
    return {**always, **msgspec.to_builtins(value)}


def show(value: object) -> None:
    """Print JSON that people can read."""
    print(json.dumps(value, indent=2, ensure_ascii=not _takes_all()), flush=True)


def show_line(value: object) -> None:
    """Print one line of JSON."""
    print(json.dumps(value, ensure_ascii=not _takes_all()), flush=True)


def _takes_all() -> bool:
    """Say whether whoever reads takes any character."""
    return sys.stdout.encoding.lower().startswith("utf")


def row_of(run: Run) -> dict[str, object]:
    """Give a run as a row of a table."""
    given = plain(run)
    return {
        **{column: given.get(column) for column in RUN_COLUMNS},
        "created": run.created.isoformat(timespec="seconds"),
        "model": run.model.model_id if isinstance(run, Generation) and run.model else None,
        "outputs": " ".join(output.url for output in run.outputs),
    }


class Rows:
    """Rows that come one by one, printed as CSV or as a table."""

    def __init__(self, form: str, columns: Sequence[str]) -> None:
        self._columns = columns
        self._table = _table(columns) if form == "table" else None
        self._csv = csv.DictWriter(sys.stdout, columns, extrasaction="ignore", lineterminator="\n")
        if self._table is None:
            self._csv.writeheader()

    def add(self, row: Mapping[str, object]) -> None:
        """Print a row, or keep it for the table."""
        if self._table is None:
            self._csv.writerow(row)
        else:
            self._table.add_row(*("" if row[column] is None else str(row[column]) for column in self._columns))

    def end(self) -> None:
        """Print the table."""
        if self._table is not None:
            from rich.console import Console

            # Piped, it is read by a program, or scrolled: nothing is cut to fit a width.
            Console(width=None if sys.stdout.isatty() else WIDE).print(self._table)


def _table(columns: Sequence[str]) -> Any:  # noqa: ANN401 - rich need not be there
    try:
        from rich.table import Table
    except ModuleNotFoundError:
        raise missing("cli", "tables need rich") from None
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show_list(name: str, listed: Iterable[object], form: str) -> None:
    """Print a short list: in FLORA's shape, by line, or as rows."""
    rows = [plain(item) for item in listed]
    if form == "json":
        show({name: rows})
    elif form == "jsonl":
        for row in rows:
            show_line(row)
    else:
        columns = [column for column in (rows[0] if rows else {}) if column not in ("params", "capabilities")]
        table = Rows(form, columns)
        for row in rows:
            table.add(row)
        table.end()


def is_live() -> bool:
    """Say whether people watch, on a terminal that can move its cursor."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def progress() -> Generator[Move]:
    """Show how runs go: a live line each on a terminal that can, else a line for each change."""
    if is_live():
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        except ModuleNotFoundError:
            pass
        else:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bars:
                lines: dict[str, Any] = {}

                def move(run_id: str, state: str, percent: float) -> None:
                    if run_id not in lines:
                        lines[run_id] = bars.add_task(run_id, total=100, state=state)
                    bars.update(lines[run_id], completed=percent, state=state)

                yield move
            return
    yield lambda run_id, state, percent: tell(f"{run_id} {state} {percent:g} %")


def moving(move: Move) -> OnUpdate:
    """Give what moves a run's line with each of its changes."""
    return lambda run: move(run.run_id, run.status, run.progress)
