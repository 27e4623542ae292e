"""Pure: local files and assets among the inputs of an order: find them, and replace them by URLs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard, TypeVar

from msgspec.structs import replace

from flora_async.models import AnyOrder, Asset, ListedAsset

OrderT = TypeVar("OrderT", bound=AnyOrder)

AssetRecord: TypeAlias = Asset | ListedAsset

InputFile: TypeAlias = os.PathLike[Any] | AssetRecord
"""A value that stands for its URL: a path, whose file is uploaded, or an asset."""

STAND_IN = "https://media.flora.ai/file"
"""A URL in the place of a file that is not uploaded yet, where inputs are checked."""


def find_files(inputs: object) -> list[InputFile]:
    """Return the files in *inputs*, in any position. A container that is there twice is searched once."""
    return [] if inputs == {} else list(_walk(inputs, {}))


def inputs_of(order: AnyOrder) -> dict[str, Any]:
    """Return the fields of an order that can have files and are set."""
    fields: dict[str, Any] = {}
    for name in ("params", "inputs"):
        if (value := getattr(order, name, None)) is not None:
            fields[name] = value
    return fields


def replace_files(order: OrderT, url_of: Callable[[InputFile], str]) -> OrderT:
    """Return a copy of the order with a URL in the place of each file."""
    copies: dict[int, tuple[object, object]] = {}
    return replace(order, **{name: _replace(value, url_of, copies) for name, value in inputs_of(order).items()})


def without_files(order: OrderT) -> OrderT:
    """Return the order with a stand-in URL in the place of each file: the same object, if it has none."""
    return replace_files(order, lambda _: STAND_IN) if find_files(inputs_of(order)) else order


def is_file(value: object) -> TypeGuard[InputFile]:
    """Return whether a value stands for the URL of a file. A plain string does not."""
    return isinstance(value, os.PathLike | AssetRecord)


def _walk(value: object, visited: dict[int, object]) -> Iterator[InputFile]:
    if is_file(value):
        yield value
    elif (_is_mapping(value) or _is_list(value)) and id(value) not in visited:
        visited[id(value)] = value  # kept, so that no other object gets its id
        for item in value.values() if _is_mapping(value) else value:
            yield from _walk(item, visited)


def _replace(value: object, url_of: Callable[[InputFile], str], copies: dict[int, tuple[object, object]]) -> object:
    if is_file(value):
        return url_of(value)
    if (known := copies.get(id(value))) is not None:
        return known[1]
    if _is_mapping(value):
        mapping: dict[object, object] = {}
        copies[id(value)] = value, mapping  # before its items: it can contain itself
        mapping.update((key, _replace(item, url_of, copies)) for key, item in value.items())
        return mapping
    if _is_list(value):
        items: list[object] = []
        copies[id(value)] = value, items
        items.extend(_replace(item, url_of, copies) for item in value)
        return items
    return value


def _is_mapping(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping)


def _is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    return isinstance(value, list | tuple)
