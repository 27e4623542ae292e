"""``flora.generations``: the three operations of FLORA's reference, and what is remembered of the runs they start."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct

from flora_async import _wire
from flora_async._addresses import Origin
from flora_async._arguments import check_idempotency_key
from flora_async._history import GenerationList
from flora_async._transport import Transport
from flora_async.models import GenerationPage, GenerationType, Order, Run, RunStatus, StartedRun

log = logging.getLogger("flora_async")

REMEMBERED_SECONDS = 3600.0
"""How long a client remembers when it started a run, and so when to look at it first."""


class Generations:
    """``flora.generations``: the three operations of FLORA's reference, by its own names."""

    def __init__(self, origin: Origin, transport: Transport, births: dict[str, Birth]) -> None:
        self._origin = origin
        self._transport = transport
        self._births = births
        self._clock_ahead = -math.inf

    async def create(
        self,
        *,
        type: GenerationType,
        prompt: str,
        workspace_id: str,
        project_id: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> StartedRun:
        """Start a generation, once. FLORA bills it when it accepts it; a run that fails later is not charged.

        The order goes out under one idempotency key, made before the first attempt (or the caller's own) and kept for
        all of them. Reference: "Start a generation".

        Raises:
            ConfigurationError: an argument cannot be right; nothing was sent.
            CreateOutcomeUnknownError: FLORA may have accepted it, but no proper answer came.
            IdempotencyConflictError: *idempotency_key* was used before.
            APIError: FLORA refused; nothing was started.
            APIConnectionError: FLORA was not reached; nothing was started.
        """
        order = Order(
            type=type,
            prompt=prompt,
            workspace_id=workspace_id,
            project_id=project_id,
            model=model,
            params=params,
            callback_url=callback_url,
        )
        key = str(uuid.uuid4()) if idempotency_key is None else check_idempotency_key(idempotency_key)
        request = _wire.create_request(self._origin, order, key)
        log.info("create of an %s under idempotency key %s", type, key)
        started, date = await self._transport.call(request, _read_start)
        if date is not None:
            # FLORA's dates are cut to seconds, and late by the way: the greatest difference is nearest the truth.
            self._clock_ahead = max(self._clock_ahead, date - time.time())
        log.info("started %s for %g USD", started.run_id, started.charged_cost)
        now = asyncio.get_running_loop().time()
        births = self._births
        while births and (oldest := next(iter(births.items())))[1].at < now - REMEMBERED_SECONDS:
            del births[oldest[0]]
        named = started.model.model_id if started.model else None
        unix = time.time() + (self._clock_ahead if math.isfinite(self._clock_ahead) else 0.0)
        births[started.run_id] = Birth(now, unix, order, named or model, started.estimated_seconds)
        return started

    async def retrieve(self, run_id: str) -> Run:
        """Get a run as it stands, with its outputs if it has completed. Reference: "Get a run".

        Raises:
            NotFoundError: there is no such run; for a moment that can be said of one just started.
            ResponseDecodeError: the answer is not what the reference promises.
            APIError, APIConnectionError: as for every request, after ``max_retries`` more attempts.
        """
        return await self._transport.call(_wire.retrieve_request(self._origin, run_id), partial(_wire.read_run, run_id))

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

        def request_at(cursor: str | None) -> _wire.Request:
            return _wire.list_request(
                origin, cursor=cursor, limit=limit, project_id=project_id, status=status, workspace_id=workspace_id
            )

        async def fetch(cursor: str | None) -> GenerationPage:
            return await transport.call(request_at(cursor), _wire.read_page)

        request_at(cursor)  # refuses bad arguments here and now
        return GenerationList(fetch, cursor)


class Birth(Struct, frozen=True):
    """When a run was started here, and what for."""

    at: float
    """By the event loop's clock."""
    unix: float
    """By FLORA's clock."""
    order: Order
    model: str | None
    estimate: float | None


def _read_start(answer: _wire.Answer) -> tuple[StartedRun, float | None]:
    return _wire.read_started_run(answer), _wire.http_date(answer.headers.get("date", ""))
