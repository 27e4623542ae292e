"""Turns: when a request of a client may go out. All of them pass here.

Nothing is held up until FLORA answers 429. Then everybody pauses, and goes on one at a time at a rate that refusals cut
and successes raise, in the order of arrival.
"""

from __future__ import annotations

import asyncio
from collections import deque

from flora_async import _pacing
from flora_async._pacing import Rate


class Limiter:
    """The turns of one client."""

    def __init__(self) -> None:
        self._rate: Rate | None = None
        self._recent: deque[float] = deque()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self) -> None:
        """Wait until the next request may go out."""
        now = asyncio.get_running_loop().time()
        recent = self._recent
        recent.append(now)
        while recent[0] < now - 1:
            recent.popleft()
        rate = self._rate
        if rate is None:
            return
        if not self._queue and not rate.wait(now):
            rate.take()
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._plan(now)
        await turn

    def wait(self) -> float:
        """Say for how many seconds nobody may go out."""
        return 0.0 if self._rate is None else self._rate.wait(asyncio.get_running_loop().time())

    def succeeded(self) -> None:
        """Count a request that was not refused."""
        if self._rate is not None:
            self._rate.succeeded()

    def refused(self, retry_after: float | None) -> None:
        """Count a 429."""
        now = asyncio.get_running_loop().time()
        if self._rate is None:
            self._rate = Rate(max(_pacing.RATE_FLOOR, float(len(self._recent))))
        # A longer one is nobody's pause: each call raises it at once.
        honoured = retry_after is not None and retry_after <= _pacing.RETRY_AFTER_CAP
        pause = retry_after if retry_after is not None and honoured else _pacing.RATE_LIMIT_PAUSE
        self._rate.refused(now, now + pause)
        self._plan(now)

    def _plan(self, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._queue and self._rate is not None:
            self._timer = asyncio.get_running_loop().call_at(now + self._rate.wait(now), self._next)

    def _next(self) -> None:
        now = asyncio.get_running_loop().time()
        self._timer = None
        while self._queue and self._rate is not None and not self._rate.wait(now):
            turn = self._queue.popleft()
            if not turn.done():
                self._rate.take()
                turn.set_result(None)
        self._plan(now)
