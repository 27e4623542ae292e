"""``flora.generations``: the three operations of FLORA's reference, and what is remembered of the runs they start."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, TypeAlias, overload

from msgspec.structs import replace

from flora_async import errors
from flora_async._http.requests import Request, create_request, encode_order, list_request, order_of, retrieve_request
from flora_async._http.responses import parse_page, parse_run
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.create_recovery import CreateRecovery
from flora_async._resources.pagination import GenerationList
from flora_async._validation import check_idempotency_key, check_run
from flora_async.events import Emit, RunCreated
from flora_async.models import GenerationPage, GenerationType, Order, Run, RunLike, RunOrigin, RunStatus, StartedRun

log = logging.getLogger("flora_async")

OnCreate: TypeAlias = Callable[[str, Order], None]
"""Called with the idempotency key and the order before the first byte goes out; what it raises stops the create."""


class Generations:
    """``flora.generations``: the three operations of FLORA's reference, by its own names."""

    def __init__(
        self,
        origin: BaseURL,
        transport: Transport,
        recovery: CreateRecovery,
        *,
        on_create: OnCreate | None,
        tell: Emit | None,
    ) -> None:
        self._origin = origin
        self._transport = transport
        self._recovery = recovery
        self._on_create = on_create
        self._tell = tell

    @overload
    async def create(self, order: Order, /, *, idempotency_key: str | None = None) -> StartedRun: ...

    @overload
    async def create(
        self,
        /,
        *,
        type: GenerationType,
        prompt: str,
        workspace_id: str,
        project_id: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> StartedRun: ...

    async def create(
        self,
        order: Order | None = None,
        /,
        *,
        type: GenerationType | None = None,
        prompt: str | None = None,
        workspace_id: str | None = None,
        project_id: str | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> StartedRun:
        """Start a generation, once: ``create(order)``, or ``create(type=..., prompt=..., ...)``.

        FLORA bills it when it accepts it; a run that fails later is not charged.

        The order goes out under one idempotency key, made before the first attempt (or the caller's own) and kept for
        all of them. If its answer is lost, the run is looked for in the history, which can take half a minute, and
        returned with ``recovered`` true when it can be no other. Cancelling may come too late: what
        ``Flora(on_create=...)`` was told, and the log, then tell the key. Reference: "Start a generation".

        Raises:
            ConfigurationError: an argument cannot be right; nothing was sent.
            CreateOutcomeUnknownError: FLORA may have accepted it, but no proper answer came, and its run was not found
                for certain; ``flora.recover_create(error)`` tries again.
            IdempotencyConflictError: *idempotency_key* was used before; ``flora.recover_create(error)`` finds its run.
            APIError: FLORA refused; nothing was started.
            APIConnectionError: FLORA was not reached; nothing was started.
        """
        order = order_of(
            order,
            {
                "type": type,
                "prompt": prompt,
                "workspace_id": workspace_id,
                "project_id": project_id,
                "model": model,
                "params": params,
                "callback_url": callback_url,
            },
        )
        key = str(uuid.uuid4()) if idempotency_key is None else check_idempotency_key(idempotency_key)
        request = create_request(self._origin, order, key)
        if self._on_create is not None:
            self._record_key(self._on_create, key, order)
        sent = request.order or order
        if log.isEnabledFor(logging.INFO):
            log.info("create of an %s under idempotency key %s", sent.type, key, extra={"idempotency_key": key})
        try:
            started = await self._recovery.create(request, sent, key)
        except asyncio.CancelledError as error:
            error.add_note(f"FLORA may have accepted the {sent.type} under idempotency key {key}")
            raise
        if log.isEnabledFor(logging.INFO):
            extra = {"run_id": started.run_id, "charged_cost": started.charged_cost, "idempotency_key": key}
            log.info("started %s for %g USD", started.run_id, started.charged_cost, extra=extra)
        named = started.model.model_id if started.model else None
        if self._tell is not None:
            self._tell(
                RunCreated(
                    run_id=started.run_id,
                    type=sent.type,
                    model_id=named or sent.model,
                    charged_cost=started.charged_cost,
                    recovered=started.recovered,
                )
            )
        if started.recovered:  # a while ago, nobody saw when
            return started
        origin = RunOrigin(
            created_at=self._transport.server_time(),
            type=sent.type,
            model=named or sent.model,
            workspace_id=sent.workspace_id,
            project_id=sent.project_id,
            has_callback=sent.callback_url is not None,
        )
        return replace(started, origin=origin)

    @staticmethod
    def _record_key(on_create: Callable[[str, Order], object], key: str, order: Order) -> None:
        """Call on_create; what returns an awaitable has recorded nothing yet, and nothing is sent."""
        pending = on_create(key, order)
        if isinstance(pending, Coroutine):
            pending.close()
            raise errors.ConfigurationError(
                "on_create returned a coroutine, which is never awaited. Use a plain function"
            )

    def validate(self, order: Order) -> Order:
        """Check an order as ``create`` does, without a request, and return it as it would be sent.

        Raises:
            ConfigurationError: it cannot be sent.
        """
        return encode_order(self._origin, order)

    async def retrieve(self, run_id: RunLike) -> Run:
        """Get a run as it stands, with its outputs if it has completed. Reference: "Get a run".

        Args:
            run_id: the id of the run, or any record of it, like what ``create`` returned.

        Raises:
            NotFoundError: there is no such run; for a moment that can be said of one just started.
            ResponseDecodeError: the answer is not what the reference promises.
            APIError, APIConnectionError: as for every request, after ``max_retries`` more attempts.
        """
        wanted = check_run("run_id", run_id)
        return await self._transport.send(retrieve_request(self._origin, wanted), partial(parse_run, wanted))

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = None,
        project_id: str | None = None,
        status: RunStatus | None = None,
        workspace_id: str | None = None,
    ) -> GenerationList:
        """Walk the history, newest first, all of it: ``async for generation in flora.generations.list()``.

        *limit* is the size of a page, 1 to 100, not a total. *cursor* goes on from a saved ``page.next_cursor``.
        Reference: "List generation history".
        """
        origin, transport = self._origin, self._transport

        def request_at(cursor: str | None) -> Request:
            return list_request(
                origin, cursor=cursor, limit=limit, project_id=project_id, status=status, workspace_id=workspace_id
            )

        async def fetch(cursor: str | None) -> GenerationPage:
            return await transport.send(request_at(cursor), parse_page)

        first = request_at(cursor)  # refuses bad arguments here and now
        return GenerationList(fetch, cursor, first.url)
