"""``flora.gateway``: models under steady names. Source: the 0.12.0 tree of FLORA's npm client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec import Struct

from flora_async import errors
from flora_async._http.requests import check_callback_url
from flora_async._resources.operations import Operation, Resource
from flora_async._validation import check_text, to_json_object
from flora_async.models import GenerationType, ModelOption, Record, StartedRun

T = TypeVar("T")


class GatewayParam(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A parameter of a gateway model."""

    name: str
    kind: str
    """``text``, ``enum``, ``int``, ``seed``, ``bool`` or ``media``. Open."""
    required: bool | None = None
    default: Any = None
    options: tuple[ModelOption, ...] | None = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    max_length: float | None = None
    media: str | None = None
    """``image``, ``video`` or ``audio``, of a parameter of kind ``media``."""
    min_count: float | None = None
    max_count: float | None = None
    """With more than 1, the value is a list of URLs."""
    label: str | None = None
    description: str | None = None


class GatewayModel(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A model of the gateway. npm client 0.12.0: ``GET /gateway/models``."""

    model_id: str
    """Id like ``google/nano-banana-2``. ``flora.generations`` does not accept it."""
    name: str
    type: str
    estimated_seconds: float | None = None
    params: tuple[GatewayParam, ...] = ()


class _Models(Struct, frozen=True):
    models: tuple[GatewayModel, ...]


_MODELS = Operation("GET", "/gateway/models", _Models)
_GENERATE = Operation("POST", "/gateway/generate", StartedRun)


class Gateway(Resource):
    """``flora.gateway``: models under steady names. FLORA may not serve it yet: a 404 says so."""

    async def models(
        self, *, type: GenerationType | None = None, timeout: float | None = None
    ) -> tuple[GatewayModel, ...]:
        """Return the models of the gateway. *timeout*: seconds for an exchange. npm 0.12.0: ``GET /gateway/models``."""
        return (await self._ask(_MODELS, query={"type": type}, timeout=timeout)).models

    async def generate(
        self,
        *,
        model: str,
        prompt: str,
        workspace_id: str,
        project_id: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
    ) -> StartedRun:
        """Start a generation by a gateway model, under one idempotency key. FLORA bills it when it accepts it.

        Without *project_id*, FLORA creates a project; the started run names it. An error with ``outcome_unknown`` means
        that a run may have been started and billed; it is not searched for. npm client 0.12.0: ``POST
        /gateway/generate``.
        """
        body = {
            "model": check_text("model", model),
            "prompt": check_text("prompt", prompt),
            "workspace_id": workspace_id,
            "project_id": project_id,
            "params": None if params is None else to_json_object("params", params),
            "callback_url": None if callback_url is None else check_callback_url(self._origin, callback_url),
        }
        return await self._ask(_GENERATE, body=body)

    async def _ask(
        self,
        operation: Operation[T],
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> T:
        try:
            return await self._call(operation, query=query, body=body, timeout=timeout)
        except errors.NotFoundError as error:
            error.message += " FLORA's gateway may not be live for this key yet."
            raise
