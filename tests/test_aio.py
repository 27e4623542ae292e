"""Blocking calls in threads, and what happens to them when their caller is cancelled."""

import asyncio
import contextvars
import gc
import threading
import time
import traceback
from contextlib import suppress

import anyio
import pytest
from anyio.from_thread import run as run_from_thread

from flora_async import _aio, _threads
from flora_async._aio import run_in_thread

pytestmark = pytest.mark.anyio


class Blocker:
    """A function (:meth:`run`) that blocks its thread until the test releases it."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.release = threading.Event()
        self.ended = False

    def run(self) -> str:
        """Block, then return."""
        self.began.set()
        assert self.release.wait(10)
        time.sleep(0.01)  # its end comes after the release, so that a caller who does not wait is seen
        self.ended = True
        return "result"

    async def has_begun(self) -> None:
        """Wait for its thread."""
        while not self.began.is_set():
            await asyncio.sleep(0.001)


async def test_the_result_and_the_error_of_a_function_reach_its_caller() -> None:
    """A function runs in another thread, with the caller's context variables; its result or error is the caller's."""
    variable = contextvars.ContextVar("variable", default="default")
    variable.set("the caller's")
    assert await run_in_thread(lambda: (variable.get(), threading.current_thread() is threading.main_thread())) == (
        "the caller's",
        False,
    )
    assert await run_in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(divmod, 7, 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await run_in_thread(next, iter(()))


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_task_waits_for_its_thread(times: int) -> None:
    """However often a task is cancelled, it ends when its thread has ended, and then as cancelled."""
    blocker = Blocker()
    task = asyncio.create_task(run_in_thread(blocker.run))
    await blocker.has_begun()
    for _ in range(times):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    assert not task.done()
    blocker.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert blocker.ended


async def test_an_error_after_a_cancellation_is_dropped_with_the_result() -> None:
    """A function that fails while its caller is being cancelled does not turn the cancellation into an error."""
    blocker = Blocker()

    def fail() -> None:
        blocker.run()
        raise OSError("no space left")

    task = asyncio.create_task(run_in_thread(fail))
    await blocker.has_begun()
    task.cancel()
    await asyncio.sleep(0)
    blocker.release.set()
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.parametrize("native", [True, False])
async def test_a_timeout_waits_for_the_thread(native: bool) -> None:
    """A time-out of asyncio or anyio is raised when the thread has ended, as that time-out."""
    blocker = Blocker()

    async def call() -> None:
        await run_in_thread(blocker.run)
        await asyncio.sleep(5)

    asyncio.get_running_loop().call_later(0.1, blocker.release.set)
    with pytest.raises(TimeoutError):
        if native:
            async with asyncio.timeout(0.02):
                await call()
        else:
            with anyio.fail_after(0.02):
                await call()
    assert blocker.ended


async def test_a_native_cancellation_and_a_scope_together() -> None:
    """A task that is cancelled natively and by an anyio scope, in either order, waits and ends as cancelled."""
    for scope_first in (True, False):
        blocker = Blocker()
        scope = anyio.CancelScope()

        async def call(blocker: Blocker, scope: anyio.CancelScope) -> None:
            with scope:
                await run_in_thread(blocker.run)
                await asyncio.sleep(5)

        task = asyncio.create_task(call(blocker, scope))
        await blocker.has_begun()
        for cancel in (scope.cancel, task.cancel) if scope_first else (task.cancel, scope.cancel):
            cancel()
            await asyncio.sleep(0)
        assert not task.done()
        blocker.release.set()
        await asyncio.wait([task])
        assert task.cancelled()
        assert blocker.ended


async def test_a_function_that_has_not_begun_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller in the queue for a thread is cancelled at once, and its function does not run."""
    monkeypatch.setattr(_threads.thread_limiter(), "total_tokens", 1)
    first, second = Blocker(), Blocker()
    tasks = [asyncio.create_task(run_in_thread(blocker.run)) for blocker in (first, second)]
    await first.has_begun()
    tasks[1].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    first.release.set()
    assert await tasks[0] == "result"
    assert not second.began.is_set()
    cancelled = asyncio.create_task(run_in_thread(second.run))
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert cancelled.cancelled()
    assert not second.began.is_set()


async def test_callers_in_all_of_anyios_threads() -> None:
    """Callers that occupy each thread of anyio's own pool are served: the package has threads of its own."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    number = int(limiter.total_tokens)

    def endpoint(value: int) -> tuple[int, int]:
        return run_from_thread(halve, value)

    async def halve(value: int) -> tuple[int, int]:
        return await run_in_thread(divmod, value, 2)

    async with asyncio.timeout(20):
        results = await asyncio.gather(*(anyio.to_thread.run_sync(endpoint, n) for n in range(number)))
    assert results == [divmod(n, 2) for n in range(number)]


def passed_through(error: BaseException) -> bool:
    """Return whether an exception has a frame of the helper: the test runner has exceptions of its own."""
    return any(frame.f_code.co_filename == _aio.__file__ for frame, _ in traceback.walk_tb(error.__traceback__))


async def test_an_error_leaves_no_cycle() -> None:
    """An error of a function, and the frames that it holds, go with its last reference."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with suppress(ZeroDivisionError):
                await run_in_thread(divmod, 7, 0)
        task = asyncio.create_task(run_in_thread(time.sleep, 0.01))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        del task
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        assert [found for found in gc.garbage if isinstance(found, BaseException) and passed_through(found)] == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_loop_that_ends_waits_for_the_thread() -> None:
    """``asyncio.run`` cancels what is left when its main coroutine ends; that waits for its threads, too."""
    blocker = Blocker()
    seen: list[bool] = []

    async def work() -> None:
        try:
            await run_in_thread(blocker.run)
        finally:
            seen.append(blocker.ended)

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(work())
        await blocker.has_begun()
        threading.Timer(0.05, blocker.release.set).start()
        return task

    task = asyncio.run(main())
    assert seen == [True]
    assert task.cancelled()


def test_a_coroutine_without_its_loop_waits_for_the_thread() -> None:
    """A coroutine that is closed after its loop has gone still waits for its thread before its own cleanup."""
    blocker = Blocker()
    seen: list[bool] = []

    async def work() -> None:
        try:
            await run_in_thread(blocker.run)
        finally:
            seen.append(blocker.ended)

    loop = asyncio.new_event_loop()
    coroutine = work()
    task = loop.create_task(coroutine)
    loop.run_until_complete(blocker.has_begun())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    threading.Timer(0.05, blocker.release.set).start()
    with suppress(RuntimeError):  # anyio's scopes want their loop
        coroutine.close()
    assert seen == [True]
