"""The history: walks along next_cursor."""

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from scripted import Scripted, answer, error, page, row, silence, tasks_of_ours

from flora_async import (
    ClientClosedError,
    Flora,
    Generation,
    GenerationPage,
    InternalServerError,
    ModelRef,
    PageMeta,
    PaginationError,
)
from flora_async._resources import pagination
from flora_async._resources.pagination import GenerationList

pytestmark = pytest.mark.anyio


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted, fast_retries: None) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora("sk_1", base_url=server.base_url) as client:
        yield client


def a_page(*run_ids: str, cursor: str | None = None) -> GenerationPage:
    """Give a page."""
    return GenerationPage(
        generations=tuple(
            Generation(
                run_id=run_id,
                generation_id=run_id,
                status="completed",
                progress=100,
                created_at=1,
                project_id="prj_1",
                workspace_id="ws_1",
                model=ModelRef(),
            )
            for run_id in run_ids
        ),
        meta=PageMeta(next_cursor=cursor),
    )


class Book:
    """Pages by cursor, and what was asked of them."""

    def __init__(self, pages: dict[str | None, GenerationPage]) -> None:
        self.pages = pages
        self.asked: list[str | None] = []

    async def fetch(self, cursor: str | None) -> GenerationPage:
        """Give the page at *cursor*."""
        self.asked.append(cursor)
        await asyncio.sleep(0)
        return self.pages[cursor]


async def ids(walk: Any) -> list[str]:
    """Read a walk to its end."""
    return [generation.run_id async for generation in walk]


async def test_all_pages_to_the_last(flora: Flora, server: Scripted) -> None:
    """The filters go along on every page, the cursor as a value; null ends the walk."""
    server.on("GET", "/generations", page("run_3", cursor="a&b"), page("run_2", cursor="c"), page("run_1"))
    listing = flora.generations.list(limit=1, status="completed", project_id="prj_1", workspace_id="ws_1")
    assert await ids(listing) == ["run_3", "run_2", "run_1"]
    fixed = {"limit": "1", "status": "completed", "project_id": "prj_1", "workspace_id": "ws_1"}
    assert [asked.query for asked in server.asked] == [fixed, {**fixed, "cursor": "a&b"}, {**fixed, "cursor": "c"}]


@pytest.mark.parametrize("meta", [{"next_cursor": None}, {}, {"next_cursor": ""}])
async def test_the_last_page_has_no_cursor(flora: Flora, server: Scripted, meta: dict[str, Any]) -> None:
    """Null, absent or empty."""
    server.on("GET", "/generations", answer({"generations": [], "meta": meta}))
    assert await ids(flora.generations.list()) == []
    assert len(server.asked) == 1


async def test_empty_pages_in_between(flora: Flora, server: Scripted) -> None:
    """A page that is empty and carries a cursor is not the end."""
    server.on("GET", "/generations", page(cursor="1"), page("run_1", cursor="2"), page(cursor="3"), page("run_2"))
    assert await ids(flora.generations.list()) == ["run_1", "run_2"]


async def test_pages_as_flora_cuts_them(flora: Flora, server: Scripted) -> None:
    """With their cursor and the estimate of the whole."""
    first = {"generations": [], "meta": {"next_cursor": "a", "total_estimate": 250}}
    server.on("GET", "/generations", answer(first), page("run_1"))
    pages = [seen async for seen in flora.generations.list().pages()]
    assert [(seen.next_cursor, seen.total_estimate, len(seen.generations)) for seen in pages] == [
        ("a", 250, 0),
        (None, None, 1),
    ]


async def test_a_saved_cursor_is_where_a_walk_begins(flora: Flora, server: Scripted) -> None:
    """On another day, too."""
    server.on("GET", "/generations", page("run_9"))
    assert await ids(flora.generations.list(cursor="saved")) == ["run_9"]
    assert server.asked[0].query == {"cursor": "saved", "limit": "100"}


async def test_an_item_that_pages_shift_to_is_handed_out_once() -> None:
    """Pages shift when new generations arrive; page by page both are seen."""
    book = Book({None: a_page("run_3", "run_2", cursor="a"), "a": a_page("run_2", "run_1", "run_1")})
    assert await ids(GenerationList(book.fetch, None)) == ["run_3", "run_2", "run_1"]
    pages = [seen async for seen in GenerationList(book.fetch, None).pages()]
    assert [len(seen.generations) for seen in pages] == [2, 3]


@pytest.mark.parametrize(("start", "second"), [(None, "a"), ("a", "a"), ("a", "b")])
async def test_a_cursor_that_comes_twice(start: str | None, second: str) -> None:
    """It is an error after the items until there, not an endless loop."""
    book = Book({start: a_page("run_2", cursor=second), second: a_page("run_1", cursor=second)})
    if start == second:
        book.pages["a"] = a_page("run_2", cursor="a")
    elif second == "b":
        book.pages["b"] = a_page("run_1", cursor="a")
    seen: list[str] = []
    walk = aiter(GenerationList(book.fetch, start))
    with pytest.raises(PaginationError) as caught:
        async for generation in walk:
            seen.append(generation.run_id)
    assert caught.value.cursor == ("b" if second == "c" else "a")
    assert seen == (["run_2"] if start == second else ["run_2", "run_1"])
    assert await ids(walk) == []
    assert len(book.asked) == len(seen)


@pytest.mark.parametrize(("before", "round_"), [(0, 9), (5, 9), (40, 4), (3, 33)])
async def test_a_long_round_of_pages_ends(before: int, round_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A history that repeats after more pages than are remembered is an error too, at the latest in its third round."""
    monkeypatch.setattr(pagination, "MAX_REMEMBERED_CURSORS", 3)
    last, names = before + round_, [None, *map(str, range(1, before + round_ + 1))]
    following = {name: str(number + 1) for number, name in enumerate(names)}
    book = Book({name: a_page("run_1", cursor=cursor) for name, cursor in following.items()})
    book.pages[names[last]] = a_page("run_1", cursor=str(before + 1))
    with pytest.raises(PaginationError):
        async for _ in GenerationList(book.fetch, None).pages():
            pass
    assert round_ + before < len(book.asked) <= 3 * (before + round_) + 3


def test_the_memory_of_cursors_is_constant() -> None:
    """After 20,000 pages they take no more than after 5,000."""
    visited, held = pagination.VisitedCursors(None), []
    tracemalloc.start()
    try:
        for number in range(1, 20_001):
            assert not visited.add(f"page_{number}")
            if number in (5_000, 20_000):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 20_000


async def test_the_next_page_comes_while_this_one_is_read() -> None:
    """One ahead, and no more."""
    book = Book({None: a_page("run_3", cursor="a"), "a": a_page("run_2", cursor="b"), "b": a_page("run_1")})
    walk = aiter(GenerationList(book.fetch, None))
    await anext(walk)
    await anyio.wait_all_tasks_blocked()
    assert book.asked == [None, "a"]
    await anext(walk)
    await anyio.wait_all_tasks_blocked()
    assert book.asked == [None, "a", "b"]


async def test_after_an_error_the_walk_can_go_on(flora: Flora, server: Scripted) -> None:
    """The same page is asked for again; nothing is left out."""
    server.on("GET", "/generations", page("run_2", cursor="a"), *[error(500)] * 3, page("run_1"))
    walk = aiter(flora.generations.list())
    assert (await anext(walk)).run_id == "run_2"
    with pytest.raises(InternalServerError):
        await anext(walk)
    assert await ids(walk) == ["run_1"]
    assert [asked.query.get("cursor") for asked in server.asked] == [None, "a", "a", "a", "a"]


async def test_each_async_for_is_a_walk_of_its_own() -> None:
    """A listing can be read as often as wanted."""
    book = Book({None: a_page("run_1")})
    listing = GenerationList(book.fetch, None)
    assert await ids(listing) == await ids(listing) == ["run_1"]


def ten_pages() -> Book:
    """Return a book of ten pages, of five items each."""
    return Book(
        {
            f"{number}" if number else None: a_page(
                *(f"run_{number}_{item}" for item in range(5)), cursor=f"{number + 1}" if number < 9 else None
            )
            for number in range(10)
        }
    )


@pytest.mark.parametrize("readers", [2, 7])
@pytest.mark.parametrize("kind", ["items", "pages"])
async def test_tasks_that_share_a_walk(readers: int, kind: str) -> None:
    """Each item, and each page, reaches exactly one of them, in order; all of them end."""
    book = ten_pages()
    listing = GenerationList(book.fetch, None)
    walk: Any = aiter(listing) if kind == "items" else listing.pages()
    seen: list[str] = []

    async def read() -> None:
        async for thing in walk:
            seen.extend(row.run_id for row in (thing.generations if kind == "pages" else [thing]))
            await asyncio.sleep(0)

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        for _ in range(readers):
            group.create_task(read())
    assert seen == [f"run_{number}_{item}" for number in range(10) for item in range(5)]
    assert book.asked == list(book.pages)


async def test_one_of_the_tasks_that_share_a_walk_is_cancelled() -> None:
    """The page that it waited for goes to another one."""
    book = ten_pages()
    walk = GenerationList(book.fetch, None).pages()
    first, second, third = (asyncio.create_task(anext(walk)) for _ in range(3))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    assert (await third).generations[0].run_id == "run_0_0"
    assert (await anext(walk)).generations[0].run_id == "run_1_0"


async def test_one_of_the_tasks_that_share_a_walk_gets_its_error() -> None:
    """The error reaches the one that asked; the next one asks for the same page again."""
    book = ten_pages()
    kept = book.pages.pop("1")
    walk = GenerationList(book.fetch, None).pages()
    ends = await asyncio.gather(anext(walk), anext(walk), return_exceptions=True)
    assert [type(end) for end in ends] == [GenerationPage, KeyError]
    book.pages["1"] = kept
    assert await anext(walk) is kept


async def test_tasks_that_share_a_walk_that_is_closed() -> None:
    """Those that wait for their turns end."""
    stuck = asyncio.Event()

    async def fetch(cursor: str | None) -> GenerationPage:
        await stuck.wait()
        return a_page("run_1", cursor="a")

    walk = GenerationList(fetch, None).pages()
    readers = [asyncio.ensure_future(anext(walk, None)) for _ in range(3)]
    await asyncio.sleep(0)
    await walk.aclose()
    stuck.set()
    assert [page is None for page in await asyncio.gather(*readers)] == [False, True, True]


async def test_tasks_that_share_a_walk_in_a_circle() -> None:
    """One of them learns of it, once."""
    book = Book({None: a_page("run_2", cursor="a"), "a": a_page("run_1", cursor="a")})
    walk = aiter(GenerationList(book.fetch, None))
    ends = await asyncio.gather(*(anext(walk) for _ in range(4)), return_exceptions=True)
    assert [type(end).__name__ for end in ends] == [*["Generation"] * 2, "PaginationError", "StopAsyncIteration"]


async def test_a_dropped_walk_leaves_nothing_running(flora: Flora, server: Scripted) -> None:
    """After break the look-ahead ends by itself."""
    server.on("GET", "/generations", page("run_1", cursor="a"), silence)
    before = tasks_of_ours()
    async for generation in flora.generations.list():
        assert generation.run_id == "run_1"
        break
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    assert tasks_of_ours() == before


@pytest.mark.parametrize("kind", ["list", "items", "pages"])
async def test_async_with_ends_the_look_ahead(flora: Flora, server: Scripted, kind: str) -> None:
    """On the listing, and on each walk over it."""
    server.on("GET", "/generations", page("run_1", cursor="a"), silence)
    before = tasks_of_ours()
    listing = flora.generations.list()
    closing: Any = {"list": listing, "items": aiter(listing), "pages": listing.pages()}[kind]
    async with closing:
        walk: Any = aiter(closing)
        await anext(walk)
        await asyncio.sleep(0)
        assert len(tasks_of_ours()) == len(before) + 1
    assert tasks_of_ours() == before
    with pytest.raises(StopAsyncIteration):
        await anext(walk)


async def test_closing_a_walk_that_has_nothing_under_way() -> None:
    """Before its first page, and twice."""
    walk = aiter(GenerationList(Book({}).fetch, None))
    await walk.aclose()
    await walk.aclose()
    assert await ids(walk) == []


async def test_a_look_ahead_that_fails_unseen_is_nobodys_concern(caplog: pytest.LogCaptureFixture) -> None:
    """The error of a page that nobody came for is not reported."""
    caplog.set_level(logging.DEBUG)
    book = Book({None: a_page("run_1", cursor="a")})
    async for _ in GenerationList(book.fetch, None):
        await anyio.wait_all_tasks_blocked()
        break
    gc.collect()
    await anyio.wait_all_tasks_blocked()
    assert book.asked == [None, "a"]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_walk_that_outlives_its_loop() -> None:
    """Dropping it then is no error."""
    stuck = asyncio.Event

    async def fetch(cursor: str | None) -> GenerationPage:
        if cursor is not None:
            await stuck().wait()
        return a_page("run_1", cursor="a")

    kept: list[object] = []

    async def begin() -> None:
        walk = aiter(GenerationList(fetch, None))
        await anext(walk)
        kept.append(walk)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    kept.clear()
    gc.collect()
    assert loop.is_closed()


@pytest.mark.parametrize("closed", ["walk", "listing"])
async def test_a_closed_walk_yields_no_more_items(closed: str) -> None:
    """The rest of the page that was read is dropped, as a generator that is closed yields nothing more."""
    listing = GenerationList(Book({None: a_page("run_3", "run_2", cursor="a"), "a": a_page("run_1")}).fetch, None)
    walk = aiter(listing)
    await anext(walk)
    await (walk if closed == "walk" else listing).aclose()
    assert await ids(walk) == []


@pytest.mark.parametrize("closed", ["walk", "listing"])
async def test_a_walk_that_is_closed_while_it_reads_yields_no_more_items(
    flora: Flora, server: Scripted, closed: str
) -> None:
    """The page that another task awaits when the walk is closed is dropped too."""
    arrived = asyncio.Event()

    async def answer_late(request: web.Request) -> web.StreamResponse:
        await arrived.wait()
        return web.json_response({"generations": [row("run_2"), row("run_1")], "meta": {}})

    server.on("GET", "/generations", page("run_3", cursor="a"), answer_late)
    listing = flora.generations.list()
    walk = aiter(listing)
    await anext(walk)
    reader = asyncio.create_task(anext(walk, None))
    while len(server.asked) < 2:
        await asyncio.sleep(0.001)
    await (walk if closed == "walk" else listing).aclose()
    arrived.set()
    assert await reader is None
    assert await ids(walk) == []


async def test_closing_the_client_ends_its_walks(flora: Flora, server: Scripted) -> None:
    """The next page is an error."""
    server.on("GET", "/generations", page("run_1", cursor="a"), silence)
    walk = aiter(flora.generations.list())
    await anext(walk)
    await flora.close()
    with pytest.raises(ClientClosedError):
        await anext(walk)


async def test_what_a_walk_remembers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items far back may be forgotten; those just handed out are not."""
    monkeypatch.setattr(pagination, "MAX_REMEMBERED_ITEMS", 2)
    pages: dict[str | None, GenerationPage] = {None: a_page("run_0", cursor="1")}
    for number in range(1, 50):
        cursor = str(number + 1) if number < 49 else None
        pages[str(number)] = a_page(f"run_{number - 1}", f"run_{number}", cursor=cursor)
    walk = aiter(GenerationList(Book(pages).fetch, None))
    assert await ids(walk) == [f"run_{number}" for number in range(50)]
    assert len(walk._once._seen) <= 4


@given(st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=1, max_size=8), st.none() | st.integers(0, 7))
def test_any_book_is_read_once_from_front_to_back(leaves: list[list[int]], back_to: int | None) -> None:
    """Whatever repeats: every item once, in order; a way back is an error at its end."""

    def cursor(number: int) -> str | None:
        if number < len(leaves):
            return f"c{number}"
        return None if back_to is None else f"c{back_to % len(leaves)}"

    pages: dict[str | None, GenerationPage] = {
        f"c{number}": a_page(*(f"run_{item}" for item in leaf), cursor=cursor(number + 1))
        for number, leaf in enumerate(leaves)
    }
    book = Book(pages)
    seen: list[str] = []

    async def read() -> None:
        async for generation in GenerationList(book.fetch, "c0"):
            seen.append(generation.run_id)

    if back_to is None:
        asyncio.run(read())
    else:
        with pytest.raises(PaginationError):
            asyncio.run(read())
    assert seen == list(dict.fromkeys(f"run_{item}" for leaf in leaves for item in leaf))
    assert book.asked == [f"c{number}" for number in range(len(leaves))]
