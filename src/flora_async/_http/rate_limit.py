"""The rate limiter of a client: queues of polls and calls in front of one token bucket."""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import deque
from collections.abc import Iterable
from copy import copy
from itertools import count
from typing import Protocol

from msgspec import Struct

from flora_async import errors
from flora_async._http.retry import RetryPolicy


class RateLimitPolicy(Struct, frozen=True, kw_only=True):
    """How a client slows down after a 429. Rates are in requests a second, times in seconds."""

    cut: float = 0.7
    """Search: factor of the rate after a 429, as in TCP CUBIC (RFC 9438)."""
    growth: float = 0.02
    """Search: growth of the rate, one second after the peak. It grows with the cube of that time."""
    min_first_rate: float = 2.0
    """Search: lowest rate after the first 429."""
    step: float = 0.08
    """Share: natural logarithm of the factor by which one 429 cuts the rate."""
    refusal_interval: float = 40.0
    """Share: time between two 429s at which the rate is in balance, at ``fast_rate`` and above."""
    fast_rate: float = 2.5
    """Share: below this rate, the time between two 429s is longer by the square root."""
    patience: int = 8
    """Number of 429s that end a search, and of overdue 429s that start a new one."""
    min_rate: float = 0.01
    max_concurrent_calls: int = 100
    """Maximum number of calls of one client in flight."""


class Rate(Protocol):
    """Decides when the next request may be sent: a token bucket, or a rate that clients share."""

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent."""
        ...

    def take(self) -> None:
        """Count a request that is sent now."""

    def record_response(self, sent: float) -> None:
        """Record a response to a request *sent* at that time."""

    def on_rate_limited(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Record a 429 for a request *sent* at that time, and send none *until* a time."""


class TokenBucket:
    """A token bucket whose rate adapts to 429 responses.

    The first 429s start a *search* for the limit, as TCP CUBIC does. A 429 cuts the rate to 70 % of the requests that
    FLORA admitted in the second before. Then the rate grows with time: back to the old rate within seconds, slowly
    around it, then faster. A minute after a single 429 it is without effect.

    After eight 429s the client *shares* the limit. A 429 cuts the rate by 8 %. Time raises it, first slowly, then ever
    faster, and by as much as one 429 cuts it if they come at random once in ``refusal_interval``. A client above its
    share gets more 429s and becomes slower, a client below its share gets fewer and becomes faster: the rates approach
    each other. If other clients leave, the 429s stay away and the rate doubles within four intervals.
    """

    def __init__(self, policy: RateLimitPolicy) -> None:
        self._policy = policy
        self._refusals = 0
        """429s since the search began. Those of requests in flight together count once."""
        self._before = math.inf
        """Rate at the last 429."""
        self._admitted = 0
        """Requests that FLORA admitted in the second before the last 429."""
        self._base = math.inf
        """Rate from which it grows: the peak in a search, otherwise the rate after the last 429."""
        self._cut = -math.inf
        self._resumed = -math.inf
        self._tokens = 1.0
        self._at = 0.0

    def value(self, now: float) -> float:
        """Return the rate *now*, in requests a second."""
        if self._refusals == 0:
            return math.inf
        policy = self._policy
        if self._refusals <= policy.patience:
            elapsed = max(0.0, now - self._resumed) - math.cbrt(self._base * (1 - policy.cut) / policy.growth)
            return max(policy.min_rate, self._base + policy.growth * math.pow(elapsed, 3))
        return self._base * math.exp(min(policy.step * math.pow(self._count_due(now), 2) / 2, 50))

    def on_rate_limited(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Record a 429 for a request *sent* at that time. Block requests *until* a time, then release one at a time.

        *answered* are the sending times of requests with a later response. The rate is cut once for all requests in
        flight.
        """
        if sent > self._cut:
            self._before = self.value(now)
            if self._count_due(now) > self._policy.patience:
                self._refusals = 0
            self._refusals += 1
            self._admitted = sum(now - 1 < when <= now for when in answered)
            self._cut, self._base = now, self._reduced_base()
        self._resumed = max(self._resumed, until)
        # Without the random part, all clients that were refused together would be refused together again.
        self._tokens, self._at = 1.0 if self._tokens >= 1 else random.random(), max(self._at, until)

    def record_response(self, sent: float) -> None:
        """Record a response to a request *sent* at that time. It can arrive after the 429 that cut the rate."""
        if self._cut - 1 < sent <= self._cut:
            self._admitted += 1
            self._base = self._reduced_base()

    def delay(self, now: float) -> float:
        """Return the seconds until the next request may be sent."""
        rate = self.value(now)
        if now > self._at:
            self._tokens = min(max(1.0, rate / 4), self._tokens + (now - self._at) * rate)
            self._at = now
        seconds = max(0.0, self._at - now) + max(0.0, 1 - self._tokens) / rate
        # Timers are rounded. A delay below a microsecond counts as none, or the timer would be set again without end.
        return seconds if seconds > 1e-6 else 0.0

    def take(self) -> None:
        """Remove the token of a sent request."""
        self._tokens -= 1

    def _count_due(self, now: float) -> float:
        """Return how many 429s were due since the last one, at a rate in balance."""
        longer = math.sqrt(max(1.0, self._policy.fast_rate / self._base))
        return max(0.0, now - self._resumed) / (self._policy.refusal_interval * longer)

    def _reduced_base(self) -> float:
        """Return the base after the last 429."""
        policy = self._policy
        if self._refusals <= policy.patience:
            return min(self._before, max(policy.min_first_rate, self._admitted))
        return max(policy.min_rate, self._before * math.exp(-policy.step))


MAX_RECENT_RESPONSES = 1000
"""Number of recent request times kept. After the first 429, the rate starts no higher than the rate they show."""


class Lane:
    """Queue of the requests of one kind, sorted by the start of their calls."""

    def __init__(self, limiter: RateLimiter, capacity: float) -> None:
        self._limiter = limiter
        self._free = capacity
        self._queue: list[tuple[float, int, asyncio.Future[float]]] = []

    def try_acquire(self, now: float) -> bool:
        """Acquire a permit if a request may be sent now; return whether it may. Otherwise use :meth:`acquire`."""
        if self._queue or self._free < 1 or not (self._limiter.rate is None or self._limiter.try_take(self, now)):
            return False
        self._free -= 1
        return True

    async def acquire(self, began: float) -> float:
        """Wait until a request of a call that *began* at that time may be sent; return the time of the permit."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (began, self._limiter.next_number(), future))
        self._limiter.wake_waiting()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and future.exception() is None:  # the permit was granted and is not used
                self.release(future.result(), succeeded=False)
            raise

    def release(self, sent: float, *, succeeded: bool) -> None:
        """Release the permit of a request *sent* at that time; *succeeded* if its response had no error."""
        self._free += 1
        if succeeded:
            self._limiter.record_response(sent)
        if self._queue:
            self._limiter.wake_waiting()

    def has_waiting(self) -> bool:
        """Return whether the next request waits for the rate alone."""
        while self._queue and self._queue[0][2].done():
            heapq.heappop(self._queue)
        return bool(self._queue) and self._free >= 1

    def count_waiting(self) -> int:
        """Return the number of waiting requests, with those that were cancelled meanwhile."""
        return len(self._queue)

    def wake_next(self, now: float) -> None:
        """Grant the next request its permit."""
        self._free -= 1
        heapq.heappop(self._queue)[2].set_result(now)

    def close(self, error: errors.FloraError) -> None:
        """Raise *error* in all waiting calls."""
        queue, self._queue = self._queue, []
        for _, _, future in queue:
            if not future.done():
                future.set_exception(copy(error))


class RateLimiter:
    """The rate limiter of one client: two queues in front of one token bucket."""

    def __init__(self, policy: RateLimitPolicy, retry: RetryPolicy) -> None:
        self._policy = policy
        self._retry = retry
        self.calls: Lane = Lane(self, policy.max_concurrent_calls)
        self.polls: Lane = Lane(self, math.inf)
        self.rate: Rate | None = None
        """The token bucket; ``None`` before the first 429. A rate that clients share stands here from the beginning."""
        self._lanes = [self.polls, self.calls]
        self._answered: deque[float] = deque(maxlen=MAX_RECENT_RESPONSES)
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = count()

    def next_number(self) -> int:
        """Return the next number, which orders calls with equal start times."""
        return next(self._numbers)

    def delay(self) -> float:
        """Return the seconds until the next request may be sent."""
        return 0.0 if self.rate is None else self.rate.delay(asyncio.get_running_loop().time())

    def record_response(self, sent: float) -> None:
        """Record a response to a request *sent* at that time."""
        self._answered.append(sent)
        if self.rate is not None:
            self.rate.record_response(sent)

    def on_rate_limited(self, retry_after: float | None, *, sent: float) -> None:
        """Record a 429 for a request *sent* at that time."""
        now = asyncio.get_running_loop().time()
        if self.rate is None:
            self.rate = TokenBucket(self._policy)
        # A Retry-After above the cap does not block the queue: each call raises the error immediately.
        honoured = retry_after is not None and retry_after <= self._retry.max_retry_after
        pause = retry_after if retry_after is not None and honoured else self._retry.rate_limit_pause
        self.rate.on_rate_limited(now, until=now + pause, sent=sent, answered=self._answered)
        self.wake_waiting()

    def try_take(self, lane: Lane, now: float) -> bool:
        """Acquire a token for a request of *lane*; return ``False`` if there is none *now* or another queue waits."""
        if self.rate is None or self.rate.delay(now) or any(other.has_waiting() for other in self._lanes):
            return False
        self._count(lane, self.rate)
        return True

    def wake_waiting(self) -> None:
        """Grant permits to the waiting requests, alternating between the queues. Set a timer for the next permit."""
        now = asyncio.get_running_loop().time()
        rate = self.rate
        waiting = [lane for lane in self._lanes if lane.has_waiting()]
        while waiting and not (rate is not None and rate.delay(now)):
            waiting[0].wake_next(now)
            if rate is not None:
                self._count(waiting[0], rate)
            waiting = [lane for lane in self._lanes if lane.has_waiting()]
        if waiting and rate is not None:
            when = now + rate.delay(now)
            if self._timer is not None and self._timer.when() > when:
                self._timer.cancel()
                self._timer = None
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_at(when, self._on_timer)

    def close(self, error: errors.FloraError) -> None:
        """Raise *error* in all waiting calls, and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lane in self._lanes:
            lane.close(error)

    def _on_timer(self) -> None:
        self._timer = None
        self.wake_waiting()

    def _count(self, lane: Lane, rate: Rate) -> None:
        rate.take()
        if lane is self._lanes[0]:  # the other queue is served next
            self._lanes.reverse()
