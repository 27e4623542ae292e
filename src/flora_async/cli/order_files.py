"""Orders from JSON Lines or CSV, in a file or a pipe: one order a line, or the fault of the line."""

from __future__ import annotations

import csv
import io
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async.cli.arguments import open_stdin
from flora_async.models import ActionOrder, AnyOrder, Order, TechniqueOrder, convert_order

MAX_LINE = 2**20
"""Bytes of a line of JSON; FLORA takes no longer order."""
MAX_CELL = 2**24
"""Characters of a cell of CSV."""
STDIN = Path("-")

_FIELDS = {kind: frozenset(kind.__struct_fields__) for kind in (Order, TechniqueOrder, ActionOrder)}
_REQUIRED: dict[type[AnyOrder], tuple[str, ...]] = {
    Order: ("type", "prompt", "workspace_id", "project_id"),
    TechniqueOrder: ("inputs", "workspace_id"),
    ActionOrder: ("inputs", "workspace_id", "project_id"),
}
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,100})\}")
_line: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class OrderLine(Struct, frozen=True):
    """A line that can be ordered, or its fault."""

    number: int
    """Number of the line in its file, from 1."""
    order: AnyOrder | None
    columns: Mapping[str, Any] = {}
    """Columns of the line that are no fields of an order."""
    fault: str = ""


class OrderFile:
    """A file of orders that can be read several times. A pipe is copied to a temporary file first."""

    def __init__(self, path: Path, stream: BinaryIO, *, is_csv: bool) -> None:
        self.path = path
        self._stream = stream
        self._is_csv = is_csv

    def read(self, validate: Callable[[AnyOrder], AnyOrder], defaults: Mapping[str, Any]) -> Iterator[OrderLine]:
        """Yield the lines; *defaults* holds fields for lines that do not have them.

        A line has an order's fields by name; its other columns can be used in the prompt, ``{like_this}``. Blank lines,
        and lines of CSV without any value, are skipped.
        """
        self._stream.seek(0)
        text: io.TextIOWrapper | None = None
        try:
            if self._is_csv:
                text = io.TextIOWrapper(self._stream, encoding="utf-8-sig", newline="")
            for number, row in _csv_rows(text) if text else _json_rows(self._stream):
                if isinstance(row, str):
                    yield OrderLine(number, None, fault=row)
                    continue
                try:
                    order, columns = _read(row, defaults)
                    order = validate(order)
                except errors.ConfigurationError as error:
                    yield OrderLine(number, None, fault=str(error))
                else:
                    yield OrderLine(number, order, columns)
        except (UnicodeDecodeError, csv.Error) as error:
            raise errors.ConfigurationError(f"{self.path} cannot be read: {error}") from None
        finally:
            if text is not None:
                text.detach()


@contextmanager
def open_orders(path: Path) -> Generator[OrderFile]:
    """Open a file of orders: ``.csv`` or else JSON Lines. ``-`` is standard input; in a pipe the first byte decides."""
    with open_stdin() if path == STDIN else path.open("rb") as given:
        if path != STDIN and stat.S_ISREG(path.stat().st_mode):
            yield OrderFile(path, given, is_csv=path.suffix.lower() == ".csv")
            return
        with tempfile.TemporaryFile() as copied:
            shutil.copyfileobj(given, copied)
            copied.seek(0)
            start = copied.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
            yield OrderFile(path, copied, is_csv=path.suffix.lower() == ".csv" or not start.startswith(b"{"))


def _read(row: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[AnyOrder, Mapping[str, Any]]:
    fields = dict(defaults)
    fields.update((name, value) for name, value in row.items() if value is not None and value != "")
    for name in ("params", "inputs"):
        if isinstance(text := fields.get(name), str):
            fields[name] = _decode_cell(name, text)
    kind = TechniqueOrder if "technique_id" in fields else ActionOrder if "action_id" in fields else Order
    if kind is Order and isinstance(prompt := fields.get("prompt"), str):
        fields["prompt"] = fill(prompt, {**row, **fields})
    for name in _REQUIRED[kind]:
        if name not in fields:
            raise errors.ConfigurationError(f"{name} is missing")
    known = _FIELDS[kind]
    try:
        order = convert_order({name: value for name, value in fields.items() if name in known})
    except msgspec.ValidationError as error:
        raise errors.ConfigurationError(str(error)) from None
    return order, {name: value for name, value in row.items() if name not in known}


def _decode_cell(name: str, text: str) -> object:
    kind: Any = dict[str, Any] if name == "params" else dict[str, Any] | list[Any]
    try:
        value: object = msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
        raise errors.ConfigurationError(f"{name} is no JSON object: {text[:80]!r}") from None
    return value


def fill(prompt: str, columns: Mapping[str, Any]) -> str:
    """Return the prompt with columns in the place of their names in ``{braces}``; ``{{`` and ``}}`` are braces."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in columns or columns[name] is None:
            raise errors.ConfigurationError(
                f"the prompt has {{{name}}}, and there is no such column (write {{{{{name}}}}} for the braces)"
            )
        value = columns[name]
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return _BRACES.sub(value_of, prompt) if "{" in prompt or "}" in prompt else prompt


def _json_rows(lines: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    number = 0
    while line := lines.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            yield number, f"the line has more than {MAX_LINE} bytes"
            return
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            yield number, _line.decode(line)
        except msgspec.ValidationError:
            yield number, "the line is no JSON object"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield number, f"the line is no JSON: {error}"


def _csv_rows(text: Iterable[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader(text, strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names) or "" in names:
        yield 1, "each column needs a name of its own"
        return
    for row in reader:
        if not any(str(cell).strip(" \t,[]'") for cell in row.values() if cell is not None):
            continue  # spreadsheets leave lines of commas behind cleared rows
        if None in row or None in row.values():
            yield reader.line_num, f"the line has not as many cells as the header ({len(names)})"
        else:
            yield reader.line_num, row
