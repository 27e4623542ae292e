"""Creates: sent under one key, and if the response is lost, found in the history. Never sent under a second key."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from copy import copy
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async._bounded_dict import BoundedDict
from flora_async._http.requests import Request, create_request, list_request, retrieve_request
from flora_async._http.responses import (
    RawResponse,
    parse_page,
    parse_run,
    parse_started_run,
    parse_technique_runs,
    reused_run_error,
)
from flora_async._http.retry import may_have_been_received
from flora_async._http.transport import Attempt, Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.declarations import Declarations
from flora_async._resources.matching import Claim, HistoryRow, candidate_runs, match_creates
from flora_async._resources.pagination import PageIterator
from flora_async.models import (
    IDEMPOTENCY_KEY_TTL,
    ActionOrder,
    AnyOrder,
    Generation,
    GenerationPage,
    Order,
    StartedRun,
    TechniqueOrder,
    TechniqueRun,
    TechniqueRunPage,
)

log = logging.getLogger("flora_async")

MAX_REMEMBERED_RUNS = 100_000
"""Number of run ids that a client remembers as its own."""

MAX_IDLE_SCOPES = 100
"""Number of projects that are kept, with those in use, before the idle ones are dropped."""


class RecoveryPolicy(Struct, frozen=True, kw_only=True):
    """How the run of a create is found whose response was lost. Times are in seconds."""

    pauses: tuple[float, ...] = (10.0, 4.0, 8.0, 8.0)
    """Pauses before each further read of the history. A run missing in the first read proves nothing: for ten seconds
    after its creation it may be missing there."""
    max_wait_for_others: float = 2.0
    """Time to wait for other creates in flight, before the history is matched without them."""
    clock_skew: float = 2.0
    """Maximum error of FLORA's clock as estimated from ``Date`` headers."""
    clock_skew_without_date: float = 60.0
    """The same, before the first such header."""


class CreateRecovery:
    """The creates of one client: those in flight, those with a lost response, and the runs assigned to them."""

    def __init__(
        self,
        origin: BaseURL,
        transport: Transport,
        declarations: Declarations,
        policy: RecoveryPolicy,
        *,
        adopt: bool,
    ) -> None:
        self._origin = origin
        self._transport = transport
        self._declarations = declarations
        self._policy = policy
        self._adopt = adopt
        self._assigned: BoundedDict[str, str] = BoundedDict(MAX_REMEMBERED_RUNS)
        self._scopes: dict[tuple[str, str | None], _ProjectCreates] = {}
        self._max_scopes = MAX_IDLE_SCOPES

    def now(self) -> float:
        """Return the time by FLORA's clock, as far as it is known, in Unix seconds."""
        return self._transport.server_time()

    def _latest_now(self) -> float:
        """Return the latest time that it can be by FLORA's clock, in Unix seconds."""
        return self._transport.clock.latest(steady=self._transport.time(), wall=time.time())

    def has_created(self, run_id: str) -> bool:
        """Return whether this client created the run, or found it for one of its orders."""
        return run_id in self._assigned

    async def create(self, request: Request, order: AnyOrder, key: str) -> StartedRun:
        """Send an order until FLORA accepts it. If its outcome is unknown, search the history for its run."""
        scope = self._scope(order)
        attempts: list[Attempt] = []
        finished = scope.begin_create()
        try:
            return await self._transport.send(request, partial(self._read, key), attempts=attempts)
        except errors.FloraError as error:
            unknown = self._unknown_outcome(order, key, attempts)
            if unknown is None:
                if isinstance(error, errors.IdempotencyConflictError):
                    self._attach_order(error, order, key)
                raise
            plain = _only_server_errors(attempts)
            scope.add_claim(unknown)
        finally:
            scope.end_create(finished)
            attempts.clear()  # an error refers to this frame
        try:
            return await self._find(unknown, scope, known=(), plain=plain)
        finally:
            del unknown, plain

    async def recover(
        self, error: errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError, known: Collection[str]
    ) -> StartedRun:
        """Retry an order under its key while that is safe, then search the history for its run."""
        unknown = copy(error) if isinstance(error, errors.CreateOutcomeUnknownError) else _unknown(error)
        scope = self._scope(unknown.order)
        scope.add_claim(unknown)
        try:
            if not unknown.accepted and await self._may_resend(unknown):
                finished = scope.begin_create()
                try:
                    started = await self._resend(unknown)
                    scope.add_claim(unknown)
                finally:
                    scope.end_create(finished)
                if started is not None:
                    return started
            return await self._find(unknown, scope, known)
        finally:
            scope.remove_claim(unknown)
            del unknown

    async def _may_resend(self, unknown: errors.CreateOutcomeUnknownError) -> bool:
        """Return whether FLORA still remembers the key, by its own clock. A read updates that clock first."""
        with suppress(errors.FloraError):  # an error response tells the time too
            await self._read_page(unknown.order, None)
        deadline = unknown.window[0] + self._transport.retry_policy.resend_window
        return self._transport.clock.known and self._latest_now() < deadline

    async def _resend(self, unknown: errors.CreateOutcomeUnknownError) -> StartedRun | None:
        key = unknown.idempotency_key
        attempts: list[Attempt] = []
        order = unknown.order
        try:
            if isinstance(order, Order):
                request = create_request(self._origin, order, key)
            else:
                request = await self._declarations.create_request(order, key, check=False)
            return await self._transport.send(request, partial(self._read, key), attempts=attempts)
        except errors.FloraError as failure:
            known = isinstance(failure, errors.IdempotencyConflictError)
            named = self._named_run(key, attempts)
            unknown.accepted = unknown.accepted or known or named is not None
            unknown.run_id = unknown.run_id or named
            unknown.reason = str(failure)
        finally:
            unknown.attempts += len(attempts)
            attempts.clear()
        unknown.window = unknown.window[0], max(unknown.window[1], self._latest_now() + self._skew())
        return None

    def _read(self, key: str, response: RawResponse) -> StartedRun:
        started = parse_started_run(response)
        if self._assigned.get(started.run_id, key) != key:
            raise reused_run_error(response, started.run_id)
        self._assigned[started.run_id] = key
        return started

    def _skew(self) -> float:
        known = self._transport.clock.known
        return self._policy.clock_skew if known else self._policy.clock_skew_without_date

    def _unknown_outcome(
        self, order: AnyOrder, key: str, attempts: Sequence[Attempt]
    ) -> errors.CreateOutcomeUnknownError | None:
        """Return the error of a create that may have been accepted; ``None`` if no attempt can have been."""
        if not any(attempt.error.outcome_unknown for attempt in attempts):
            return None
        last, named = attempts[-1].error, self._named_run(key, attempts)
        first = next(attempt for attempt in attempts if may_have_been_received(attempt.error))
        skew = self._skew()
        unknown = errors.CreateOutcomeUnknownError(
            order=order,
            idempotency_key=key,
            window=(self._time_of(first) - skew, self._latest_now() + skew),
            attempts=len(attempts),
            reason=str(last),
            accepted=isinstance(last, errors.IdempotencyConflictError) or named is not None,
        )
        unknown.run_id = named
        return unknown

    def _time_of(self, attempt: Attempt) -> float:
        """Return the time of an attempt by FLORA's clock: the earlier of what was known then and what is known now."""
        loop, clock = asyncio.get_running_loop(), self._transport.clock
        now_known = clock.earliest(attempt.sent)
        if now_known is None:
            return time.time() - (loop.time() - attempt.sent)
        return now_known if attempt.server_time is None else min(now_known, attempt.server_time)

    def _named_run(self, key: str, attempts: Sequence[Attempt]) -> str | None:
        """Return the run id in a truncated response, unless it belongs to another order."""
        named = next((attempt.error.run_id for attempt in attempts if attempt.error.run_id), None)
        if named is not None and self._assigned.get(named, key) == key:
            return named
        # A response that was read whole, and whose connection broke or timed out in the same moment.
        return next((run_id for run_id, owner in self._assigned.items() if owner == key), None)

    def _attach_order(self, error: errors.IdempotencyConflictError, order: AnyOrder, key: str) -> None:
        now, skew = self.now(), self._skew()
        error.order, error.idempotency_key = order, key
        error.window = now - IDEMPOTENCY_KEY_TTL - skew, now + skew

    def _scope(self, order: AnyOrder) -> _ProjectCreates:
        place = order.workspace_id, order.project_id if isinstance(order, Order) else order.endpoint
        scope = self._scopes.get(place)
        if scope is None:
            if len(self._scopes) >= self._max_scopes:
                self._scopes = {at: each for at, each in self._scopes.items() if each.in_flight or each.claims}
                self._max_scopes = max(MAX_IDLE_SCOPES, 2 * len(self._scopes))
            scope = self._scopes[place] = _ProjectCreates()
        return scope

    # -- searching for a run

    async def _find(
        self,
        unknown: errors.CreateOutcomeUnknownError,
        scope: _ProjectCreates,
        known: Collection[str],
        plain: errors.InternalServerError | None = None,
    ) -> StartedRun:
        """Return the run of a create, or raise *unknown*. Without proof that the run exists: raise.

        The history may lag, so the first read assigns no run by elimination and clears no create. A single response can
        be wrong, so two reads in sequence must agree. *plain* is raised instead if a later read shows no candidate run.
        """
        key = unknown.idempotency_key
        if isinstance(unknown.order, ActionOrder):
            return await self._find_action(unknown, scope)
        pauses = deque(self._policy.pauses)
        lagging = True
        before: list[str] = []
        try:
            while True:
                self._extend_window(unknown)
                seen = await self._read_unassigned(scope, unknown, known)
                runs: list[str] = []
                if seen is not None:
                    runs = match_creates(scope.claims.values(), seen.rows).get(key, [])
                    unknown.candidates = tuple(candidate_runs(_claim(unknown), seen.rows))
                    complete = not (lagging or seen.broken)
                    if plain is not None and complete and not unknown.candidates:
                        raise plain
                    certain = (complete and runs == before) or runs == [unknown.run_id]
                    if self._adopt and len(runs) == 1 and certain:
                        return self._assign_from_history(key, next(row for row in seen.rows if row.run_id == runs[0]))
                if unknown.accepted:
                    settled = bool(runs) and not self._adopt
                    settled = settled or (len(runs) > 1 and not scope.in_flight)
                else:
                    settled = plain is None or not lagging
                if settled or not pauses:
                    self._extend_window(unknown)
                    raise unknown
                await self._transport.sleep(pauses.popleft())
                lagging, before = False, runs
        finally:
            scope.remove_claim(unknown)
            del unknown, plain

    async def _find_action(self, unknown: errors.CreateOutcomeUnknownError, scope: _ProjectCreates) -> StartedRun:
        """Return the run that a truncated response named, or raise *unknown*: FLORA has no history of actions."""
        try:
            self._extend_window(unknown)
            named = unknown.run_id
            if named is None or not self._adopt:
                raise unknown
            with suppress(errors.FloraError):
                run = await self._transport.send(retrieve_request(self._origin, named), partial(parse_run, named))
                if unknown.window[0] <= run.created.timestamp() <= unknown.window[1]:
                    self._assigned[named] = unknown.idempotency_key
                    return StartedRun(
                        run_id=named, type="action", charged_cost=0.0, poll_url=run.poll_url, recovered=True
                    )
            raise unknown
        finally:
            scope.remove_claim(unknown)
            del unknown

    def _extend_window(self, unknown: errors.CreateOutcomeUnknownError) -> None:
        """Extend the window until now: a proxy can deliver an attempt after its client has given up."""
        if not unknown.accepted:
            unknown.window = unknown.window[0], max(unknown.window[1], self._latest_now() + self._skew())

    def _assign_from_history(self, key: str, row: HistoryRow) -> StartedRun:
        self._assigned[row.run_id] = key
        extra = {"idempotency_key": key, "run_id": row.run_id}
        log.warning("the response to the create under key %s was lost; %s is its run", key, row.run_id, extra=extra)
        return _as_started(row)

    async def _read_unassigned(
        self, scope: _ProjectCreates, unknown: errors.CreateOutcomeUnknownError, known: Collection[str]
    ) -> _History | None:
        """Return the runs without a known create, by a read that begins now; ``None`` if it fails.

        Creates that wait while another one reads share the next read, also one that fails.
        """
        asked = time.monotonic()
        async with scope.lock:
            if scope.read_at < asked:
                began = time.monotonic()
                earliest = min([unknown.window[0], *(claim.window[0] for claim in scope.claims.values())])
                try:
                    scope.history = await self._read_history(unknown.order, earliest)
                except errors.FloraError as failure:
                    scope.history, name = None, type(failure).__name__
                    log.info("cannot read the history: %s", name, extra={"error": name})
                scope.read_at = began
            history = scope.history
        if history is None:
            return None
        left = self._filter_unassigned(scope, history, known)
        if scope.in_flight and len(candidate_runs(_claim(unknown), left.rows)) > unknown.accepted:
            # Creates in flight may be assigned some of these runs. Wait for them, but not for one that hangs.
            await asyncio.wait(list(scope.in_flight), timeout=self._policy.max_wait_for_others)
            left = self._filter_unassigned(scope, history, known)
        return left

    def _filter_unassigned(self, scope: _ProjectCreates, history: _History, known: Collection[str]) -> _History:
        """Return the runs that no finished create has. A claim keeps the run that its own response named."""
        claimed = {"", *(claim.key for claim in scope.claims.values())}
        rows = [
            row for row in history.rows if self._assigned.get(row.run_id, "") in claimed and row.run_id not in known
        ]
        return _History(rows, history.broken)

    async def _read_history(self, order: AnyOrder, earliest: float) -> _History:
        rows: list[HistoryRow] = []
        broken = False
        async with PageIterator(partial(self._read_rows, order), None) as pages:
            async for page in pages:
                broken = broken or bool(page.broken)
                items = page.generations if isinstance(page, GenerationPage) else page.technique_runs
                rows += items
                if any(row.created.timestamp() < earliest for row in items):
                    break
        fresh = {row.run_id: row for row in rows if row.created.timestamp() >= earliest}
        return _History(list(fresh.values()), broken)

    async def _read_rows(self, order: AnyOrder, cursor: str | None) -> GenerationPage | TechniqueRunPage:
        if isinstance(order, TechniqueOrder):
            return await self._read_technique_runs(order, cursor)
        return await self._read_page(order, cursor)

    async def _read_page(self, order: AnyOrder, cursor: str | None) -> GenerationPage:
        request = list_request(
            self._origin,
            cursor=cursor,
            limit=100,
            project_id=order.project_id,
            status=None,
            workspace_id=order.workspace_id,
        )
        return await self._transport.send(replace(request, fresh=True), parse_page)

    async def _read_technique_runs(self, order: TechniqueOrder, cursor: str | None) -> TechniqueRunPage:
        request = list_request(
            self._origin,
            path="/technique-runs",
            cursor=cursor,
            limit=100,
            project_id=None,
            status=None,
            workspace_id=order.workspace_id,
            technique_id=order.technique_id,
        )
        return await self._transport.send(replace(request, fresh=True), parse_technique_runs)


class _History(Struct, frozen=True):
    """The runs of a project since some time, and whether items among them could not be decoded."""

    rows: Sequence[HistoryRow]
    broken: bool


class _ProjectCreates:
    """The creates of one project: candidates for the same runs."""

    def __init__(self) -> None:
        self.in_flight: set[asyncio.Future[None]] = set()
        self.claims: dict[errors.CreateOutcomeUnknownError, Claim] = {}
        """The searches that are going on. Two of them can be for the same create."""
        self.lock = asyncio.Lock()
        self.read_at = 0.0
        self.history: _History | None = None
        """The last history; ``None`` if it could not be read."""

    def begin_create(self) -> asyncio.Future[None]:
        """Count a create in flight until :meth:`end_create`."""
        finished = asyncio.get_running_loop().create_future()
        self.in_flight.add(finished)
        return finished

    def end_create(self, finished: asyncio.Future[None]) -> None:
        """Remove a create from those in flight."""
        self.in_flight.discard(finished)
        finished.set_result(None)

    def add_claim(self, unknown: errors.CreateOutcomeUnknownError) -> None:
        """Add a create to the matching."""
        self.claims[unknown] = _claim(unknown)

    def remove_claim(self, unknown: errors.CreateOutcomeUnknownError) -> None:
        """Remove a create from the matching."""
        self.claims.pop(unknown, None)
        if not self.claims:
            self.history, self.read_at = _History((), broken=False), 0.0


def _claim(unknown: errors.CreateOutcomeUnknownError) -> Claim:
    return Claim(unknown.idempotency_key, unknown.order, unknown.window, unknown.run_id, unknown.accepted)


def _only_server_errors(attempts: Sequence[Attempt]) -> errors.InternalServerError | None:
    """Return the last 5xx of a create if its responses were only 5xx and 429 and no attempt was ambiguous."""
    last: errors.InternalServerError | None = None
    for attempt in attempts:
        error = attempt.error
        if isinstance(error, errors.InternalServerError):
            last = error
        elif not isinstance(error, errors.RateLimitError) and may_have_been_received(error):
            return None
    if last is not None:
        last.attempts = len(attempts)
    return last


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


def _as_started(row: HistoryRow) -> StartedRun:
    return StartedRun(
        run_id=row.run_id,
        type="generation" if isinstance(row, Generation) else "technique",
        charged_cost=row.charged_cost or 0.0,
        poll_url=row.poll_url,
        project_id=row.project_id,
        model=row.model if isinstance(row, Generation) else None,
        technique=row.technique if isinstance(row, TechniqueRun) else None,
        recovered=True,
    )
