"""The rate limiter of a client: queues of polls and calls in front of one token bucket."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Iterable
from copy import copy
from itertools import count

from flora_async import errors
from flora_async._http import retry

# How many requests a second (as TCP CUBIC finds its rate, RFC 9438), and how many second tries.
RATE_CUT = 0.7
RATE_GROWTH = 0.02
"""Requests a second that a rate gains in a second, one second from its peak; it grows with the cube of that time."""
RATE_FIRST = 2.0
"""What FLORA is thought to take, at least, when it first refuses."""
RATE_FLOOR = 0.1


class TokenBucket:
    """How many requests a second FLORA takes, as far as its refusals tell: a token bucket that grows as TCP CUBIC does.

    A refusal cuts it to 70 % of what FLORA let in during the second before. From there it grows with time alone: back
    to that peak within seconds, on a plateau around it, then ever faster, so that one refusal is forgotten in a minute.
    """

    def __init__(self) -> None:
        self._peak = math.inf
        self._before = math.inf
        self._admitted = 0
        self._cut = -math.inf
        self._resumed = -math.inf
        self._tokens = 1.0
        self._at = 0.0

    def value(self, now: float) -> float:
        """Return the requests a second that may go out *now*."""
        if self._peak == math.inf:
            return math.inf
        turning = math.cbrt(self._peak * (1 - RATE_CUT) / RATE_GROWTH)
        return max(RATE_FLOOR, self._peak + RATE_GROWTH * (max(0.0, now - self._resumed) - turning) ** 3)

    def refuse(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Count a 429 to a request *sent* then: nothing goes out *until* then, and from there one at a time.

        *answered* are the times at which requests were sent that FLORA has answered since. The rate is cut once for
        all that was under way.
        """
        if sent > self._cut:
            self._before = self.value(now)
            self._admitted = sum(now - 1 < when <= now for when in answered)
            self._cut = now
            self._peak = self._measured()
        self._resumed = max(self._resumed, until)
        self._tokens, self._at = min(self._tokens, 1.0), max(self._at, until)

    def admit(self, sent: float) -> None:
        """Count a request *sent* then that FLORA has answered: the last refusal may have come before its answer."""
        if self._cut - 1 < sent <= self._cut:
            self._admitted += 1
            self._peak = self._measured()

    def wait(self, now: float) -> float:
        """Return in how many seconds the next request may go out."""
        rate = self.value(now)
        if now > self._at:
            self._tokens = min(max(1.0, rate / 4), self._tokens + (now - self._at) * rate)
            self._at = now
        wait = max(0.0, self._at - now) + max(0.0, 1 - self._tokens) / rate
        # Timers are rounded: a hair's breadth is no wait, or the next request would wait for it for ever.
        return wait if wait > 1e-6 else 0.0

    def take(self) -> None:
        """Count a request that goes out."""
        self._tokens -= 1

    def _measured(self) -> float:
        return min(self._before, max(RATE_FIRST, self._admitted))


IN_FLIGHT = 100
"""Calls of one client that are under way at once."""
RECENT = 1000
"""Of how many answers it is known when their requests were sent: a rate that a refusal begins with is no higher."""


class Lane:
    """The requests of one kind, in the order in which their calls began."""

    def __init__(self, limiter: RateLimiter, room: float) -> None:
        self._limiter = limiter
        self._room = room
        self._queue: list[tuple[float, int, asyncio.Future[float]]] = []

    def enter(self, now: float) -> bool:
        """Let the next request out, if it may go at once; else it waits for its :meth:`turn`."""
        if self._queue or self._room < 1 or not (self._limiter.rate is None or self._limiter.takes(self, now)):
            return False
        self._room -= 1
        return True

    async def turn(self, began: float) -> float:
        """Wait until a request of a call that *began* then may go out; return when that was."""
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, (began, self._limiter.number(), turn))
        self._limiter.go_on()
        try:
            return await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:  # it had its turn, and does not use it
                self.leave(turn.result(), answered=False)
            raise

    def leave(self, sent: float, *, answered: bool) -> None:
        """Count a request *sent* then that is over, and was *answered* with what it asked for or not."""
        self._room += 1
        if answered:
            self._limiter.admit(sent)
        if self._queue:
            self._limiter.go_on()

    def waits(self) -> bool:
        """Return whether the next one waits for the rate alone."""
        while self._queue and self._queue[0][2].done():
            heapq.heappop(self._queue)
        return bool(self._queue) and self._room >= 1

    def let_out(self, now: float) -> None:
        """Give the next one its turn."""
        self._room -= 1
        heapq.heappop(self._queue)[2].set_result(now)

    def close(self, error: errors.FloraError) -> None:
        """End all that wait."""
        queue, self._queue = self._queue, []
        for _, _, turn in queue:
            if not turn.done():
                turn.set_exception(copy(error))


class RateLimiter:
    """The turns of one client."""

    def __init__(self) -> None:
        self.calls = Lane(self, IN_FLIGHT)
        self.polls = Lane(self, math.inf)
        self.rate: TokenBucket | None = None
        """What FLORA takes; ``None``: it has refused nothing yet."""
        self._lanes = [self.polls, self.calls]
        self._answered: deque[float] = deque(maxlen=RECENT)
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = count()

    def number(self) -> int:
        """Return a number that is higher each time."""
        return next(self._numbers)

    def wait(self) -> float:
        """Return for how many seconds nothing may go out."""
        return 0.0 if self.rate is None else self.rate.wait(asyncio.get_running_loop().time())

    def admit(self, sent: float) -> None:
        """Count a request *sent* then that FLORA has answered."""
        self._answered.append(sent)
        if self.rate is not None:
            self.rate.admit(sent)

    def refuse(self, retry_after: float | None, *, sent: float) -> None:
        """Count a 429 to a request that was *sent* then."""
        now = asyncio.get_running_loop().time()
        if self.rate is None:
            self.rate = TokenBucket()
        # A longer one is nobody's pause: each call raises it at once.
        honoured = retry_after is not None and retry_after <= retry.RETRY_AFTER_CAP
        pause = retry_after if retry_after is not None and honoured else retry.RATE_LIMIT_PAUSE
        self.rate.refuse(now, until=now + pause, sent=sent, answered=self._answered)
        self.go_on()

    def takes(self, lane: Lane, now: float) -> bool:
        """Let one of a *lane* out, if FLORA takes it *now* and none of another waits."""
        if self.rate is None or self.rate.wait(now) or any(other.waits() for other in self._lanes):
            return False
        self._count(lane, self.rate)
        return True

    def go_on(self) -> None:
        """Give turns to all that may go out now, by turns among the lanes, and come back when the next may."""
        now = asyncio.get_running_loop().time()
        rate = self.rate
        waiting = [lane for lane in self._lanes if lane.waits()]
        while waiting and not (rate is not None and rate.wait(now)):
            waiting[0].let_out(now)
            if rate is not None:
                self._count(waiting[0], rate)
            waiting = [lane for lane in self._lanes if lane.waits()]
        if waiting and rate is not None:
            when = now + rate.wait(now)
            if self._timer is not None and self._timer.when() > when:
                self._timer.cancel()
                self._timer = None
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_at(when, self._rung)

    def close(self, error: errors.FloraError) -> None:
        """End all that wait with *error*."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lane in self._lanes:
            lane.close(error)

    def _rung(self) -> None:
        self._timer = None
        self.go_on()

    def _count(self, lane: Lane, rate: TokenBucket) -> None:
        rate.take()
        if lane is self._lanes[0]:  # the other one comes first now
            self._lanes.reverse()
