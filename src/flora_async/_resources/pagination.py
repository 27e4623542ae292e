"""Histories: iterators over pages and items, which prefetch one page.

No iterator yields inside a task group or a cancel scope, and the prefetch never refers to its iterator. So ``break``,
``aclose()`` and the garbage collector each end it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Generic, Self, TypeAlias, TypeVar
from weakref import WeakSet, ref

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async._aio import AsyncCloseable
from flora_async._bounded_dict import BoundedDict
from flora_async._http.requests import Request, with_timeout
from flora_async._http.responses import RawResponse
from flora_async._http.transport import Transport
from flora_async.models import (
    AssetPage,
    BrokenItem,
    Generation,
    GenerationPage,
    ListedAsset,
    Run,
    TechniqueRun,
    TechniqueRunPage,
)

log = logging.getLogger("flora_async")

AnyPage: TypeAlias = GenerationPage | TechniqueRunPage | AssetPage

PageT = TypeVar("PageT", bound=AnyPage)
RowT = TypeVar("RowT", bound=Run | ListedAsset)
ListT = TypeVar("ListT")

FetchPage: TypeAlias = Callable[[str | None], Coroutine[Any, Any, PageT]]

_RUN_ID = attrgetter("run_id")
_ASSET_ID = attrgetter("asset_id", "node_id", "url")

MAX_REMEMBERED_ITEMS = 20_000
"""Number of item ids kept to skip duplicates. New generations shift items to later pages, but not by more than this."""

MAX_REMEMBERED_CURSORS = 1000
"""Number of last cursors that are kept to detect a repeated one at once."""


class Window(Struct, frozen=True):
    """The runs created from *since* on and before *until*, as a filter of pages that are sorted newest first."""

    since: datetime | None
    until: datetime | None

    @property
    def label(self) -> str:
        """The text that tells listings with different windows apart; empty without a window."""
        limits = {"since": self.since, "until": self.until}
        return "".join(f"#{name}={limit.isoformat()}" for name, limit in limits.items() if limit is not None)

    def apply(self, page: GenerationPage) -> GenerationPage:
        """Return the page without the runs outside. It is the last one if it ends with a run before *since*."""
        since, until = self.since, self.until
        if since is None and until is None:
            return page
        inside = tuple(
            run
            for run in page.generations
            if (since is None or run.created >= since) and (until is None or run.created < until)
        )
        over = since is not None and bool(page.generations) and page.generations[-1].created < since
        return replace(page, generations=inside, meta=replace(page.meta, next_cursor=None) if over else page.meta)


def open_list(
    kind: Callable[[FetchPage[PageT], str | None, str], ListT],
    transport: Transport,
    request: Callable[[str | None], Request],
    parse: Callable[[RawResponse], PageT],
    *,
    cursor: str | None,
    timeout: float | None,
    label: str = "",
) -> ListT:
    """Return a list whose pages are requested by their cursors. Invalid arguments raise now, not at the first page.

    *label* is what distinguishes it from other lists of the same URL.
    """

    async def fetch(cursor: str | None) -> PageT:
        return await transport.send(with_timeout(request(cursor), timeout), parse)

    first = with_timeout(request(cursor), timeout)
    return kind(fetch, cursor, f"{first.url}{label}")


class VisitedCursors:
    """Detects a repeated cursor, in constant memory.

    Pages that repeat after at most ``MAX_REMEMBERED_CURSORS`` are detected at once, others within three rounds by
    Brent's algorithm (https://doi.org/10.1007/BF01933190): all cursors up to twice its number are compared with one.
    """

    def __init__(self, first: str | None) -> None:
        self._latest: BoundedDict[str | None, None] = BoundedDict(MAX_REMEMBERED_CURSORS)
        self._latest[first] = None
        self._compared = first
        self._count = 0

    def add(self, cursor: str) -> bool:
        """Add a cursor. Return whether it was visited."""
        if cursor in self._latest or cursor == self._compared:
            return True
        self._count += 1
        if self._count.bit_count() == 1:  # a power of two
            self._compared = cursor
        self._latest[cursor] = None
        return False


class PageIterator(AsyncCloseable, Generic[PageT]):
    """The pages of a history as FLORA returns them, newest first. An item that shifts between two pages is on both.

    The next page is prefetched while the caller reads the current one. ``aclose()``, the end of ``async with`` and the
    garbage collector cancel the prefetch. After an error, the next call requests the same page again. Several tasks may
    share an iterator: each page reaches exactly one of them.
    """

    usage = "async for page in flora.generations.list(...).pages(), or await anext(...) for one page"

    def __init__(self, fetch: FetchPage[PageT], cursor: str | None) -> None:
        self._fetch = fetch
        self._cursor = cursor
        self._visited = VisitedCursors(cursor)
        self._soon: asyncio.Handle | None = None
        self._prefetch: asyncio.Task[PageT] | None = None
        self._over = self._cursor_repeated = False
        self._turn = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PageT:
        async with self._turn:
            return await self.next_page()

    async def next_page(self) -> PageT:
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
        elif self._visited.add(self._cursor):
            self._cursor_repeated = True
        else:
            # Not at once: a reader that requests the page before other callbacks run gains nothing from a task.
            me: ref[PageIterator[PageT]] = ref(self)
            self._soon = asyncio.get_running_loop().call_soon(_look_ahead, me)
        return page

    def look_ahead(self) -> None:
        """Start the request of the next page."""
        self._prefetch = asyncio.create_task(self._fetch(self._cursor))
        self._prefetch.add_done_callback(_retrieve_exception)

    async def aclose(self) -> None:
        """End the iteration and cancel the prefetch."""
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
            # The garbage collector may run in any thread.
            ahead.get_loop().call_soon_threadsafe(ahead.cancel)


def _look_ahead(pages: ref[PageIterator[PageT]]) -> None:
    iterator = pages()
    if iterator is not None:
        iterator.look_ahead()


def _retrieve_exception(ahead: asyncio.Task[PageT]) -> None:
    # Mark the exception of an unused prefetch as retrieved.
    if not ahead.cancelled():
        ahead.exception()


class Deduplicator:
    """Removes items that were on an earlier page: new generations shift items to later pages."""

    def __init__(self, id_of: Callable[[Any], Hashable] = _RUN_ID) -> None:
        self._id_of = id_of
        self._seen: set[Hashable] = set()
        self._seen_by_page: deque[set[Hashable]] = deque()

    def filter_new(self, items: Sequence[RowT]) -> Sequence[RowT]:
        """Return the items that were on no earlier page."""
        id_of = self._id_of
        ids = set(map(id_of, items))
        if len(ids) < len(items) or not ids.isdisjoint(self._seen):
            unseen: dict[Hashable, RowT] = {}
            for item in items:
                if id_of(item) not in self._seen:
                    unseen.setdefault(id_of(item), item)
            items, ids = list(unseen.values()), set(unseen)
        self._seen |= ids
        self._seen_by_page.append(ids)
        if len(self._seen) > MAX_REMEMBERED_ITEMS:
            self._seen -= self._seen_by_page.popleft()
        return items


def log_broken_items(page: AnyPage) -> None:
    """Log the items of a page that cannot be decoded."""
    for item in page.broken:
        extra = {"field": item.field, "request_id": item.request_id}
        log.warning("cannot decode an item of the history, at %s (%s)", item.field, item.request_id, extra=extra)


class HistoryIterator(AsyncCloseable, Generic[PageT, RowT]):
    """The items of a history, newest first, each once: an item that shifts to a later page is not yielded again.

    An item that cannot be decoded raises after all others were yielded. Several tasks may share an iterator: each item
    reaches exactly one of them.
    """

    usage = "async for generation in ..., or await anext(...) for one item"

    def __init__(
        self,
        pages: PageIterator[PageT],
        rows_of: Callable[[PageT], Sequence[RowT]],
        id_of: Callable[[Any], Hashable] = _RUN_ID,
    ) -> None:
        self._pages = pages
        self._rows_of = rows_of
        self._items: Iterator[RowT] = iter(())
        self._once = Deduplicator(id_of)
        self._broken: BrokenItem | None = None
        self._closed = False
        self._turn = asyncio.Lock()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RowT:
        run = next(self._items, None)
        return await self._next_item() if run is None else run

    async def _next_item(self) -> RowT:
        async with self._turn:  # The first task reads the page. Tasks that waited use its items.
            while (run := next(self._items, None)) is None:
                try:
                    page = await self._pages.next_page()
                except StopAsyncIteration:
                    self._raise_for_broken_item()
                    raise
                if self._closed:  # while the page was read
                    raise StopAsyncIteration
                log_broken_items(page)
                if page.broken:
                    self._broken = self._broken or page.broken[0]
                self._items = iter(self._once.filter_new(self._rows_of(page)))
            return run

    def _raise_for_broken_item(self) -> None:
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
        """End the iteration and cancel the prefetch."""
        self._closed, self._items, self._broken = True, iter(()), None
        await self._pages.aclose()


class HistoryList(AsyncCloseable, Generic[PageT, RowT]):
    """A history, which can be read several times: each ``async for`` over it starts at the beginning.

    ``async with`` cancels the prefetches of all its iterators.

    Raises:
        PaginationError: FLORA returned a cursor twice. The items before it were yielded.
        ResponseDecodeError: an item does not match the reference. All others were yielded. ``pages()`` has it in
            ``page.broken`` instead.
    """

    def __init__(
        self,
        fetch: FetchPage[PageT],
        cursor: str | None,
        url: str,
        rows_of: Callable[[PageT], Sequence[RowT]],
        id_of: Callable[[Any], Hashable] = _RUN_ID,
    ) -> None:
        self.url = url
        """URL of its first page: the same for the same arguments."""
        self._fetch = fetch
        self._cursor = cursor
        self._rows_of = rows_of
        self._id_of = id_of
        self._walks: WeakSet[AsyncCloseable] = WeakSet()

    def __aiter__(self) -> HistoryIterator[PageT, RowT]:
        items = HistoryIterator(self.pages(), self._rows_of, self._id_of)
        self._walks.add(items)
        return items

    def pages(self, *, cursor: str | None = None) -> PageIterator[PageT]:
        """Return an iterator over pages, from a saved *cursor* or from the beginning.

        Save ``page.next_cursor`` to continue later with ``list(cursor=...)``.
        """
        pages = PageIterator(self._fetch, self._cursor if cursor is None else cursor)
        self._walks.add(pages)
        return pages

    async def aclose(self) -> None:
        """Close all iterators over this list."""
        for walk in list(self._walks):
            await walk.aclose()


class GenerationList(HistoryList[GenerationPage, Generation]):
    """The history of generations; see :class:`HistoryList`."""

    usage = (
        "async for generation in flora.generations.list(...), "
        "or await anext(flora.generations.list(...).pages()) for one page"
    )

    def __init__(self, fetch: FetchPage[GenerationPage], cursor: str | None, url: str = "") -> None:
        super().__init__(fetch, cursor, url, attrgetter("generations"))


class TechniqueRunList(HistoryList[TechniqueRunPage, TechniqueRun]):
    """The history of techniques; see :class:`HistoryList`."""

    usage = (
        "async for run in flora.technique_runs.list(...), "
        "or await anext(flora.technique_runs.list(...).pages()) for one page"
    )

    def __init__(self, fetch: FetchPage[TechniqueRunPage], cursor: str | None, url: str = "") -> None:
        super().__init__(fetch, cursor, url, attrgetter("technique_runs"))


class AssetList(HistoryList[AssetPage, ListedAsset]):
    """The list of assets; see :class:`HistoryList`."""

    usage = "async for asset in flora.assets.list(...), or await anext(flora.assets.list(...).pages()) for one page"

    def __init__(self, fetch: FetchPage[AssetPage], cursor: str | None, url: str = "") -> None:
        super().__init__(fetch, cursor, url, attrgetter("assets"), _ASSET_ID)
