"""Virtual time: an event loop whose clock jumps, for tests of what takes minutes."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter

from flora_async._aio import thread_limiter

T = TypeVar("T")

GRACE = 0.0005
"""Real seconds in which something on its way through the kernel may still arrive before time jumps."""
SLICE = 0.05
"""Real seconds for which a thread that works is waited for at once."""


def new_runner(*, virtual: bool) -> asyncio.Runner:
    """Give a loop of one's own, in *virtual* time or not, to run one thing after another."""
    return asyncio.Runner(loop_factory=VirtualLoop if virtual else None)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands while anything is ready, and else jumps to the next timer.

    What happens in this process, over loopback too, takes no time. It waits for threads that work for this loop, but
    for no other process: there a timer comes first.
    """

    def __init__(self) -> None:
        self._now = time.monotonic()
        self._executing = 0
        self._limiters: tuple[CapacityLimiter, ...] = ()
        self._first: asyncio.Task[None] | None = None
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Say the virtual time, in seconds."""
        return self._now

    def run_forever(self) -> None:
        """Run the loop; first find the limiters of its threads, which only a task can."""
        if self._first is None:
            self._first = self.create_task(self._settle_in())
        super().run_forever()

    async def _settle_in(self) -> None:
        self._limiters = current_default_thread_limiter(), thread_limiter()

    def jump(self, seconds: float) -> None:
        """Let so much time pass."""
        self._now += seconds

    @property
    def waits_for_threads(self) -> bool:
        """Whether a thread works for this loop."""
        return self._executing > 0 or any(limiter.borrowed_tokens for limiter in self._limiters)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Count what threads do."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _future: asyncio.Future[Any]) -> None:
        self._executing -= 1


class _Jumping(selectors.DefaultSelector):
    """A selector that lets a loop's time pass instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._virtual = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._virtual.waits_for_threads:
            return super().select(SLICE)
        if timeout is None:
            return super().select(None)
        ready = super().select(GRACE)
        if not ready:
            self._virtual.jump(timeout)
        return ready
