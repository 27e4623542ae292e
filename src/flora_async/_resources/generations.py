"""``flora.generations``: the three operations of FLORA's reference."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any, overload

from msgspec.structs import replace

from flora_async._http.requests import (
    Request,
    encode_any_order,
    generation_order_of,
    list_request,
    retrieve_request,
    with_timeout,
)
from flora_async._http.responses import parse_page, parse_run
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._inputs import find_files, inputs_of, without_files
from flora_async._resources.pagination import GenerationList, Window, open_list
from flora_async._resources.param_checks import CheckParams
from flora_async._resources.starting import RunStarter
from flora_async._validation import check_run, check_time
from flora_async.models import AnyOrder, GenerationType, Order, Run, RunLike, RunStatus, StartedRun


class Generations:
    """``flora.generations``: the three operations of FLORA's reference, under its names."""

    def __init__(self, origin: BaseURL, transport: Transport, starter: RunStarter) -> None:
        self._origin = origin
        self._transport = transport
        self._starter = starter

    @overload
    async def create(
        self,
        order: Order,
        /,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        check_params: CheckParams | None = None,
    ) -> StartedRun: ...

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
        timeout: float | None = None,
        check_params: CheckParams | None = None,
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
        timeout: float | None = None,
        check_params: CheckParams | None = None,
    ) -> StartedRun:
        """Start a generation exactly once: ``create(order)``, or ``create(type=..., prompt=..., ...)``.

        FLORA bills an order when it accepts it, and refunds a run that fails later.

        All attempts use one idempotency key: *idempotency_key*, or a new one. If the response is lost, the client
        searches the history, which can take half a minute. It returns the run with ``recovered`` true if no other run
        is possible. A cancelled create may have been accepted: its key is in the log, and ``Flora(on_create=...)``
        received it. Reference: "Start a generation".

        *timeout* are the seconds for one HTTP exchange of this order, in place of the client's ``timeout``.

        An order with a model is compared with the model's declared parameters first, as *check_params* says; ``None``:
        as ``Flora(check_params=...)`` does.

        Raises:
            ConfigurationError: an argument is invalid, or the model does not accept the parameters, which ``fields``
                then names; nothing was sent.
            CreateOutcomeUnknownError: FLORA may have accepted the order, but its response was lost and its run could
                not be identified. Call ``flora.recover_create(error)`` to search again.
            IdempotencyConflictError: *idempotency_key* was used before; ``flora.recover_create(error)`` finds its run.
            APIError: FLORA refused the order; nothing was started.
            APIConnectionError: the request did not reach FLORA; nothing was started.
        """
        order = generation_order_of(
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
        return await self._starter.start(order, idempotency_key, timeout, check_params=check_params)

    def validate(self, order: AnyOrder) -> AnyOrder:
        """Check an order of any kind as its create does, without a request, and return it as it would be sent.

        The inputs of techniques and actions are compared with the declared ones only when they start.

        Files among its inputs stay as they are.

        Raises:
            ConfigurationError: the order is invalid.
        """
        inputs = inputs_of(order)
        if not find_files(inputs):
            return encode_any_order(self._origin, order)
        return replace(encode_any_order(self._origin, without_files(order)), **inputs)

    async def retrieve(self, run_id: RunLike, *, timeout: float | None = None) -> Run:
        """Return the current state of a run, with its outputs if it has completed. Reference: "Get a run".

        Args:
            run_id: the id of the run, or any record of it, like the one that ``create`` returns.
            timeout: seconds for one HTTP exchange, in place of the client's.

        Raises:
            NotFoundError: FLORA has no such run. A run that was just started can be missing for a moment.
            ResponseDecodeError: the response does not match the reference.
            APIError, APIConnectionError: as for every request, after ``max_retries`` retries.
        """
        known_id = check_run("run_id", run_id)
        request = retrieve_request(self._origin, known_id)
        if timeout is not None:
            request = with_timeout(request, timeout)
        return await self._transport.send(request, partial(parse_run, known_id))

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = 100,
        project_id: str | None = None,
        status: RunStatus | None = None,
        workspace_id: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        timeout: float | None = None,
    ) -> GenerationList:
        """Return the whole history, newest first: ``async for generation in flora.generations.list()``.

        Reference: "List generation history".

        Args:
            cursor: continues from a saved ``page.next_cursor``.
            limit: the size of a page, 1 to 100, not a total; ``None`` leaves it to FLORA.
            project_id: only runs of this project.
            status: only runs in this status.
            workspace_id: only runs of this workspace.
            since: only runs that were created at this time or later. A naive datetime is local time. FLORA has no such
                filter: the client reads from the newest run on, and stops at a page that ends with an older one.
            until: only runs that were created before this time. Newer runs are read and left out.
            timeout: seconds for each HTTP exchange, in place of the client's.
        """
        window = Window(check_time("since", since), check_time("until", until))
        origin = self._origin

        def request(cursor: str | None) -> Request:
            return list_request(
                origin,
                cursor=cursor,
                limit=limit,
                project_id=project_id,
                status=status,
                workspace_id=workspace_id,
            )

        return open_list(
            GenerationList,
            self._transport,
            request,
            lambda response: window.apply(parse_page(response)),
            cursor=cursor,
            timeout=timeout,
            label=window.label,
        )
