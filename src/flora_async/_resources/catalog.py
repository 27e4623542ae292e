"""``flora.workspaces``, ``flora.projects``, ``flora.models``: the ids for orders, and the parameters of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.operations import ItemPage, Operation, Resource
from flora_async._validation import check_text, to_json_object
from flora_async.models import FieldError, GenerationType, Model, ModelParam, Project, Workspace

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


class _Projects(ItemPage, frozen=True, kw_only=True):
    projects: tuple[Project, ...]


class _Models(Struct, frozen=True):
    models: tuple[Model, ...]


_WORKSPACES = Operation("GET", "/workspaces", _Workspaces)
_CREATE_IN_WORKSPACE = Operation("POST", "/workspaces/{workspace_id}/projects", Project)
_CREATE_IN_FOLDER = Operation("POST", "/workspaces/{workspace_id}/folders/{folder_id}/projects", Project)
_PROJECTS = Operation("GET", "/projects", _Projects)
_PROJECT = Operation("GET", "/projects/{project_id}", Project)
_CREATE = Operation("POST", "/projects", Project)
_MODELS = Operation("GET", "/models", _Models)


class Workspaces(Resource):
    """``flora.workspaces``: the workspaces that the key can use."""

    async def list(self, *, timeout: float | None = None) -> tuple[Workspace, ...]:
        """Return the workspaces of the key. *timeout*: seconds for an exchange. OpenAPI: ``GET /workspaces``."""
        return (await self._call(_WORKSPACES, timeout=timeout)).workspaces

    async def create_project(self, *, workspace_id: str, name: str, folder_id: str | None = None) -> Project:
        """Create a project in a workspace, or in one of its folders.

        npm client 0.11.0: ``POST /workspaces/{id}/projects``, ``POST /workspaces/{id}/folders/{id}/projects``.
        """
        if folder_id is None:
            return await self._call(_CREATE_IN_WORKSPACE, body={"name": name}, workspace_id=workspace_id)
        return await self._call(_CREATE_IN_FOLDER, body={"name": name}, workspace_id=workspace_id, folder_id=folder_id)


class Projects(Resource):
    """``flora.projects``: the projects of workspaces."""

    def __init__(self, origin: BaseURL, transport: Transport, workspaces: Workspaces) -> None:
        super().__init__(origin, transport)
        self._workspaces = workspaces

    async def create(self, *, name: str, workspace_id: str) -> Project:
        """Create a project. It is sent under one idempotency key. OpenAPI: ``POST /projects``."""
        return await self._call(_CREATE, body={"name": name, "workspace_id": workspace_id})

    async def retrieve(self, project_id: str) -> Project:
        """Return a project. OpenAPI: ``GET /projects/{id}``."""
        return await self._call(_PROJECT, project_id=project_id)

    async def list(
        self, *, workspace_id: str | None = None, query: str | None = None, timeout: float | None = None
    ) -> tuple[Project, ...]:
        """Return the projects of one workspace, or of all, by recent activity; *query* selects by name.

        Each request reads 100. *timeout* are the seconds for one HTTP exchange, in place of the client's. OpenAPI:
        ``GET /projects``.
        """
        if workspace_id is None:
            workspace_ids = [workspace.workspace_id for workspace in await self._workspaces.list(timeout=timeout)]
        else:
            workspace_ids = [workspace_id]
        projects: tuple[Project, ...] = ()
        for each_id in workspace_ids:
            for page in await self._list(_PROJECTS, query={"workspace_id": each_id, "query": query}, timeout=timeout):
                projects += page.projects
        return projects


class Models(Resource):
    """``flora.models``: the models and their parameters."""

    async def list(self, *, type: GenerationType | None = None, timeout: float | None = None) -> tuple[Model, ...]:
        """Return all models, or the models for one *type* of output. OpenAPI: ``GET /models``.

        *timeout* are the seconds for one HTTP exchange, in place of the client's.
        """
        query = {} if type is None else {"type": check_text("type", type)}
        return (await self._call(_MODELS, query=query, timeout=timeout)).models

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
