"""What ``async with`` closes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NoReturn, Self

from flora_async import errors


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
