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
from typing import TYPE_CHECKING

from msgspec import Struct

from flora_async import errors
from flora_async._http.retry import RetryPolicy

if TYPE_CHECKING:
    from flora_async._http.allowance import SharedRate


class RateLimitPolicy(Struct, frozen=True, kw_only=True):
    """How a client slows down after a 429, as TCP CUBIC does (RFC 9438). Rates are in requests a second."""

    cut: float = 0.7
    """Factor of the rate after a 429."""
    growth: float = 0.02
    """Growth of the rate, one second after the peak. It grows with the cube of that time."""
    min_first_rate: float = 2.0
    """Lowest rate after the first 429."""
    min_rate: float = 0.01
    contested_epoch: float = 100.0
    """Accepted requests between two 429s, on average, below which the limit counts as contested by other clients."""
    contested_step: float = 0.05
    """Share of a contested rate that one 429 cuts, and the highest growth for one accepted request."""
    contested_refusals: float = 0.08
    """429s for each accepted request at which a low contested rate is in balance."""
    balance_rate: float = 0.3
    """Contested rate above which fewer 429s are in balance."""
    balance_exponent: float = 0.6
    step_exponent: float = 0.3
    epoch_weight: float = 0.1
    """Weight of the last epoch in the average."""
    quiet_seconds: float = 60.0
    """Seconds without a 429 after which a limit can count as no longer contested."""
    max_concurrent_calls: int = 100
    """Maximum number of calls of one client in flight."""


class ContestedRate:
    """The rate of a client while other clients use the same limit.

    Each accepted request raises the rate and each 429 cuts it, both by small factors. They are in balance at a ratio of
    429s that is lower for a higher rate. All clients see the same ratio, so their rates approach each other. The cut
    grows with the square root of the number of consecutive 429s.
    """

    def __init__(self, policy: RateLimitPolicy, rate: float) -> None:
        self._policy = policy
        self.rate = rate
        self._refused = 0
        self._accepted = 0

    def on_rate_limited(self) -> None:
        """Record a 429."""
        self._refused += 1
        self._accepted = 0
        cut = math.pow(1 - self._step(), math.sqrt(self._refused))
        self.rate = max(self._policy.min_rate, self.rate * cut)

    def record_response(self) -> None:
        """Record an accepted request. Many of them without a 429 raise the rate faster."""
        self._refused = 0
        self._accepted += 1
        step = self._step()
        self.rate *= 1 + min(step, step * self._balance() * max(1.0, self._count_expected() / 4) ** 2)

    def is_over(self) -> bool:
        """Return whether so many requests were accepted that the other clients must have gone."""
        return self._count_expected() > 8

    def _count_expected(self) -> float:
        """Return how many 429s a contested limit would have sent since the last one."""
        return self._accepted * self._balance()

    def _step(self) -> float:
        """Return the share of the rate that one 429 cuts. Fast clients take larger steps."""
        return min(0.3, self._policy.contested_step * math.pow(self._excess(), self._policy.step_exponent))

    def _balance(self) -> float:
        """Return the 429s for each accepted request at which the rate stays."""
        return self._policy.contested_refusals * math.pow(self._excess(), -self._policy.balance_exponent)

    def _excess(self) -> float:
        return max(1.0, self.rate / self._policy.balance_rate)


class TokenBucket:
    """A token bucket whose rate adapts to 429 responses, as TCP CUBIC adapts to lost packets.

    A 429 cuts the rate to 70 % of the requests that FLORA admitted in the second before. Then the rate grows with time
    alone: back to the old rate within seconds, slowly around it, then faster. After a minute one 429 has no effect.

    If 429s remain frequent, other clients use the limit too. The rate then follows a :class:`ContestedRate`.
    """

    def __init__(self, policy: RateLimitPolicy) -> None:
        self._policy = policy
        self._peak = math.inf
        self._before = math.inf
        self._admitted = 0
        self._cut = -math.inf
        self._resumed = -math.inf
        self._tokens = 1.0
        self._at = 0.0
        self._contest: ContestedRate | None = None
        self._accepted = 0
        self._epoch = 2 * policy.contested_epoch
        """Moving average of the accepted requests between two 429s."""

    def value(self, now: float) -> float:
        """Return the rate *now*, in requests a second."""
        if self._contest is not None:
            return self._contest.rate
        if self._peak == math.inf:
            return math.inf
        growth = self._policy.growth
        elapsed = max(0.0, now - self._resumed) - self._seconds_to_peak()
        return max(self._policy.min_rate, self._peak + growth * math.pow(elapsed, 3))

    def on_rate_limited(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Record a 429 for a request *sent* at that time. Block requests *until* a time, then release one at a time.

        *answered* are the sending times of requests with a later response. The rate is cut once for all requests in
        flight.
        """
        if sent > self._cut:
            self._update_contest(now)
            if self._contest is None:
                self._before = self.value(now)
                self._admitted = sum(now - 1 < when <= now for when in answered)
                self._peak = self._measured_peak()
            self._cut, self._accepted = now, 0
        self._resumed = max(self._resumed, until)
        self._tokens, self._at = min(self._tokens, 1.0), max(self._at, until)
        if self.value(until) < 1:  # otherwise all clients that were refused together would return together
            self._tokens = min(self._tokens, random.random())

    def record_response(self, sent: float) -> None:
        """Record a response to a request *sent* at that time. It can arrive after the 429 that cut the rate."""
        if sent > self._cut:
            self._accepted += 1
            if self._contest is not None:
                self._contest.record_response()
                if sent - self._cut > self._policy.quiet_seconds and self._contest.is_over():
                    self._end_contest(self._contest.rate, sent)
        elif self._contest is None and self._cut - 1 < sent:
            self._admitted += 1
            self._peak = self._measured_peak()

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

    def _update_contest(self, now: float) -> None:
        """Update the average number of accepted requests between two 429s, and the rate of a contested limit."""
        if self._cut > -math.inf:
            self._epoch += self._policy.epoch_weight * (self._accepted - self._epoch)
        if self._contest is None and self._epoch < self._policy.contested_epoch:
            self._contest = ContestedRate(self._policy, self.value(now))
        if self._contest is not None:
            self._contest.on_rate_limited()

    def _end_contest(self, rate: float, now: float) -> None:
        """Leave the contested rate: from *rate*, the rate grows with time."""
        self._contest, self._epoch = None, 2 * self._policy.contested_epoch
        self._before = self._peak = rate
        self._resumed = now - self._seconds_to_peak()

    def _seconds_to_peak(self) -> float:
        return math.cbrt(self._peak * (1 - self._policy.cut) / self._policy.growth)

    def _measured_peak(self) -> float:
        return min(self._before, max(self._policy.min_first_rate, self._admitted))


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
        self.rate: TokenBucket | SharedRate | None = None
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

    def _count(self, lane: Lane, rate: TokenBucket | SharedRate) -> None:
        rate.take()
        if lane is self._lanes[0]:  # the other queue is served next
            self._lanes.reverse()
