"""A simulated FLORA and an event loop in virtual time.

The real poller and the real rate limiter run against it; only the requests are simulated.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from bisect import insort
from collections import Counter
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

from flora_async import APIConnectionError, NotFoundError, RateLimitError
from flora_async._http.rate_limit import Lane, RateLimiter, RateLimitPolicy
from flora_async._http.retry import RetryPolicy
from flora_async._polling.poller import PollOperations
from flora_async._polling.targets import PollResult, Scope, WaitTarget
from flora_async.models import Generation, GenerationPage, Output, PageMeta, Run

T = TypeVar("T")

POLL_SECONDS = 0.12
PAGE_SECONDS = 0.25
UNIX = 1_790_000_000.0
"""Unix time at the loop's zero."""


class _Selector(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("deadlock: no timer is left")
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time: if no handle is ready, its clock jumps to the next timer."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time in seconds since the start of the loop."""
        return self._virtual.now


def run_virtually(main: Coroutine[Any, Any, T]) -> T:
    """Run *main* in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


class Simulated:
    """One run: its creation, start and end times, and its progress bar."""

    __slots__ = ("bar", "began", "charge_delay", "created", "ends", "estimate", "gone", "hidden", "row", "run_id")

    def __init__(
        self,
        run_id: str,
        created: float,
        waits: float,
        works: float,
        *,
        bar: str = "none",
        estimate: float | None = None,
    ) -> None:
        self.estimate = estimate or 30.0
        self.run_id = run_id
        self.created = created
        self.began = created + waits
        self.ends = created + waits + works
        self.bar = bar
        self.gone = False
        self.hidden = False
        self.charge_delay = 0.0
        self.row: Generation | None = None
        """Its final row of the history."""

    def record(self, now: float) -> dict[str, Any]:
        """Return the record of the run, in FLORA's fields."""
        done = now >= self.ends
        share = min(1.0, max(0.0, (now - self.began) / max(self.ends - self.began, 1e-9)))
        bars = {"none": 0.0, "linear": math.floor(100 * share), "step": math.floor(4 * share**1.5) * 25.0}
        bars["fake"] = math.floor(99 * (1 - math.exp(-2.5 * max(0.0, now - self.began) / self.estimate)))
        bars["stuck99"] = 99.0 if now > self.began else 0.0
        return {
            "run_id": self.run_id,
            "status": "completed" if done else "running" if now >= self.began else "pending",
            "progress": 100.0 if done else bars[self.bar],
            "created_at": UNIX + self.created,
            "started_at": UNIX + self.began if now >= self.began else None,
            "charged_cost": 0.01 if now >= self.ends + self.charge_delay else None,
            "completed_at": UNIX + self.ends if done else None,
            "outputs": (Output(output_id="output_1", type="text", url="x"),) if done else (),
        }


class SimulatedFlora:
    """Returns runs by id and by page, behind a limit of requests per second; counts the requests.

    The probabilities make it hostile: pages that fail, rows that are old, rows without outputs.
    """

    def __init__(
        self,
        *,
        limit: float | None = None,
        seed: int = 0,
        errors: float = 0.0,
        stale: float = 0.0,
        bare: float = 0.0,
        storm: tuple[float, float] = (math.inf, math.inf),
    ) -> None:
        self.chance = random.Random(seed)
        self.requests = 0
        self.refused = 0
        self.times: list[float] = []
        self.accepted: Counter[RateLimiter] = Counter()
        """Accepted requests, by the limiter of the client."""
        self._limit = limit
        self._tokens = limit or 0.0
        self._at = 0.0
        self._errors, self._stale, self._bare, self._storm = errors, stale, bare, storm
        self._by_id: dict[str, Simulated] = {}
        self._order: list[tuple[float, str]] = []
        self._limiter = RateLimiter(RateLimitPolicy(), RetryPolicy())

    def add(self, run: Simulated) -> None:
        """Add a run."""
        self._by_id[run.run_id] = run
        insort(self._order, (run.created, run.run_id))

    def remove(self, run: Simulated) -> None:
        """Remove a run: the pages after it shift."""
        run.gone = True
        self._order.remove((run.created, run.run_id))

    def operations(self, *, pages: bool = True, limiter: RateLimiter | None = None) -> PollOperations:
        """Return the operations of a poller: of one client, or of the client with that *limiter*."""
        limiter = limiter or self._limiter
        return PollOperations(
            retrieve_run=partial(self._retrieve_run, limiter),
            read_page=partial(self._read_page, limiter) if pages else None,
            resolve_poll_url=_no_poll_url,
            lane=limiter.polls,
            clock=_unix,
            on_finished=_ignore_finished,
        )

    def _admit(self, now: float) -> bool:
        """Return whether the limit lets a request in."""
        admitted = not self._storm[0] <= now < self._storm[1]
        if self._limit is not None:
            self._tokens = min(self._limit, self._tokens + (now - self._at) * self._limit)
            self._at = now
            admitted = admitted and self._tokens >= 1
            self._tokens -= admitted
        return admitted

    async def request(self, limiter: RateLimiter, lane: Lane, now: float, seconds: float) -> float:
        """Send a request in the turn that was granted *now*. Return the time at which the server handled it."""
        loop = asyncio.get_running_loop()
        self.requests += 1
        self.times.append(now)
        admitted = self._admit(now)
        try:
            await asyncio.sleep(seconds / 2)
            seen_at = loop.time()
            await asyncio.sleep(seconds / 2)
            if not admitted:
                limiter.on_rate_limited(1.0, sent=now)
        finally:
            lane.release(now, succeeded=admitted)
            self.accepted[limiter] += admitted
        if not admitted:
            self.refused += 1
            raise RateLimitError("too many", status=429, retry_after=1.0)
        if self.chance.random() < self._errors:
            raise APIConnectionError("cut", sent="maybe_sent")
        return seen_at

    async def _retrieve_run(self, limiter: RateLimiter, run_id: str, _target: str | None, turn: float) -> PollResult:
        seen_at = await self.request(limiter, limiter.polls, turn, POLL_SECONDS)
        run = self._by_id.get(run_id)
        if run is None or run.gone:
            raise NotFoundError("no such run", status=404)
        return PollResult(Run(**run.record(seen_at)), asyncio.get_running_loop().time() - run.created)

    async def _read_page(self, limiter: RateLimiter, cursor: str | None, _scope: Scope, turn: float) -> GenerationPage:
        seen_at = await self.request(limiter, limiter.polls, turn, PAGE_SECONDS)
        offset = int(cursor or 0)
        end = max(0, len(self._order) - offset)
        taken = self._order[max(0, end - 100) : end][::-1]
        rows = [self._row(self._by_id[run_id], seen_at) for _, run_id in taken]
        following = str(offset + 100) if offset + 100 < len(self._order) else None
        return GenerationPage(
            generations=tuple(row for row in rows if row is not None), meta=PageMeta(next_cursor=following)
        )

    def _row(self, run: Simulated, seen_at: float) -> Generation | None:
        if run.hidden:
            return None
        when = seen_at - 20 if self.chance.random() < self._stale else seen_at
        final = self._bare == 0 and when >= run.ends + run.charge_delay
        if final and run.row is not None:
            return run.row
        record = run.record(when)
        if record["outputs"] and self.chance.random() < self._bare:
            record["outputs"] = ()
        row = Generation(**record, generation_id=run.run_id, project_id="prj_1", workspace_id="ws_1")
        if final:
            run.row = row
        return row


def _no_poll_url(_run_id: str, _poll_url: str) -> None:
    """Return no URL."""


def _unix() -> float:
    return UNIX + asyncio.get_running_loop().time()


def _ignore_finished(_run: Run, _age: float) -> None:
    """Ignore a finished run."""


def started(run: Simulated, estimate: float | None) -> WaitTarget:
    """Return the wait target of a run that the client has just created."""
    return WaitTarget(
        run.run_id, loop_created=run.created, estimate=estimate, scope=("ws_1", "prj_1"), created=UNIX + run.created
    )
