"""Creates: sent under one key, and if the answer is lost, found again in the history. Never sent under a second key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from copy import copy
from functools import partial
from typing import Any, TypeAlias

from msgspec.structs import replace

from flora_async import _pacing, _wire, errors
from flora_async._addresses import Origin
from flora_async._history import GenerationList
from flora_async._matching import Claim, could_be, judge
from flora_async._transport import Transport
from flora_async.models import Generation, GenerationPage, Order, StartedRun

log = logging.getLogger("flora_async")

ReadPage: TypeAlias = Callable[[str | None, tuple[str | None, str | None]], Coroutine[Any, Any, GenerationPage]]
"""Reads the page of the history at a cursor, of a workspace and a project."""

REMEMBERED_RUNS = 100_000
"""Of how many runs a client knows that they were its own."""


class Recovery:
    """The creates of one client: those under way, those whose run is looked for, and the runs they were given."""

    def __init__(self, origin: Origin, transport: Transport, page: ReadPage, *, adopt: bool) -> None:
        self._origin = origin
        self._transport = transport
        self._page = page
        self._adopt = adopt
        self._given: dict[str, str] = {}
        self._scopes: dict[tuple[str, str], _Scope] = {}
        self._ahead: float | None = None

    def now(self) -> float:
        """Tell the time by FLORA's clock, as far as it is known, in Unix seconds."""
        return time.time() + (self._ahead or 0.0)

    async def create(self, request: _wire.Request, order: Order, key: str) -> StartedRun:
        """Send an order until it is accepted; if nobody can say whether it was, look for its run."""
        scope = self._scope(order)
        spoken = scope.enter()
        try:
            return await self._transport.call(request, partial(self._read, key))
        except errors.IdempotencyConflictError as error:
            self._explain(error, order, key)
            raise
        except errors.CreateOutcomeUnknownError as error:
            unknown = self._dated(error)
            scope.claim(unknown)
        finally:
            scope.leave(spoken)
        return _as_started(await self._find(unknown, scope, known=()))

    async def recover(
        self, error: errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError, known: Collection[str]
    ) -> StartedRun:
        """Try again to say what became of an order: ask under its key while that is safe, then look for its run."""
        unknown = copy(error) if isinstance(error, errors.CreateOutcomeUnknownError) else _unknown(error)
        scope = self._scope(unknown.order)
        if not unknown.accepted and self.now() < unknown.window[0] + _pacing.RESEND_WINDOW:
            spoken = scope.enter()
            try:
                started = await self._ask_again(unknown)
                scope.claim(unknown)
            finally:
                scope.leave(spoken)
            if started is not None:
                scope.unclaim(unknown.idempotency_key)
                return started
        scope.claim(unknown)
        return _as_started(await self._find(unknown, scope, known))

    async def _ask_again(self, unknown: errors.CreateOutcomeUnknownError) -> StartedRun | None:
        key = unknown.idempotency_key
        request = _wire.create_request(self._origin, unknown.order, key)
        try:
            return await self._transport.call(request, partial(self._read, key))
        except errors.FloraError as failure:
            if isinstance(failure, errors.CreateOutcomeUnknownError):
                failure = self._dated(failure)
                unknown.accepted, unknown.run_id = failure.accepted, unknown.run_id or failure.run_id
            elif isinstance(failure, errors.IdempotencyConflictError):
                unknown.accepted = True
            unknown.reason = failure.reason if isinstance(failure, errors.CreateOutcomeUnknownError) else str(failure)
        unknown.attempts += 1
        unknown.window = unknown.window[0], max(unknown.window[1], self.now() + self._skew())
        return None

    def _read(self, key: str, answer: _wire.Answer) -> StartedRun:
        date = _wire.http_date(answer.headers.get("date", ""))
        if date is not None:
            # FLORA's dates are cut to seconds, and late by the way: the greatest difference is nearest the truth.
            ahead = date - time.time()
            self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)
        started = _wire.read_started_run(answer)
        if self._given.get(started.run_id, key) != key:
            raise _wire.given_before(answer, started.run_id)
        self._give(started.run_id, key)
        return started

    def _give(self, run_id: str, key: str) -> None:
        self._given[run_id] = key
        if len(self._given) > REMEMBERED_RUNS:
            del self._given[next(iter(self._given))]

    def _skew(self) -> float:
        return _pacing.CLOCK_SKEW_UNHEARD if self._ahead is None else _pacing.CLOCK_SKEW

    def _dated(self, unknown: errors.CreateOutcomeUnknownError) -> errors.CreateOutcomeUnknownError:
        """Put its window by FLORA's clock, and believe a torn answer unless it was another order's."""
        ahead, skew = self._ahead or 0.0, self._skew()
        unknown.window = unknown.window[0] + ahead - skew, unknown.window[1] + ahead + skew
        if unknown.run_id and self._given.get(unknown.run_id, unknown.idempotency_key) != unknown.idempotency_key:
            unknown.run_id = None
        unknown.accepted = unknown.accepted or unknown.run_id is not None
        return unknown

    def _explain(self, error: errors.IdempotencyConflictError, order: Order, key: str) -> None:
        now, skew = self.now(), self._skew()
        error.order, error.idempotency_key = order, key
        error.window = now - _pacing.KEY_SECONDS - skew, now + skew

    def _scope(self, order: Order) -> _Scope:
        place = order.workspace_id, order.project_id
        scope = self._scopes.get(place)
        if scope is None:
            scope = self._scopes[place] = _Scope()
        return scope

    # -- looking for a run

    async def _find(
        self, unknown: errors.CreateOutcomeUnknownError, scope: _Scope, known: Collection[str]
    ) -> Generation:
        """Find the run of a create, or raise what is known about it. Without proof that it exists: raise."""
        key = unknown.idempotency_key
        pauses = deque(_pacing.RECOVERY_PAUSES)
        before: list[str] = []
        try:
            while True:
                rows = await self._rows(scope, unknown, known)
                runs: list[str] = []
                if rows is not None:
                    runs = judge(scope.claims.values(), rows).get(key, [])
                    unknown.candidates = tuple(could_be(_claim(unknown), rows))
                if not unknown.accepted or len(runs) > 1 or (runs and not self._adopt):
                    raise unknown
                if runs and (runs == before or runs == [unknown.run_id]):
                    self._give(runs[0], key)
                    run_id = runs[0]
                    said = {"idempotency_key": key, "run_id": run_id}
                    log.warning(
                        "the answer to the create under key %s was lost; %s is its run", key, run_id, extra=said
                    )
                    return next(replace(row, recovered=True) for row in rows or () if row.run_id == run_id)
                if runs and not before:
                    pause = _pacing.RECOVERY_CONFIRM
                elif pauses:
                    pause = pauses.popleft()
                else:
                    raise unknown
                before = runs or before
                await self._transport.pause(pause)
        finally:
            scope.unclaim(key)

    async def _rows(
        self, scope: _Scope, unknown: errors.CreateOutcomeUnknownError, known: Collection[str]
    ) -> Sequence[Generation] | None:
        """Give the runs that nobody accounts for, by a look that begins now; ``None`` if that fails."""
        asked = time.monotonic()
        async with scope.lock:
            if scope.looked < asked:
                began = time.monotonic()
                try:
                    earliest = min([unknown.window[0], *(claim.window[0] for claim in scope.claims.values())])
                    scope.rows = await self._walk(unknown.order, earliest)
                except errors.FloraError as failure:
                    name = type(failure).__name__
                    log.info("the history could not be read (%s)", name, extra={"error": name})
                    return None
                scope.looked = began
            rows = scope.rows
        # What they are given is theirs, so those that were under way while the history was read speak first.
        if scope.under_way:
            await asyncio.wait(list(scope.under_way))
        return [row for row in rows if row.run_id not in self._given and row.run_id not in known]

    async def _walk(self, order: Order, earliest: float) -> list[Generation]:
        rows: list[Generation] = []
        place = order.workspace_id, order.project_id
        async with GenerationList(lambda cursor: self._page(cursor, place), None) as history:
            async for row in history:
                if row.created.timestamp() < earliest:
                    break
                rows.append(row)
        return rows


class _Scope:
    """The creates of one project, which may have each other's runs."""

    def __init__(self) -> None:
        self.under_way: set[asyncio.Future[None]] = set()
        self.claims: dict[str, Claim] = {}
        self.lock = asyncio.Lock()
        self.looked = 0.0
        self.rows: Sequence[Generation] = ()

    def enter(self) -> asyncio.Future[None]:
        """Have others wait until a create has spoken."""
        spoken = asyncio.get_running_loop().create_future()
        self.under_way.add(spoken)
        return spoken

    def leave(self, spoken: asyncio.Future[None]) -> None:
        """Have them wait no longer."""
        self.under_way.discard(spoken)
        spoken.set_result(None)

    def claim(self, unknown: errors.CreateOutcomeUnknownError) -> None:
        """Have a create take part in the sharing out."""
        self.claims[unknown.idempotency_key] = _claim(unknown)

    def unclaim(self, key: str) -> None:
        """Have it take part no longer."""
        self.claims.pop(key, None)
        if not self.claims:
            self.rows, self.looked = (), 0.0


def _claim(unknown: errors.CreateOutcomeUnknownError) -> Claim:
    return Claim(unknown.idempotency_key, unknown.order, unknown.window, unknown.run_id, unknown.accepted)


def _unknown(conflict: errors.IdempotencyConflictError) -> errors.CreateOutcomeUnknownError:
    if conflict.order is None or conflict.idempotency_key is None:
        raise errors.ConfigurationError("this conflict is not about a create: there is no run to recover")
    return errors.CreateOutcomeUnknownError(
        order=conflict.order,
        idempotency_key=conflict.idempotency_key,
        window=conflict.window,
        attempts=conflict.attempts,
        reason=str(conflict),
        accepted=True,
    )


def _as_started(run: Generation) -> StartedRun:
    return StartedRun(
        run_id=run.run_id,
        type="generation",
        charged_cost=run.charged_cost or 0.0,
        poll_url=run.poll_url,
        project_id=run.project_id,
        model=run.model,
        recovered=True,
    )
