"""Turns: when a request of a client may go out. All of them pass here, polls and calls alike.

Nothing is held up until a hundred calls are under way, or FLORA answers 429. Then all pause, and go on one at a time at
the rate that FLORA takes. Polls and calls that both wait take turns, so that neither keeps the other waiting.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from copy import copy
from itertools import count

from flora_async import _pacing, errors
from flora_async._pacing import Rate

IN_FLIGHT = 100
"""Calls of one client that are under way at once."""
RECENT = 1000
"""Of how many answers it is known when their requests were sent: a rate that a refusal begins with is no higher."""


class Lane:
    """The requests of one kind, in the order in which their calls began."""

    def __init__(self, limiter: Limiter, room: float) -> None:
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


class Limiter:
    """The turns of one client."""

    def __init__(self) -> None:
        self.calls = Lane(self, IN_FLIGHT)
        self.polls = Lane(self, math.inf)
        self.rate: Rate | None = None
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
            self.rate = Rate()
        # A longer one is nobody's pause: each call raises it at once.
        honoured = retry_after is not None and retry_after <= _pacing.RETRY_AFTER_CAP
        pause = retry_after if retry_after is not None and honoured else _pacing.RATE_LIMIT_PAUSE
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

    def _count(self, lane: Lane, rate: Rate) -> None:
        rate.take()
        if lane is self._lanes[0]:  # the other one comes first now
            self._lanes.reverse()
