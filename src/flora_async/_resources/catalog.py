"""``flora.workspaces``, ``flora.projects``, ``flora.models``: the ids that an order wants, and what a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.requests import custom_request
from flora_async._http.responses import parse_response
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._validation import check_id, check_text, to_json_object
from flora_async.models import FieldError, GenerationType, Model, ModelParam, PageMeta, Project, Workspace

T = TypeVar("T")

_PAGE = "100"
_NUMBERS = ("int", "int?", "seed", "float")
_KINDS: dict[str, Any] = {
    "string": str,
    "string[]": list[str],
    "bool": bool,
    "int": int,
    "int?": int | None,
    "seed": int,
    "float": float,
    "dict": dict[str, Any],
}
"""What FLORA's words for types mean; whatever else there is takes anything."""


class _Workspaces(Struct, frozen=True):
    workspaces: tuple[Workspace, ...]


class _Projects(Struct, frozen=True):
    projects: tuple[Project, ...]
    meta: PageMeta = PageMeta()


class _Models(Struct, frozen=True):
    models: tuple[Model, ...]


class _Shelf:
    """Where lists come from."""

    def __init__(self, origin: BaseURL, transport: Transport) -> None:
        self._origin = origin
        self._transport = transport

    async def _read(self, path: str, query: Mapping[str, str], kind: type[T]) -> T:
        request = custom_request(self._origin, "GET", path, params=query, json=None, idempotency_key=None)
        return (await self._transport.send(request, partial(parse_response, kind))).data


class Workspaces(_Shelf):
    """``flora.workspaces``: where the key may work."""

    async def list(self) -> tuple[Workspace, ...]:
        """List the workspaces of the key. OpenAPI: ``GET /workspaces``."""
        return (await self._read("/workspaces", {}, _Workspaces)).workspaces


class Projects(_Shelf):
    """``flora.projects``: what a workspace is divided into."""

    def __init__(self, origin: BaseURL, transport: Transport, workspaces: Workspaces) -> None:
        super().__init__(origin, transport)
        self._workspaces = workspaces

    async def list(self, *, workspace_id: str | None = None) -> tuple[Project, ...]:
        """List the projects of a workspace, or of all: one request for each hundred. OpenAPI: ``GET /projects``."""
        if workspace_id is None:
            wanted = [workspace.workspace_id for workspace in await self._workspaces.list()]
        else:
            wanted = [check_id("workspace_id", workspace_id, "ws_")]
        projects: tuple[Project, ...] = ()
        for wanted_id in wanted:
            projects += await self._of(wanted_id)
        return projects

    async def _of(self, workspace_id: str) -> tuple[Project, ...]:
        projects: tuple[Project, ...] = ()
        query = {"workspace_id": workspace_id, "limit": _PAGE}
        been: set[str] = set()
        while True:
            page = await self._read("/projects", query, _Projects)
            projects += page.projects
            cursor = page.meta.next_cursor
            if not cursor:
                return projects
            if cursor in been:
                raise errors.PaginationError(cursor)
            been.add(cursor)
            query["cursor"] = cursor


class Models(_Shelf):
    """``flora.models``: what can be ordered, and what each model takes."""

    async def list(self, *, type: GenerationType | None = None) -> tuple[Model, ...]:
        """List the models, or those that make one *type* of thing. OpenAPI: ``GET /models``."""
        query = {} if type is None else {"type": check_text("type", type)}
        return (await self._read("/models", query, _Models)).models

    async def check(self, model: str, params: Mapping[str, Any] | None = None) -> tuple[FieldError, ...]:
        """Say what *model* would have against *params*, before anything is paid; nothing: an empty tuple.

        Told are parameters that it does not take, that it needs and lacks, of another type, out of range, or not among
        its options. It asks for the list of models each time.

        Raises:
            ConfigurationError: there is no such model; the text names the nearest.
        """
        model = check_text("model", model)
        given = to_json_object("params", {} if params is None else params)
        known = {listed.model_id: listed for listed in await self.list()}
        if model not in known:
            from difflib import get_close_matches  # a millisecond of the import, for a slip of the pen

            near = get_close_matches(model, known, n=3, cutoff=0.4)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise errors.ConfigurationError(f"there is no model {model!r}{hint}")
        return tuple(faults(known[model], given))


def faults(model: Model, params: Mapping[str, Any]) -> list[FieldError]:
    """Say what is wrong with the parameters of a model."""
    takes = {param.name: param for param in model.params}
    found = [
        FieldError(field=name, message=f"{model.model_id} does not take it; it takes {', '.join(takes) or 'none'}")
        for name in params
        if name not in takes
    ]
    for name, param in takes.items():
        if name in params:
            fault = _fault(param, params[name])
        else:
            fault = "is required" if param.required and param.default is None else None
        if fault is not None:
            found.append(FieldError(field=name, message=fault))
    return found


def _fault(param: ModelParam, value: object) -> str | None:
    try:
        msgspec.convert(value, _KINDS.get(param.type, Any))
    except msgspec.ValidationError:
        return f"must be of type {param.type}, not {type(value).__name__}"
    if param.options:
        options = [option.value for option in param.options]
        chosen = msgspec.convert(value, list[object]) if param.type == "string[]" else [value]
        if any(item not in options for item in chosen):
            return f"must be one of {', '.join(map(str, options))}, not {value!r}"
    if isinstance(value, int | float) and param.type in _NUMBERS:
        if param.min is not None and value < param.min:
            return f"must be at least {param.min:g}, not {value}"
        if param.max is not None and value > param.max:
            return f"must be at most {param.max:g}, not {value}"
    return None
