"""What ``async with`` closes, and on which event loop."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

from flora_async import errors
from flora_async._arguments import running_loop

CLOSE_TIMEOUT = 5.0
"""Seconds that the end of connections, or the event loop of another thread, is waited for."""


class Closing(ABC):
    """Something that is read with ``async for``, and closed at the end of ``async with``."""

    usage: ClassVar[str] = "async for item in ..."
    """How it is read: shown to those who await it or iterate over it without ``async``."""

    @abstractmethod
    async def aclose(self) -> None:
        """End it. Again is fine."""

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


async def close_at_home(loop: asyncio.AbstractEventLoop | None, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run *close* on the *loop* of what is to be closed, if that runs in another thread; else here."""
    here = running_loop()
    if loop is None or loop is here or not loop.is_running():
        await close()
        return
    closing = asyncio.run_coroutine_threadsafe(close(), loop)
    if here is not None:
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=CLOSE_TIMEOUT)
