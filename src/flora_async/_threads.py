"""The threads of this package. anyio is imported with this module, not with the package."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TypeVar, TypeVarTuple

from anyio import CancelScope, CapacityLimiter
from anyio.lowlevel import RunVar, checkpoint_if_cancelled

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_THREADS = 32
"""Threads of this package for one event loop. anyio's own pool can be full of callers that wait for this package."""

_limiters: RunVar[CapacityLimiter] = RunVar("flora_async_thread_limiter")
_executors: RunVar[ThreadPoolExecutor] = RunVar("flora_async_thread_executor")


def thread_limiter() -> CapacityLimiter:
    """Return the limiter of this package's threads on the running event loop."""
    limiter = _limiters.get(None)
    if limiter is None:
        limiter = CapacityLimiter(MAX_THREADS)
        _limiters.set(limiter)
    return limiter


async def run_shielded(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run ``function(*args)`` in a thread, as ``_aio.run_in_thread`` says."""
    await checkpoint_if_cancelled()
    async with thread_limiter():
        work = _executor().submit(partial(copy_context().run, function, *args))
        try:
            with CancelScope(shield=True):
                await _wait_for(work)
            return work.result()
        finally:
            wait((work,))  # returns at once, except where the coroutine is closed without its event loop
            del work  # an exception of the function refers to this frame


async def _wait_for(work: Future[T]) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def wake(_work: Future[T]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(ended.set)

    work.add_done_callback(wake)
    cancellation: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await ended.wait()
        except asyncio.CancelledError as error:
            cancellation = error
            work.cancel()
    if cancellation is not None:
        try:
            raise cancellation
        finally:
            del cancellation


def _executor() -> ThreadPoolExecutor:
    executor = _executors.get(None)
    if executor is None:
        executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="flora-async")
        _executors.set(executor)
    return executor
