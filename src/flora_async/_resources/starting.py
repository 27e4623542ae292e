"""Start a run: send its order under one idempotency key, and return what FLORA started."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import TypeAlias

from msgspec.structs import replace

from flora_async import errors
from flora_async._http.requests import Request, create_request, with_timeout
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._inputs import find_files, inputs_of, without_files
from flora_async._resources.assets import Assets
from flora_async._resources.create_recovery import CreateRecovery
from flora_async._resources.declarations import Declarations
from flora_async._resources.model_catalog import require_mode
from flora_async._resources.param_checks import CheckParams
from flora_async._validation import check_idempotency_key
from flora_async.events import Emit, RunCreated
from flora_async.models import AnyOrder, Order, RunOrigin, StartedRun

log = logging.getLogger("flora_async")

OnCreate: TypeAlias = Callable[[str, AnyOrder], None]
"""Called with the idempotency key and the order before the request is sent. Its exceptions stop the create."""

CheckOrder: TypeAlias = Callable[[AnyOrder, CheckParams], Coroutine[None, None, None]]
"""Compares an order with the declaration of its model. Raises ConfigurationError to refuse the order."""


class RunStarter:
    """Starts the run of an order exactly once: the only way by which an order is sent."""

    def __init__(
        self,
        origin: BaseURL,
        transport: Transport,
        recovery: CreateRecovery,
        declarations: Declarations,
        assets: Assets,
        *,
        on_create: OnCreate | None,
        emit: Emit | None,
        check_order: CheckOrder,
        check_params: CheckParams,
    ) -> None:
        self._origin = origin
        self._transport = transport
        self._recovery = recovery
        self._declarations = declarations
        self._assets = assets
        self._on_create = on_create
        self._emit = emit
        self._check_order = check_order
        self._check_params: CheckParams = check_params

    async def start(
        self,
        order: AnyOrder,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        *,
        check_params: CheckParams | None = None,
    ) -> StartedRun:
        """Check an order, record its key with ``on_create``, send it, and return the started run with its origin.

        Files among its inputs are uploaded when all else was checked, before the key is recorded or sent. *timeout* are
        the seconds for one exchange, in place of the client's.
        """
        key = str(uuid.uuid4()) if idempotency_key is None else check_idempotency_key(idempotency_key)
        mode = self._check_params if check_params is None else require_mode(check_params)
        try:
            if isinstance(order, Order):
                request = create_request(self._origin, order, key)
                if mode != "off" and order.model is not None:
                    await self._check_order(request.order or order, mode)
            else:
                request = await self._declarations.create_request(order, key)
        except errors.ConfigurationError as error:
            order, request = await self._upload_files(order, key, error, mode)
        request = request if timeout is None else with_timeout(request, timeout)
        if self._on_create is not None:
            _record_key(self._on_create, key, order)
        sent = request.order or order
        kind, endpoint = (sent.type, sent.model) if isinstance(sent, Order) else (sent.kind, sent.endpoint)
        if log.isEnabledFor(logging.INFO):
            log.info("create of an %s under idempotency key %s", kind, key, extra={"idempotency_key": key})
        try:
            started = await self._recovery.create(request, sent, key)
        except asyncio.CancelledError as error:
            error.add_note(f"FLORA may have accepted the {kind} under idempotency key {key}")
            raise
        if log.isEnabledFor(logging.INFO):
            extra = {"run_id": started.run_id, "charged_cost": started.charged_cost, "idempotency_key": key}
            log.info("started %s for %g USD", started.run_id, started.charged_cost, extra=extra)
        model_id = started.model.model_id if started.model else None
        if self._emit is not None:
            self._emit(
                RunCreated(
                    run_id=started.run_id,
                    type=kind,
                    model_id=model_id or endpoint,
                    charged_cost=started.charged_cost,
                    recovered=started.recovered,
                )
            )
        if started.recovered:  # The time of its create is unknown.
            return started
        origin = RunOrigin(
            created_at=self._transport.server_time(),
            type=kind,
            model=model_id or endpoint,
            workspace_id=sent.workspace_id,
            project_id=sent.project_id,
            has_callback=sent.callback_url is not None,
        )
        return replace(started, origin=origin)

    async def _upload_files(
        self, order: AnyOrder, key: str, refusal: errors.ConfigurationError, mode: CheckParams
    ) -> tuple[AnyOrder, Request]:
        """Return the order with URLs in the place of files, and its request. Raise *refusal* if it has no files."""
        if not find_files(inputs_of(order)):
            raise refusal
        await self._declarations.create_request(without_files(order), key)  # Nothing is uploaded for an invalid order.
        await self._check_order(order, mode)
        order = await self._assets.replace_files(order)
        return order, await self._declarations.create_request(order, key)


def _record_key(on_create: Callable[[str, AnyOrder], object], key: str, order: AnyOrder) -> None:
    """Call on_create. Raise if it returns a coroutine: nothing was recorded, so nothing may be sent."""
    pending = on_create(key, order)
    if isinstance(pending, Coroutine):
        pending.close()
        raise errors.ConfigurationError("on_create returned a coroutine, which is never awaited. Use a plain function")
