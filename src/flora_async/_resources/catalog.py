"""``flora.workspaces``, ``flora.projects``, ``flora.models``: the ids for orders, and the parameters of models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.model_catalog import ModelCatalog, require_mode
from flora_async._resources.operations import ItemPage, Operation, Resource
from flora_async._resources.param_checks import Catalog, CheckParams, Fault, check_params, find_near
from flora_async._resources.stubs import write_stubs
from flora_async._validation import check_text, to_json_object
from flora_async.models import AnyOrder, FieldError, GenerationType, Model, Order, Project, Workspace

log = logging.getLogger("flora_async")


class _Workspaces(Struct, frozen=True):
    workspaces: tuple[Workspace, ...]


class _Projects(ItemPage, frozen=True, kw_only=True):
    projects: tuple[Project, ...]


class _Models(Struct, frozen=True):
    models: tuple[Model, ...]


class _ModelItems(Struct, frozen=True):
    models: tuple[msgspec.Raw, ...]


class _GatewayModel(Struct, frozen=True):
    model_id: str


class _GatewayModels(Struct, frozen=True):
    models: tuple[_GatewayModel, ...]


_WORKSPACES = Operation("GET", "/workspaces", _Workspaces)
_CREATE_IN_WORKSPACE = Operation("POST", "/workspaces/{workspace_id}/projects", Project)
_CREATE_IN_FOLDER = Operation("POST", "/workspaces/{workspace_id}/folders/{folder_id}/projects", Project)
_PROJECTS = Operation("GET", "/projects", _Projects)
_PROJECT = Operation("GET", "/projects/{project_id}", Project)
_CREATE = Operation("POST", "/projects", Project)
_MODELS = Operation("GET", "/models", _Models)
_MODEL_ITEMS = Operation("GET", "/models", _ModelItems)
_GATEWAY_MODELS = Operation("GET", "/gateway/models", _GatewayModels)


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

    def __init__(self, origin: BaseURL, transport: Transport) -> None:
        super().__init__(origin, transport)
        self._catalog = ModelCatalog(self._read_decodable, self._read_gateway_ids, transport.time)

    async def list(self, *, type: GenerationType | None = None, timeout: float | None = None) -> tuple[Model, ...]:
        """Return all models, or the models for one *type* of output. OpenAPI: ``GET /models``.

        *timeout* are the seconds for one HTTP exchange, in place of the client's.
        """
        if type is None:
            models = await self._read_all(timeout)
            self._catalog.store(models)
            return models
        return (await self._call(_MODELS, query={"type": check_text("type", type)}, timeout=timeout)).models

    async def catalog(self) -> Catalog:
        """Return the list of models that this client keeps. It is read at the first use, and again after an hour.

        ``catalog.check(order)`` returns the errors of an order without a request. OpenAPI: ``GET /models``.
        """
        return await self._catalog.get()

    async def stubs(self) -> str:
        """Return a Python module with a TypedDict for the parameters of each model, for editors and type checkers.

        It is valid as ``.py`` and as ``.pyi``. ``flora-async models stubs`` prints it. OpenAPI: ``GET /models``.
        """
        return write_stubs(await self.list())

    async def check(self, model: str, params: Mapping[str, Any] | None = None) -> tuple[FieldError, ...]:
        """Return the errors in *params* for *model*, before anything is billed; an empty tuple without errors.

        An error is an unknown parameter, a missing required one, a wrong type, a value out of range, or a value that is
        not an option. The client keeps the list of models for an hour.

        Raises:
            ConfigurationError: FLORA lists no such model. The message names a similar one.
        """
        model = check_text("model", model)
        given = to_json_object("params", {} if params is None else params)

        def find_faults(catalog: Catalog) -> list[Fault]:
            known = catalog.models.get(model)
            if known is None:
                near = find_near(model, catalog.models, near=0.4)
                hint = f": did you mean {near}?" if near else ""
                raise errors.ConfigurationError(f"there is no model {model!r}{hint}")
            return check_params(known, given)

        faults = await self._catalog.find_faults(model, find_faults)
        return tuple(FieldError(field=each.field, message=each.message) for each in faults if each.certain)

    async def check_order(self, order: AnyOrder, mode: CheckParams = "refuse") -> None:
        """Compare an order with its model as ``create`` does: refuse it, or log a warning and accept it.

        An order without a model, of a technique or of an action is accepted.

        Raises:
            ConfigurationError: *mode* is ``"refuse"`` and the order is wrong; ``fields`` has the errors.
        """
        if require_mode(mode) != "off" and isinstance(order, Order) and isinstance(order.model, str):
            await self._catalog.check(order, mode)

    async def _read_gateway_ids(self) -> frozenset[str]:
        return frozenset(model.model_id for model in (await self._call(_GATEWAY_MODELS)).models)

    async def _read_all(self, timeout: float | None = None) -> tuple[Model, ...]:
        return (await self._call(_MODELS, timeout=timeout)).models

    async def _read_decodable(self) -> tuple[Model, ...]:
        """Return the models that can be decoded. An odd one must not end the comparison of orders with all others."""
        decoder, models, odd = msgspec.json.Decoder(Model), list[Model](), 0
        for item in (await self._call(_MODEL_ITEMS)).models:
            try:
                models.append(decoder.decode(item))
            except msgspec.MsgspecError:
                odd += 1
        if odd:
            text = "cannot decode %d models of FLORA's list: their orders are not checked"
            log.warning(text, odd, extra={"field": "$.models"})
        return tuple(models)
