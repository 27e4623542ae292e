"""BoundedDict: a dictionary that keeps its newest items."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dictionary of at most *limit* items. A new item beyond that removes the oldest one.

    An item that is set again keeps its age.
    """

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit: int = limit

    def __setitem__(self, key: K, value: V, /) -> None:
        super().__setitem__(key, value)
        if len(self) > self.limit:
            del self[next(iter(self))]
