"""Settings of one call or one client: the timeout, further headers, and a part of the history."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, answer, generation, run, silence, started

from flora_async import APITimeoutError, ConfigurationError, CreateOutcomeUnknownError, Flora, Order

pytestmark = pytest.mark.anyio

ORDER = Order(type="text", prompt="a mug", workspace_id="ws_1", project_id="prj_1")
START = datetime(2026, 11, 25, tzinfo=UTC)

READS: dict[str, Callable[[Flora], Awaitable[object]]] = {
    "retrieve": lambda flora: flora.generations.retrieve("run_1", timeout=0.1),
    "list": lambda flora: anext(flora.generations.list(timeout=0.1).pages()),
    "workspaces": lambda flora: flora.workspaces.list(timeout=0.1),
    "projects": lambda flora: flora.projects.list(workspace_id="ws_1", timeout=0.1),
    "models": lambda flora: flora.models.list(timeout=0.1),
    "request": lambda flora: flora.request("GET", "/models", timeout=0.1),
}


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Return a server that never responds."""
    async with Scripted() as scripted:
        for path in ("/runs/run_1", "/generations", "/workspaces", "/projects", "/models"):
            scripted.on("GET", path, silence)
        yield scripted.on("POST", "/generate", silence)


@pytest.mark.parametrize("call", READS.values(), ids=READS)
async def test_a_read_has_its_own_timeout(server: Scripted, call: Callable[[Flora], Awaitable[object]]) -> None:
    """A read with a timeout of its own ends by it, however long the client's timeout is."""
    async with Flora("sk_1", base_url=server.base_url, timeout=60, max_retries=0) as flora:
        with pytest.raises(APITimeoutError):
            await call(flora)


async def test_a_longer_timeout_than_the_client_s(server: Scripted) -> None:
    """A call may also take longer than the client's timeout allows."""

    async def slow(_request: Any) -> Any:
        await asyncio.sleep(0.3)
        return await answer(run(run_id="run_1"))(_request)

    server.on("GET", "/runs/run_1", slow)
    async with Flora("sk_1", base_url=server.base_url, timeout=0.1, max_retries=0) as flora:
        assert (await flora.generations.retrieve("run_1", timeout=5)).succeeded
        with pytest.raises(APITimeoutError):
            await flora.generations.retrieve("run_1")


async def test_a_create_has_its_own_timeout(server: Scripted, fast_retries: None) -> None:
    """A create that ends by its own timeout may have been accepted, and its error says so."""
    server.on("GET", "/generations", answer({"generations": "none"}))
    async with Flora("sk_1", base_url=server.base_url, max_retries=0) as flora:
        for start in (flora.generations.create, flora.start_run):
            with pytest.raises(CreateOutcomeUnknownError):
                await start(ORDER, timeout=0.1)
        for wrong in (0, -1, True, "5"):
            with pytest.raises(ConfigurationError, match="timeout must be"):
                await flora.generations.create(ORDER, timeout=wrong)  # type: ignore[arg-type]
    assert server.count("POST", "/generate") == 2


async def test_default_headers_go_to_flora(server: Scripted) -> None:
    """Each API request, creates included, has the further headers beside the client's own."""
    server.on("GET", "/runs/run_1", answer(run(run_id="run_1"))).on("POST", "/generate", answer(started("run_1"), 201))
    headers = {"X-Gateway-Token": "gw_1", "cf-access-client-id": "id"}
    async with Flora("sk_1", base_url=server.base_url, default_headers=headers) as flora:
        await flora.generations.create(ORDER)
        await flora.generations.retrieve("run_1")
    for asked in server.asked:
        assert asked.headers["X-Gateway-Token"] == "gw_1"
        assert asked.headers["CF-Access-Client-Id"] == "id"
        assert asked.headers["Authorization"] == "Bearer sk_1"
        assert asked.headers["User-Agent"].startswith("flora-async/")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"authorization": "x"}, "must not have authorization"),
        ({"Idempotency-Key": "x"}, "must not have Idempotency-Key"),
        ({"Host": "x"}, "must not have Host"),
        ({"Content-Length": "1"}, "must not have Content-Length"),
        ({"Transfer-Encoding": "chunked"}, "must not have Transfer-Encoding"),
        ({"Cookie": "a=b"}, "must not have Cookie"),
        ({"X Y": "x"}, "a name that HTTP does not allow"),
        ({"X-A": "secret\r\nX-B: c"}, "printable ASCII"),
        ({"X-A": " secret"}, "printable ASCII"),
        ({"X-A": 5}, "printable ASCII"),
        ({"X-A": "1", "x-a": "2"}, "twice"),
        ([("X-A", "1")], "must be a mapping"),
    ],
)
def test_default_headers_that_are_refused(headers: Any, message: str) -> None:
    """Headers that the client sets itself, and text that HTTP cannot carry, are refused; the error shows no value."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        Flora("sk_1", default_headers=headers)
    assert "secret" not in str(caught.value)


def hours(*numbers: int, cursor: str | None = None) -> Any:
    """Return a page of runs that were created so many hours after the start, newest first."""
    items = [
        generation(f"run_{number}", created_at=(START + timedelta(hours=number)).timestamp()) for number in numbers
    ]
    return answer({"generations": items, "meta": {"next_cursor": cursor}})


async def test_a_part_of_the_history(server: Scripted) -> None:
    """Since and until bound the runs by their creation; no page is read after one that ends with an older run."""
    pages = (hours(9, 8, 7, cursor="c1"), hours(6, 5, 4, cursor="c2"), hours(3, 2, 1, cursor="c3"), silence)
    async with Flora("sk_1", base_url=server.base_url, timeout=5) as flora:
        server.on("GET", "/generations", *pages)
        since, until = START + timedelta(hours=3), START + timedelta(hours=7)
        read = [run.run_id async for run in flora.generations.list(since=since, until=until)]
        assert read == ["run_6", "run_5", "run_4", "run_3"]
        server.on("GET", "/generations", *pages)
        sizes = [len(page.generations) async for page in flora.generations.list(since=since, until=until).pages()]
        assert sizes == [0, 3, 1]
        naive = (START + timedelta(hours=8)).astimezone().replace(tzinfo=None)
        server.on("GET", "/generations", *pages)
        assert [run.run_id async for run in flora.generations.list(since=naive)] == ["run_9", "run_8"]
        for wrong in ("2026-11-25", 1.5):
            with pytest.raises(ConfigurationError, match="since must be a datetime"):
                flora.generations.list(since=wrong)  # type: ignore[arg-type]


async def test_listings_ask_for_full_pages(server: Scripted) -> None:
    """Without a limit each request asks for 100 items; None leaves it to FLORA."""
    server.on("GET", "/generations", hours(1))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        _ = [run async for run in flora.generations.list()]
        _ = [run async for run in flora.generations.list(limit=None)]
    assert [asked.query.get("limit") for asked in server.asked] == ["100", None]


async def test_a_list_that_is_awaited(server: Scripted) -> None:
    """An await on a listing names the loop that reads it, also with a window."""
    async with Flora("sk_1", base_url=server.base_url) as flora:
        with pytest.raises(ConfigurationError, match="Use async for"):
            await flora.generations.list(since=START)  # type: ignore[misc]


async def test_default_headers_stay_away_from_media(server: Scripted, tmp_path: Path) -> None:
    """The host of an output receives neither the further headers nor the key."""
    made = {"output_id": "o", "type": "imageUrl", "url": f"{server.base_url}/media/x.png"}
    server.on("GET", "/runs/run_1", answer(run(run_id="run_1", outputs=[made])))
    server.on("GET", "/media/x.png", answer(b"PNG", headers={"Content-Type": "image/png"}))
    async with Flora("sk_1", base_url=server.base_url, default_headers={"X-Gateway-Token": "gw_1"}) as flora:
        await flora.download(await flora.generations.retrieve("run_1"), tmp_path)
    (api, media) = server.asked
    assert api.headers["X-Gateway-Token"] == "gw_1"
    assert media.path == "/media/x.png"
    assert not {"x-gateway-token", "authorization"} & {name.lower() for name in media.headers}
