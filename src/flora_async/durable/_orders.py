"""Pure but for the file that is read: orders from JSON Lines or CSV, one by one, and what is wrong with a line."""

from __future__ import annotations

import csv
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from msgspec import Struct

from flora_async import _wire, errors
from flora_async._addresses import Origin
from flora_async.models import Order

LONGEST_LINE = 2**20
"""Bytes; FLORA takes no longer order."""

_FIELDS = frozenset(Order.__struct_fields__)
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}\n]{1,100})\}")
_line: msgspec.json.Decoder[dict[str, Any]] = msgspec.json.Decoder(dict[str, Any])


class Line(Struct, frozen=True):
    """A line that can be ordered, or what is wrong with it."""

    number: int
    """Of the line in its file, from 1."""
    order: Order | None
    columns: Mapping[str, Any] = {}
    """What else the line says."""
    fault: str = ""


def read_orders(path: Path, origin: Origin, always: Mapping[str, Any]) -> Iterator[Line]:
    """Read a file of orders, ``.csv`` or else JSON Lines; *always* is what holds for lines that say nothing of it.

    Each line gives an order's fields by name; what else it says can be used in the prompt, ``{like_this}``.
    """
    with _opened(path) as rows:
        for number, row in rows:
            if isinstance(row, str):
                yield Line(number, None, fault=row)
                continue
            try:
                order, columns = _read(row, always)
                _wire.check_order(origin, order)
            except errors.ConfigurationError as error:
                yield Line(number, None, fault=str(error))
            else:
                yield Line(number, order, columns)


def _read(row: Mapping[str, Any], always: Mapping[str, Any]) -> tuple[Order, Mapping[str, Any]]:
    said = dict(always)
    said.update((name, value) for name, value in row.items() if value is not None and value != "")
    if isinstance(params := said.get("params"), str):
        try:
            said["params"] = _line.decode(params)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError):
            raise errors.ConfigurationError(f"params is no JSON object: {params[:80]!r}") from None
    if isinstance(prompt := said.get("prompt"), str):
        said["prompt"] = fill(prompt, {**row, **said})
    for name in ("type", "prompt", "workspace_id", "project_id"):
        if name not in said:
            raise errors.ConfigurationError(f"{name} is missing")
    try:
        order = msgspec.convert({name: value for name, value in said.items() if name in _FIELDS}, Order)
    except msgspec.ValidationError as error:
        raise errors.ConfigurationError(str(error)) from None
    return order, {name: value for name, value in row.items() if name not in _FIELDS}


def fill(prompt: str, columns: Mapping[str, Any]) -> str:
    """Put columns where the prompt has their names in ``{braces}``; ``{{`` and ``}}`` are braces themselves."""

    def said(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            return match[0][0]
        if name not in columns or columns[name] is None:
            raise errors.ConfigurationError(
                f"the prompt has {{{name}}}, and there is no such column (write {{{{{name}}}}} for the braces)"
            )
        value = columns[name]
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()

    return _BRACES.sub(said, prompt) if "{" in prompt or "}" in prompt else prompt


@contextmanager
def _opened(path: Path) -> Generator[Iterable[tuple[int, Mapping[str, Any] | str]]]:
    try:
        if path.suffix.lower() == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as text:
                yield _csv_rows(text)
        else:
            with path.open("rb") as lines:
                yield _json_rows(lines)
    except (UnicodeDecodeError, csv.Error) as error:
        raise errors.ConfigurationError(f"{path} cannot be read: {error}") from None


def _json_rows(lines: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    number = 0
    while line := lines.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            yield number, f"the line has more than {LONGEST_LINE} bytes"
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
    reader = csv.DictReader(text, strict=True)
    names = reader.fieldnames or []
    if len(set(names)) < len(names) or "" in names:
        yield 1, "each column needs a name of its own"
        return
    for row in reader:
        if None in row or None in row.values():
            yield reader.line_num, f"the line has not as many cells as the header ({len(names)})"
        else:
            yield reader.line_num, row
