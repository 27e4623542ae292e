"""``flora.actions``: fixed transformations of media and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.declarations import RETRIEVE_ACTION
from flora_async._resources.operations import Operation, Resource
from flora_async._resources.starting import RunStarter
from flora_async.models import Action, ActionId, ActionOrder, StartedRun


class _Actions(Struct, frozen=True):
    actions: tuple[Action, ...]


_LIST = Operation("GET", "/actions", _Actions)


class Actions(Resource):
    """``flora.actions``: fixed transformations, which FLORA does not bill as a rule."""

    def __init__(self, origin: BaseURL, transport: Transport, starter: RunStarter) -> None:
        super().__init__(origin, transport)
        self._starter = starter

    async def list(self, *, timeout: float | None = None) -> tuple[Action, ...]:
        """Return all actions with their inputs. *timeout*: seconds for an exchange. OpenAPI: ``GET /actions``."""
        return (await self._call(_LIST, timeout=timeout)).actions

    async def retrieve(self, action_id: ActionId) -> Action:
        """Return an action. OpenAPI: ``GET /actions/{actionId}``."""
        return await self._call(RETRIEVE_ACTION, action_id=action_id)

    async def run(
        self,
        *,
        action_id: ActionId,
        inputs: Sequence[Mapping[str, Any]],
        workspace_id: str,
        project_id: str,
        params: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> StartedRun:
        """Start an action under one idempotency key, as ``generations.create`` starts a generation, with its errors.

        *inputs* are objects like ``{"type": "image", "url": "https://..."}`` or ``{"type": "text", "text": "..."}``.
        They and *params* are compared with the declared ones first, unless FLORA does not list the action any more.
        FLORA has no history of actions: a lost response ends in :class:`CreateOutcomeUnknownError`, and
        ``flora.recover_create(error)`` sends the order again under its key. OpenAPI: ``POST /runs/action``.

        Raises:
            ConfigurationError: an argument is invalid, or does not match the declaration; nothing was sent.
        """
        order = ActionOrder(
            action_id=action_id, inputs=inputs, workspace_id=workspace_id, project_id=project_id, params=params
        )
        return await self._starter.start(order, idempotency_key)
