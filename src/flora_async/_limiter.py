"""Turns: when a request of a client may go out. All of them pass here.

Nothing is held up until a hundred are under way, or FLORA answers 429. Then everybody pauses, and goes on one at a time
at a rate that refusals cut and successes raise, in the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque

from flora_async import _pacing
from flora_async._pacing import Rate

IN_FLIGHT = 100
"""Requests of one client that are under way at once."""
RECENT = 1000
"""Of how many requests it is known when they came: the rate that a first refusal begins with is no higher."""


class Limiter:
    """The turns of one client."""

    def __init__(self) -> None:
        self._room = IN_FLIGHT
        self._rate: Rate | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, now: float) -> bool:
        """Let the next request out, if it may go at once; else it waits for its :meth:`turn`."""
        self._recent.append(now)
        return not self._queue and self._go(now)

    async def turn(self) -> bool:
        """Wait until the next request may go out."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queue.append(turn)
        self._plan(loop.time())
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had its turn, and does not use it
                self.leave(answered=False)
            raise
        return True

    def leave(self, *, answered: bool) -> None:
        """Count a request that is over, and was *answered* with what it asked for or not."""
        self._room += 1
        if answered and self._rate is not None:
            self._rate.succeeded()
        if self._queue:
            self._next()

    def wait(self) -> float:
        """Say for how many seconds nobody may go out."""
        return 0.0 if self._rate is None else self._rate.wait(asyncio.get_running_loop().time())

    def refused(self, retry_after: float | None) -> None:
        """Count a 429."""
        now = asyncio.get_running_loop().time()
        if self._rate is None:
            self._rate = Rate(max(_pacing.RATE_FLOOR, float(sum(came > now - 1 for came in self._recent))))
        # A longer one is nobody's pause: each call raises it at once.
        honoured = retry_after is not None and retry_after <= _pacing.RETRY_AFTER_CAP
        pause = retry_after if retry_after is not None and honoured else _pacing.RATE_LIMIT_PAUSE
        self._rate.refused(now, now + pause)
        self._plan(now)

    def _go(self, now: float) -> bool:
        """Let one out, if it may go *now*."""
        if not self._room or (self._rate is not None and self._rate.wait(now)):
            return False
        self._room -= 1
        if self._rate is not None:
            self._rate.take()
        return True

    def _plan(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Where there is no room, the next one to leave makes some.
        if self._queue and self._room and self._rate is not None:
            self._timer = asyncio.get_running_loop().call_at(now + self._rate.wait(now), self._next)

    def _next(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._queue and (self._queue[0].done() or self._go(now)):
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
        self._plan(now)
