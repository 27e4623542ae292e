"""A wait, as it is told: it begins once and ends once, whichever way."""

from __future__ import annotations

import asyncio
import time
from contextvars import copy_context
from itertools import count

from flora_async._entries import Interest, Waiter
from flora_async._events import Tell, WaitBegan, WaitEnded
from flora_async.models import Run

_numbers = count(1)


class Wait:
    """One wait for one run. It has a context of its own, in which its events are emitted and the run is polled."""

    def __init__(self, tell: Tell, interest: Interest) -> None:
        self._tell = tell
        self._entry = interest.entry
        self._loop = asyncio.get_running_loop()
        self._began, self._unix = self._loop.time(), time.time()
        self._looks = interest.entry.looks
        self._number = next(_numbers)
        self._over = False
        self._context = interest.context = copy_context()
        self._context.run(tell, WaitBegan(wait=self._number, run_id=interest.entry.run_id))

    def follow(self, waiter: Waiter) -> None:
        """End with *waiter*, unless it brings a change only."""
        if waiter.entry is not self._entry:  # another wait has begun to poll the run in the meantime
            self._looks += waiter.entry.looks - self._entry.looks
            self._entry = waiter.entry
        waiter.add_done_callback(self._ended, context=self._context)

    def _ended(self, waiter: Waiter) -> None:
        if waiter.cancelled():
            self._end(None, "CancelledError")
        elif (error := waiter.exception()) is not None:
            self._end(None, type(error).__name__)
        elif (run := waiter.result()) is None:
            self._end(None, "RunTimeoutError")
        elif run.finished:
            self._end(run, None)

    def drop(self) -> None:
        """End, if that has not happened: nobody comes back. From wherever the garbage collector runs."""
        if not self._over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end, None, "CancelledError", context=self._context)

    def _end(self, run: Run | None, error: str | None) -> None:
        if self._over:
            return
        self._over = True
        lag = None
        if run is not None and run.completed is not None:
            lag = max(0.0, time.time() - max(run.completed.timestamp(), self._unix))
        self._tell(
            WaitEnded(
                wait=self._number,
                run_id=self._entry.run_id,
                status=run.status if run else None,
                error=error,
                seconds=self._loop.time() - self._began,
                looks=max(0, self._entry.looks - self._looks),
                lag=lag,
                charged_cost=run.charged_cost if run else None,
            )
        )
