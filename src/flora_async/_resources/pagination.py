"""The history: a walk along ``next_cursor``, one page ahead of its reader.

No iterator here yields inside a task group or a cancel scope, and the look-ahead never refers to its iterator, so that
``break``, ``aclose()`` or the garbage collector each end it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Self, TypeAlias
from weakref import WeakSet, ref

from flora_async import errors
from flora_async._aio import AsyncCloseable
from flora_async.models import BrokenItem, Generation, GenerationPage

log = logging.getLogger("flora_async")

FetchPage: TypeAlias = Callable[[str | None], Coroutine[Any, Any, GenerationPage]]

REMEMBERED = 20_000
"""How many items back a walk knows that it has handed one out: FLORA's pages shift by what is new, not by more."""


class PageIterator(AsyncCloseable):
    """The pages of the history as FLORA cuts them, newest first; an item that shifts between two pages is on both.

    The next page is on its way while the caller reads this one. That ends with the walk, with ``aclose()``, at the end
    of ``async with`` and when the iterator is dropped. After an error the same page can be asked for again. Tasks that
    share an iterator each get pages of their own.
    """

    usage = "async for page in flora.generations.list(...).pages(), or await anext(...) for one page"

    def __init__(self, fetch: FetchPage, cursor: str | None) -> None:
        self._fetch = fetch
        self._cursor = cursor
        self._visited_cursors = {cursor}
        self._soon: asyncio.Handle | None = None
        self._prefetch: asyncio.Task[GenerationPage] | None = None
        self._over = self._cursor_repeated = False
        self._turn = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GenerationPage:
        async with self._turn:
            return await self.next_page()

    async def next_page(self) -> GenerationPage:
        """Return the next page to the one task that reads."""
        if self._over:
            raise StopAsyncIteration
        if self._cursor_repeated:
            self._over = True
            raise errors.PaginationError(self._cursor or "")
        if self._soon is not None:
            self._soon.cancel()
        ahead, self._prefetch = self._prefetch, None
        page = await (self._fetch(self._cursor) if ahead is None else ahead)
        self._cursor = page.next_cursor or None
        if self._cursor is None or self._over:  # the last page, or closed meanwhile
            self._over = True
        elif self._cursor in self._visited_cursors:
            self._cursor_repeated = True
        else:
            self._visited_cursors.add(self._cursor)
            # Not at once: a reader who asks for it before anything else could run has nothing to gain from a task.
            me: ref[PageIterator] = ref(self)
            self._soon = asyncio.get_running_loop().call_soon(_look_ahead, me)
        return page

    def look_ahead(self) -> None:
        """Have the next page on its way."""
        self._prefetch = asyncio.create_task(self._fetch(self._cursor))
        self._prefetch.add_done_callback(_noticed)

    async def aclose(self) -> None:
        """End the walk, and the look-ahead with it."""
        self._over = True
        if self._soon is not None:
            self._soon.cancel()
        ahead, self._prefetch = self._prefetch, None
        if ahead is not None:
            ahead.cancel()
            await asyncio.wait([ahead])

    def __del__(self) -> None:
        ahead = self._prefetch
        if ahead is not None and not ahead.done() and not ahead.get_loop().is_closed():
            # The garbage collector may come by on any thread.
            ahead.get_loop().call_soon_threadsafe(ahead.cancel)


def _look_ahead(pages: ref[PageIterator]) -> None:
    iterator = pages()
    if iterator is not None:
        iterator.look_ahead()


def _noticed(ahead: asyncio.Task[GenerationPage]) -> None:
    # The error of a page that nobody came for is nobody's concern.
    if not ahead.cancelled():
        ahead.exception()


class Deduplicator:
    """Tells what of a page was not on one before it: pages shift by what is new."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._seen_by_page: deque[set[str]] = deque()

    def fresh(self, generations: Sequence[Generation]) -> Sequence[Generation]:
        """Give the generations that come for the first time."""
        ids = {generation.run_id for generation in generations}
        if len(ids) < len(generations) or not ids.isdisjoint(self._seen):
            unseen: dict[str, Generation] = {}
            for generation in generations:
                if generation.run_id not in self._seen:
                    unseen.setdefault(generation.run_id, generation)
            generations, ids = list(unseen.values()), set(unseen)
        self._seen |= ids
        self._seen_by_page.append(ids)
        if len(self._seen) > REMEMBERED:
            self._seen -= self._seen_by_page.popleft()
        return generations


def log_broken_items(page: GenerationPage) -> None:
    """Have the log name the items of a page that cannot be read."""
    for item in page.broken:
        said = {"field": item.field, "request_id": item.request_id}
        log.warning("an item of the history cannot be read, at %s (%s)", item.field, item.request_id, extra=said)


class GenerationIterator(AsyncCloseable):
    """The items of the history, newest first, each once: an item that pages shift to is not handed out again.

    An item that cannot be read is said when all others have been handed out. Tasks that share an iterator each get
    items of their own.
    """

    usage = "async for generation in ..., or await anext(...) for one item"

    def __init__(self, pages: PageIterator) -> None:
        self._pages = pages
        self._items: Iterator[Generation] = iter(())
        self._once = Deduplicator()
        self._broken: BrokenItem | None = None
        self._turn = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Generation:
        generation = next(self._items, None)
        return await self._next_item() if generation is None else generation

    async def _next_item(self) -> Generation:
        async with self._turn:  # the first to come reads the page, and those behind take from it
            while (generation := next(self._items, None)) is None:
                try:
                    page = await self._pages.next_page()
                except StopAsyncIteration:
                    self._tell_of_the_broken()
                    raise
                log_broken_items(page)
                if page.broken:
                    self._broken = self._broken or page.broken[0]
                self._items = iter(self._once.fresh(page.generations))
            return generation

    def _tell_of_the_broken(self) -> None:
        item, self._broken = self._broken, None
        if item is not None:
            raise errors.ResponseDecodeError(
                item.reason,
                field=item.field,
                url=item.url,
                status=200,
                request_id=item.request_id,
                excerpt=item.excerpt,
            ) from None

    async def aclose(self) -> None:
        """End the walk, and the look-ahead with it."""
        await self._pages.aclose()


class GenerationList(AsyncCloseable):
    """The history, to be read as often as wanted: each ``async for`` over it begins a walk of its own.

    ``async with`` ends the look-aheads of all its walks.

    Raises:
        PaginationError: FLORA leads the walk in a circle; the items until there were handed out.
        ResponseDecodeError: an item is not what the reference promises; all others were handed out. On ``pages()`` it
            is among ``page.broken`` instead.
    """

    usage = (
        "async for generation in flora.generations.list(...), "
        "or await anext(flora.generations.list(...).pages()) for one page"
    )

    def __init__(self, fetch: FetchPage, cursor: str | None, url: str = "") -> None:
        self.url = url
        """What its first page is asked with: the same for the same arguments."""
        self._fetch = fetch
        self._cursor = cursor
        self._walks: WeakSet[PageIterator] = WeakSet()

    def __aiter__(self) -> GenerationIterator:
        return GenerationIterator(self.pages())

    def pages(self, *, cursor: str | None = None) -> PageIterator:
        """Walk page by page, from a saved *cursor* or from the beginning.

        ``page.next_cursor`` is where ``list(cursor=...)`` can go on another day.
        """
        pages = PageIterator(self._fetch, self._cursor if cursor is None else cursor)
        self._walks.add(pages)
        return pages

    async def aclose(self) -> None:
        """End all walks over this list."""
        for pages in list(self._walks):
            await pages.aclose()
