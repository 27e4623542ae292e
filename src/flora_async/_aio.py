"""asyncio helpers: run blocking calls in threads, require an event loop, close objects on their loop."""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self, TypeVar, TypeVarTuple

from flora_async import errors

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ANYIO_BACKEND = "anyio._backends._asyncio"


async def import_in_thread(*names: str) -> None:
    """Import modules in a separate thread: the imports would block the event loop for too long.

    They include anyio's asyncio backend, which anyio would import on the event loop at its first use.
    """
    missing = [name for name in (_ANYIO_BACKEND, *names) if name not in sys.modules]
    if missing:
        executor = ThreadPoolExecutor(1, thread_name_prefix="flora-async-import")
        try:
            await asyncio.get_running_loop().run_in_executor(executor, _import_all, missing)
        finally:
            executor.shutdown(wait=False)


def _import_all(names: list[str]) -> None:
    for name in names:
        with suppress(ImportError):  # the import at the place of use raises the error
            import_module(name)


async def run_in_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run ``function(*args)`` in a thread and return its result.

    A cancelled caller waits until the function has ended, then the cancellation continues and the result is dropped:
    no file or connection is closed under the thread that uses it. This holds for ``task.cancel()``, once or repeatedly,
    for ``asyncio.timeout``, for anyio's scopes and for a coroutine that is closed without its event loop. A function
    that has not begun does not begin after a cancellation.
    """
    await import_in_thread("flora_async._threads")
    from flora_async._threads import run_shielded  # anyio takes a tenth of the time that importing this package takes

    return await run_shielded(function, *args)


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return asyncio's running event loop; ``None``: there is none, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def require_loop(bound: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Return the running asyncio event loop. Raise ConfigurationError if it is not the *bound* one of a client."""
    loop: asyncio.AbstractEventLoop | None
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        loop = None
    if loop is None:
        raise errors.ConfigurationError(
            "flora-async needs a running asyncio event loop. Call it inside asyncio.run(...)"
        )
    if bound is not None and bound is not loop:
        raise errors.ConfigurationError(
            "this client belongs to another event loop. Open one Flora(...) in each asyncio.run(...)"
        )
    return loop


CLOSE_TIMEOUT = 5.0
"""Maximum seconds to wait until connections, or the event loop of another thread, are closed."""


class AsyncCloseable(ABC):
    """Base class with ``aclose()`` and ``async with``, for objects that are read with ``async for``."""

    usage: ClassVar[str] = "async for item in ..."
    """Correct use, for the error of ``await`` or ``for`` without ``async``."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close it. A second call has no effect."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    if not TYPE_CHECKING:  # type checkers refuse both by themselves

        def __await__(self) -> NoReturn:
            raise self._misuse("be awaited")

        def __iter__(self) -> NoReturn:
            raise self._misuse("be iterated over without async")

    def _misuse(self, how: str) -> errors.ConfigurationError:
        return errors.ConfigurationError(f"{type(self).__name__} cannot {how}. Use {self.usage}")


async def close_on_loop(loop: asyncio.AbstractEventLoop | None, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *close* on *loop* if that runs in another thread; otherwise on the current event loop."""
    here = running_loop()
    if loop is None or loop is here or not loop.is_running():
        await close()
        return
    closing = asyncio.run_coroutine_threadsafe(close(), loop)
    if here is not None:
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=CLOSE_TIMEOUT)
