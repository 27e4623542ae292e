"""Virtual time: an event loop whose clock skips idle time, for tests of long waits."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter

from flora_async._threads import thread_limiter

T = TypeVar("T")

YIELD_SECONDS = 1e-6
"""Real seconds of a sleep that yields the processor, so that the kernel delivers bytes in flight."""
MAX_YIELDS = 10
"""Maximum number of such sleeps before time is skipped while bytes are in flight."""
THREAD_WAIT_SECONDS = 0.05
"""Maximum real seconds of one wait for a working thread."""


class SingleTaskRunner:
    """Runs coroutines one after another in one task of a dedicated loop, in virtual or real time.

    A task group and a cancel scope must be exited in the task that entered them. So the setup of a fixture, the test
    and the teardown of the fixture run in one task, which idles in between.
    """

    def __init__(self, *, virtual: bool) -> None:
        self.virtual = virtual
        self._runner = asyncio.Runner(loop_factory=VirtualTimeLoop if virtual else None)
        self._calls: asyncio.Queue[tuple[Coroutine[Any, Any, Any], asyncio.Future[Any]] | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result."""
        return self._runner.run(self._call(coroutine))

    def close(self) -> None:
        """End the task and close the loop."""
        if self._task is not None:
            self._runner.run(self._stop(self._task))
        self._runner.close()

    async def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((coroutine, done))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            if not done.done():  # Ctrl-C: cancel the coroutine, not this wait
                self._task.cancel()
                await asyncio.wait([done])
            raise

    async def _work(self) -> None:
        while (call := await self._next()) is not None:
            coroutine, done = call
            try:
                result = await coroutine
            except BaseException as error:  # noqa: BLE001 - the caller of run() gets each error of a test, pytest's skip too
                done.set_exception(error)
            else:
                done.set_result(result)

    async def _next(self) -> tuple[Coroutine[Any, Any, Any], asyncio.Future[Any]] | None:
        while True:
            # If a task of a fixture's task group fails, the group cancels this task, which waits for the teardown.
            with contextlib.suppress(asyncio.CancelledError):
                return await self._calls.get()

    async def _stop(self, task: asyncio.Task[None]) -> None:
        self._calls.put_nowait(None)
        await task


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stops while callbacks are ready, and otherwise skips to the next timer.

    Work in this process takes no virtual time, over loopback too. The loop waits for its own threads, but not for
    other processes: the next timer fires first.
    """

    def __init__(self) -> None:
        self._now = time.monotonic()
        self._executing = 0
        self._limiters: tuple[CapacityLimiter, ...] = ()
        self._limiter_task: asyncio.Task[None] | None = None
        super().__init__(_TimeSkippingSelector(self))

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def run_forever(self) -> None:
        """Run the loop. A first task finds the thread limiters, which are known only inside a task."""
        if self._limiter_task is None:
            self._limiter_task = self.create_task(self._find_limiters())
        super().run_forever()

    async def _find_limiters(self) -> None:
        self._limiters = current_default_thread_limiter(), thread_limiter()

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self._now += seconds

    @property
    def waits_for_threads(self) -> bool:
        """Whether a thread works for this loop."""
        return self._executing > 0 or any(limiter.borrowed_tokens for limiter in self._limiters)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Run a function in a thread, and count it as working."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._on_executed)
        return future

    def _on_executed(self, _future: asyncio.Future[Any]) -> None:
        self._executing -= 1


class _TimeSkippingSelector(selectors.DefaultSelector):
    """A selector that advances the loop's clock instead of waiting."""

    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._virtual = loop
        self._used = False
        """Whether a socket was ready since the clock was last advanced."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            self._used = self._used or bool(ready)
            return ready
        if self._virtual.waits_for_threads:
            return super().select(THREAD_WAIT_SECONDS)
        if timeout is None:
            return super().select(None)
        # After socket use, sleep once even without bytes in flight: opening or closing a connection carries none.
        for count in range(MAX_YIELDS):
            if not (self._used and count == 0) and not self._bytes_in_flight():
                break
            time.sleep(YIELD_SECONDS)
            if ready := super().select(0):
                return ready
        self._used = False
        self._virtual.advance(timeout)
        return ready

    def _bytes_in_flight(self) -> bool:
        """Return whether the kernel holds undelivered bytes of a socket of this loop."""
        return any(_has_unsent_bytes(key.fd) for key in self.get_map().values())


if sys.platform == "linux":
    import fcntl
    import termios

    def _has_unsent_bytes(descriptor: int) -> bool:
        count = bytearray(4)
        try:
            fcntl.ioctl(descriptor, termios.TIOCOUTQ, count)
        except OSError:  # a listening socket, or a pipe
            return False
        return any(count)

else:

    def _has_unsent_bytes(_descriptor: int) -> bool:
        return True
