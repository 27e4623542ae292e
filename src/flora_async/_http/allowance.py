"""A rate limit that several clients share: each applies the law of the rate limiter to one state, by one clock."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from flora_async._http.rate_limit import MAX_RECENT_RESPONSES, RateLimiter, RateLimitPolicy, TokenBucket

log = logging.getLogger("flora_async")

BLOCK_SECONDS = 0.1
"""Seconds of the shared rate that a client leases at once. A killed client loses no more."""
MAX_LEAD = 0.5
"""Seconds before its time from which a request can be leased, and seconds after it until the lease expires."""
LOOK_INTERVAL = 2.0
"""Seconds between two looks for the 429s of other clients, while there is no limit and requests are sent. After a
longer pause, the first request waits for the look."""
UPDATE_TIMEOUT = 2.0
"""Seconds for an update, after which the client continues by its own 429s."""
RETRY_INTERVAL = 5.0
"""Seconds after a failed update until the next one."""
NO_LIMIT = 1000.0
"""Requests a second from which a rate counts as no limit."""


class Allowance(Protocol):
    """A rate limit that several clients share: its state, in a place that all of them can change.

    The clients of one workspace, on any machine, then send together what one of them would: a 429 of one slows all, and
    they recover together. ``flora.allowance = ...`` sets it; durable batches do so by themselves.
    """

    async def update(self, base_url: str, change: Callable[[bytes | None, float], bytes | None], /) -> None:
        """Replace *state*, the one last stored for *base_url*, by ``change(state, now)``, atomically.

        *state* is ``None`` at first, and while there is no limit; otherwise it has less than 20 kB. *now* is the time
        in seconds of a clock that all clients share, like that of the database. *change* takes less than a millisecond.
        It can run in a thread, and again if a transaction is repeated; its last run counts.

        It is awaited about ten times a second for all clients together under a limit, and at most once in 2 seconds by
        each client that sends requests without one. The first request of a client waits for it. If it raises an
        exception, or takes longer than 2 seconds, the client logs one warning, continues by its own 429s, and retries
        every 5 seconds.
        """


class Lease(Struct, frozen=True, gc=False):
    """The requests that a client may send, by the clock of its event loop."""

    at: float
    """Time of the lease."""
    limited: bool
    slots: list[float] = []
    """The time of each request."""
    retry_after: float = 0.0
    """Seconds until further requests can be leased."""


class SharedRate:
    """The rate of one client under an allowance, in the place of its token bucket.

    The client's own token bucket records everything too, and is used while the allowance fails.
    """

    def __init__(self, allowance: Allowance, base_url: str, limiter: RateLimiter, policy: RateLimitPolicy) -> None:
        self.allowance = allowance
        self._base_url = base_url
        self._limiter = limiter
        self._policy = policy
        self._own: TokenBucket | None = limiter.rate if isinstance(limiter.rate, TokenBucket) else None
        self._limited = False
        self._failed = False
        self._slots: deque[float] = deque()
        self._leases: deque[Lease] = deque(maxlen=64)
        self._refusals: list[tuple[float, float]] = []
        """Pause and time of the lease of each 429 that was not recorded."""
        self._responses: deque[float] = deque(maxlen=MAX_RECENT_RESPONSES)
        """Time of sending of each response that was not recorded."""
        self._resumed = -math.inf
        self._update_at = -math.inf
        self._asked = 0.0
        self._task: asyncio.Task[None] | None = None

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent. Start an update if none is leased."""
        while self._slots and self._slots[0] < now - MAX_LEAD:
            self._slots.popleft()
        if self._task is None and not self._slots and now + 1e-6 >= self._update_at:
            self._limited |= now - self._update_at > LOOK_INTERVAL  # until the update tells
            self._start_update(now)
        elif self._task is not None and now + 1e-6 >= self._asked + UPDATE_TIMEOUT:
            self._fail("TimeoutError")
        if self._failed:
            return 0.0 if self._own is None else self._own.delay(now)
        if not self._limited:
            return 0.0
        if self._slots:
            seconds = self._slots[0] - now
        elif self._resumed > now:
            seconds = self._resumed - now
        else:  # the end of an update wakes the waiting requests
            seconds = (self._update_at if self._task is None else self._asked + UPDATE_TIMEOUT) - now
        return seconds if seconds > 1e-6 else 0.0  # as a token bucket does

    def take(self) -> None:
        """Remove the slot of a sent request."""
        if self._failed and self._own is not None:
            self._own.take()
        elif self._slots:
            self._slots.popleft()

    def on_rate_limited(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Record a 429 for a request *sent* at that time, and pause *until* a time. The leased requests are dropped."""
        if self._own is None:
            self._own = TokenBucket(self._policy)
        self._own.on_rate_limited(now, until=until, sent=sent, answered=answered)
        self._resumed = max(self._resumed, until)
        if not self._failed:
            self._refusals.append((until - now, self._leased_at(sent)))
            self._limited = True
            self._slots.clear()
            if self._task is None:
                self._start_update(now)

    def record_response(self, sent: float) -> None:
        """Record a response to a request *sent* at that time."""
        self._responses.append(sent)
        if self._own is not None:
            self._own.record_response(sent)

    def close(self) -> None:
        """Return to the rate of this client alone."""
        self._limiter.rate = self._own
        if self._task is not None:
            self._task.cancel()

    def _leased_at(self, sent: float) -> float:
        """Return when a request was leased: one cut counts for all that were leased before it, also by others."""
        leased = max((lease.at for lease in self._leases if lease.at <= sent), default=sent)
        return leased if sent - leased < 2 * MAX_LEAD else sent

    def _start_update(self, now: float) -> None:
        self._asked = now
        self._task = asyncio.get_running_loop().create_task(self._update(), context=Context())

    async def _update(self) -> None:
        loop = asyncio.get_running_loop()
        wanted = self._limiter.polls.count_waiting() + self._limiter.calls.count_waiting()
        if self._leases and loop.time() - self._leases[-1].at < MAX_LEAD:
            wanted = max(wanted, 2 * len(self._leases[-1].slots))
        refusals, self._refusals = self._refusals, []
        responses, self._responses = self._responses, deque(maxlen=MAX_RECENT_RESPONSES)
        reports = Reports(self._policy, loop.time, list(responses), refusals, max(1, wanted))
        lease: Lease | None = None
        try:
            await self.allowance.update(self._base_url, reports.change)
            lease = reports.leases[-1]
        except Exception as error:  # noqa: BLE001 - of the caller's code
            self._fail(type(error).__name__)
            self._update_at = loop.time() + RETRY_INTERVAL
        else:
            self._failed = False
            self._use(lease, loop.time())
        finally:
            self._task = None
        if lease is None or not lease.limited:  # they are recorded with the next 429
            responses.extend(self._responses)
            self._responses = responses
        if self._refusals:
            self._start_update(loop.time())
        self._limiter.wake_waiting()

    def _use(self, lease: Lease, now: float) -> None:
        self._leases.append(lease)
        if not self._refusals:  # otherwise a 429 arrived meanwhile
            self._limited = lease.limited
            self._slots.extend(lease.slots)
            self._update_at = now + (lease.retry_after if lease.limited else LOOK_INTERVAL)

    def _fail(self, label: str) -> None:
        """Continue by the own 429s of this client."""
        if not self._failed:
            message = "the shared allowance cannot be used: %s. This client continues by its own 429s"
            log.warning(message, label, extra={"error": label})
        self._failed = True
        self._refusals.clear()
        self._slots.clear()


class StoredRate(Struct, frozen=True):
    """The state of an allowance. Times are those of its clock."""

    at: float
    refused: float
    """Time of the last 429 for a request that was leased after the 429 before it."""
    answered: list[float]
    """Times of sending of the responses of the last second."""
    law: dict[str, float | int]
    """The state of the token bucket."""


class Reports:
    """The 429s and responses of one client, to be recorded in the shared rate, and the requests that it wants."""

    def __init__(
        self,
        policy: RateLimitPolicy,
        clock: Callable[[], float],
        responses: list[float],
        refusals: list[tuple[float, float]],
        wanted: int,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._responses = responses
        self._refusals = refusals
        self._wanted = wanted
        self.leases: list[Lease] = []
        """The result of each run of :meth:`change`."""

    def change(self, state: bytes | None, now: float) -> bytes | None:
        """Record the reports in the stored rate, and lease requests. *now* is the shared time."""
        at = self._clock()
        ahead = now - at
        rate, answered, refused = self._load(state, now)
        for sent in self._responses:
            if rate is not None:
                rate.record_response(sent + ahead)
        answered = [sent for sent in (*answered, *(sent + ahead for sent in self._responses)) if now - 1 < sent]
        answered = answered[-MAX_RECENT_RESPONSES:]
        for pause, leased in self._refusals:
            if rate is None:
                rate, refused = TokenBucket(self._policy), -math.inf
            is_first = leased + ahead > refused
            refused = now if is_first else refused
            free = now + rate.delay(now)  # until then the clients send what they have leased
            if is_first or refused + pause > free:
                until = max(refused + pause, free)
                rate.on_rate_limited(now, until=until, sent=leased + ahead, answered=answered)
        if rate is None or (rate.value(now) >= NO_LIMIT and not rate.delay(now)):
            self.leases.append(Lease(at, limited=False))
            return None
        delays = self._lease(rate, now)
        pause = 0.0
        if not delays:  # the clients return at different times, so that none starves
            pause = max(2 * BLOCK_SECONDS, rate.delay(now) - MAX_LEAD) * random.uniform(1.0, 1.2)
        self.leases.append(Lease(at, limited=True, slots=[at + delay for delay in delays], retry_after=pause))
        return msgspec.msgpack.encode(StoredRate(now, refused, answered, _pack(rate)))

    def _lease(self, rate: TokenBucket, now: float) -> list[float]:
        """Return the seconds until each request of a block, which is removed from the rate."""
        delays: list[float] = []
        while len(delays) < self._wanted:
            delay = rate.delay(now)
            if delay > (min(MAX_LEAD, delays[0] + BLOCK_SECONDS) if delays else MAX_LEAD):
                break
            rate.take()
            delays.append(delay)
        return delays

    def _load(self, state: bytes | None, now: float) -> tuple[TokenBucket | None, list[float], float]:
        """Return the stored rate, and the times of recent responses. A rate of another law or clock is not used."""
        if state is None:
            return None, [], -math.inf
        try:
            stored = msgspec.msgpack.decode(state, type=StoredRate)
            rate = TokenBucket(self._policy)
            _unpack(rate, stored.law)
        except ValueError:
            return None, [], -math.inf
        return (None, [], -math.inf) if stored.at > now + MAX_LEAD else (rate, stored.answered, stored.refused)


def _pack(rate: TokenBucket) -> dict[str, Any]:
    """Return the numbers of a token bucket, by the names of its attributes."""
    return {name: value for name, value in vars(rate).items() if name != "_policy"}


def _unpack(rate: TokenBucket, packed: Mapping[str, float]) -> None:
    """Set the attributes of a token bucket to stored numbers. Raise ValueError for those of another law."""
    if packed.keys() != _pack(rate).keys():
        raise ValueError
    vars(rate).update(packed)
