"""``flora.workspaces``, ``flora.projects``, ``flora.models``: the ids for orders, and the parameters of models."""

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

_PAGE_LIMIT = "100"
_NUMBER_TYPES = ("int", "int?", "seed", "float")
_PARAM_TYPES: dict[str, Any] = {
    "string": str,
    "string[]": list[str],
    "bool": bool,
    "int": int,
    "int?": int | None,
    "seed": int,
    "float": float,
    "dict": dict[str, Any],
}
"""Python types of FLORA's parameter types. A type that is not listed accepts any value."""


class _Workspaces(Struct, frozen=True):
    workspaces: tuple[Workspace, ...]


class _Projects(Struct, frozen=True):
    projects: tuple[Project, ...]
    meta: PageMeta = PageMeta()


class _Models(Struct, frozen=True):
    models: tuple[Model, ...]


class _Resource:
    """Base class of resources that are read by GET requests."""

    def __init__(self, origin: BaseURL, transport: Transport) -> None:
        self._origin = origin
        self._transport = transport

    async def _get(self, path: str, query: Mapping[str, str], kind: type[T]) -> T:
        request = custom_request(self._origin, "GET", path, params=query, json=None, idempotency_key=None)
        return (await self._transport.send(request, partial(parse_response, kind))).data


class Workspaces(_Resource):
    """``flora.workspaces``: the workspaces that the key can use."""

    async def list(self) -> tuple[Workspace, ...]:
        """Return the workspaces of the key. OpenAPI: ``GET /workspaces``."""
        return (await self._get("/workspaces", {}, _Workspaces)).workspaces


class Projects(_Resource):
    """``flora.projects``: the projects of workspaces."""

    def __init__(self, origin: BaseURL, transport: Transport, workspaces: Workspaces) -> None:
        super().__init__(origin, transport)
        self._workspaces = workspaces

    async def list(self, *, workspace_id: str | None = None) -> tuple[Project, ...]:
        """Return the projects of one workspace, or of all. Each request reads 100. OpenAPI: ``GET /projects``."""
        if workspace_id is None:
            workspace_ids = [workspace.workspace_id for workspace in await self._workspaces.list()]
        else:
            workspace_ids = [check_id("workspace_id", workspace_id, "ws_")]
        projects: tuple[Project, ...] = ()
        for each_id in workspace_ids:
            projects += await self._list_workspace(each_id)
        return projects

    async def _list_workspace(self, workspace_id: str) -> tuple[Project, ...]:
        projects: tuple[Project, ...] = ()
        query = {"workspace_id": workspace_id, "limit": _PAGE_LIMIT}
        visited_cursors: set[str] = set()
        while True:
            page = await self._get("/projects", query, _Projects)
            projects += page.projects
            cursor = page.meta.next_cursor
            if not cursor:
                return projects
            if cursor in visited_cursors:
                raise errors.PaginationError(cursor)
            visited_cursors.add(cursor)
            query["cursor"] = cursor


class Models(_Resource):
    """``flora.models``: the models and their parameters."""

    async def list(self, *, type: GenerationType | None = None) -> tuple[Model, ...]:
        """Return all models, or the models for one *type* of output. OpenAPI: ``GET /models``."""
        query = {} if type is None else {"type": check_text("type", type)}
        return (await self._get("/models", query, _Models)).models

    async def check(self, model: str, params: Mapping[str, Any] | None = None) -> tuple[FieldError, ...]:
        """Return the errors in *params* for *model*, before anything is billed; an empty tuple without errors.

        An error is an unknown parameter, a missing required one, a wrong type, a value out of range, or a value that is
        not an option. Each call requests the list of models.

        Raises:
            ConfigurationError: FLORA has no such model. The message names similar ones.
        """
        model = check_text("model", model)
        given = to_json_object("params", {} if params is None else params)
        known = {listed.model_id: listed for listed in await self.list()}
        if model not in known:
            from difflib import get_close_matches  # Its import takes a millisecond, and few calls need it.

            near = get_close_matches(model, known, n=3, cutoff=0.4)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise errors.ConfigurationError(f"there is no model {model!r}{hint}")
        return tuple(check_params(known[model], given))


def check_params(model: Model, params: Mapping[str, Any]) -> list[FieldError]:
    """Return the errors in the parameters for a model."""
    known = {param.name: param for param in model.params}
    found = [
        FieldError(field=name, message=f"{model.model_id} does not take it; it takes {', '.join(known) or 'none'}")
        for name in params
        if name not in known
    ]
    for name, param in known.items():
        if name in params:
            message = _check_value(param, params[name])
        else:
            message = "is required" if param.required and param.default is None else None
        if message is not None:
            found.append(FieldError(field=name, message=message))
    return found


def _check_value(param: ModelParam, value: object) -> str | None:
    try:
        msgspec.convert(value, _PARAM_TYPES.get(param.type, Any))
    except msgspec.ValidationError:
        return f"must be of type {param.type}, not {type(value).__name__}"
    if param.options:
        options = [option.value for option in param.options]
        chosen = msgspec.convert(value, list[object]) if param.type == "string[]" else [value]
        if any(item not in options for item in chosen):
            return f"must be one of {', '.join(map(str, options))}, not {value!r}"
    if isinstance(value, int | float) and param.type in _NUMBER_TYPES:
        if param.min is not None and value < param.min:
            return f"must be at least {param.min:g}, not {value}"
        if param.max is not None and value > param.max:
            return f"must be at most {param.max:g}, not {value}"
    return None
