"""``flora.costs`` and ``flora.estimate``: sums over the history, and prices from charges or the catalogue."""

import sys
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from scripted import Scripted, answer, error, generation, started

from flora_async import (
    ActionOrder,
    AnyOrder,
    ConfigurationError,
    Flora,
    Generation,
    GenerationPage,
    Order,
    PriceHistory,
    ResponseDecodeError,
    TechniqueOrder,
)
from flora_async._resources.pagination import PageIterator
from flora_async._resources.spending import SeenPrices, sum_history
from flora_async.models import ModelRef, PageMeta
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a sandbox with quotes that are too low."""
    async with Sandbox(quote_factor=3.5) as own:
        yield own


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Return a client of the sandbox."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=0) as client:
        yield client


def order(kind: Any = "image", prompt: str = "a mug", **more: Any) -> Order:
    """Return an order."""
    return Order(type=kind, prompt=prompt, workspace_id="ws_1", **{"project_id": "prj_1", **more})


# -- costs


async def test_rows_by_model_and_project(flora: Flora) -> None:
    """Charges, failures and missing charges are counted in their rows, dearest first, and sum up in the total."""
    orders = [order("text")] * 3 + [order("video"), order(prompt="[fail:x]"), order(project_id="prj_2")]
    for each in orders:
        async for _ in flora.generate_many([each]):
            pass
    await flora.generations.create(order("text", "[slow]"))
    table = await flora.costs()
    assert [row.key for row in table.rows] == ["sandbox-video", "sandbox-image", "sandbox-text"]
    image, text = table.rows[1], table.rows[2]
    assert (image.runs, image.completed, image.failed, image.charged) == (2, 1, 1, 0.04)
    assert (text.runs, text.completed, text.unsettled) == (4, 3, 1)
    assert (table.total.runs, table.total.failed, table.total.unsettled) == (7, 1, 1)
    assert table.total.charged == pytest.approx(0.57)
    projects = await flora.costs(by="project")
    assert {row.key: row.runs for row in projects.rows} == {"prj_1": 6, "prj_2": 1}
    assert (await flora.costs(project_id="prj_2")).total.runs == 1
    (day,) = (await flora.costs(by="day")).rows
    assert datetime.fromisoformat(day.key or "").date() >= (datetime.now(UTC) - timedelta(days=1)).date()


def on(days: int, number: int, **more: Any) -> dict[str, object]:
    """Return an item of the history, so many days after 1 November 2026."""
    moment = datetime(2026, 11, 1, tzinfo=UTC) + timedelta(days=days)
    return generation(f"run_{number}", created_at=moment.timestamp(), charged_cost=0.1, **more)


def page_of(*rows: dict[str, object], cursor: str | None = None) -> Any:
    """Answer with a page of the history."""
    return answer({"generations": list(rows), "meta": {"next_cursor": cursor}})


async def test_a_part_of_the_history() -> None:
    """The reading ends with the first page that has older runs only; an item that shifts is counted once."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, max_retries=0) as flora:
        pages = [
            page_of(on(9, 9), on(8, 8), cursor="a"),
            page_of(on(8, 8), on(6, 7), on(4, 4), cursor="b"),
            page_of(on(3, 3), cursor="c"),
            page_of(on(2, 2), cursor="d"),
        ]
        server.on("GET", "/generations", *pages)
        table = await flora.costs(since=datetime(2026, 11, 6, tzinfo=UTC), by="day")
        assert [(row.key, row.runs) for row in table.rows] == [("2026-11-07", 1), ("2026-11-09", 1), ("2026-11-10", 1)]
        assert table.total.charged == pytest.approx(0.3)
        assert server.count("GET", "/generations") <= 4  # one page may have been prefetched
        broken = on(9, 9) | {"status": 3}
        server.on("GET", "/generations", page_of(broken, on(8, 8)))
        table = await flora.costs()
        assert (table.broken, table.total.runs, table.rows[0].key) == (1, 1, None)


@pytest.mark.parametrize(
    "wrong",
    [{"since": "yesterday"}, {"since": datetime(2026, 11, 1)}, {"by": "prompt"}],  # noqa: DTZ001
)
async def test_arguments_that_make_no_sense(flora: Flora, wrong: dict[str, Any]) -> None:
    """They are refused before a request."""
    with pytest.raises(ConfigurationError):
        await flora.costs(**wrong)


async def test_the_longest_span(flora: Flora) -> None:
    """A span before the first year counts everything."""
    assert (await flora.costs(since=timedelta.max)).total.runs == 0


async def test_the_memory_is_bounded() -> None:
    """Ids of recent pages and the sums are kept, not the items; ``e2e/test_money.py`` reads a million over HTTP."""
    count = 30_000
    model = ModelRef(model_id="m")

    async def fetch(cursor: str | None) -> GenerationPage:
        first = int(cursor or 0)
        rows = tuple(
            Generation(
                run_id=f"run_{number}",
                status="completed",
                progress=100,
                created_at=2e9 - number,
                charged_cost=0.01,
                generation_id=f"run_{number}",
                project_id=f"prj_{number % 50}",
                workspace_id="ws_1",
                model=model,
            )
            for number in range(first, first + 100)
        )
        following = str(first + 100) if first + 100 < count else None
        return GenerationPage(generations=rows, meta=PageMeta(next_cursor=following))

    tracemalloc.start()
    try:
        table = await sum_history(PageIterator(fetch, None), "project")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (table.total.runs, len(table.rows)) == (count, 50)
    assert table.total.charged == pytest.approx(count * 0.01)
    assert peak < 10e6


# -- estimates


async def test_sources_of_an_estimate(sandbox: Sandbox, flora: Flora) -> None:
    """The catalogue first, then the charges of the client's own runs; nothing is started."""
    cheap, free = order(model="sandbox-image"), order("audio")
    unknown = await flora.estimate([cheap, cheap, free])
    image, audio = unknown.kinds
    assert (image.basis, image.orders, image.usd, image.high) == ("catalogue", 2, 0.08, 0.32)
    assert (audio.basis, audio.usd, unknown.usd, unknown.basis) == ("unknown", None, None, "unknown")
    assert sandbox.accepted == 0
    await flora.generate(cheap)
    await flora.generate(free)
    seen = await flora.estimate([cheap, cheap, free])
    assert (seen.basis, seen.orders, [each.runs for each in seen.kinds]) == ("charges", 3, [1, 1])
    assert seen.usd == seen.low == seen.high == pytest.approx(0.1)
    assert 4 < seen.seconds < 9
    assert (await flora.estimate(order())).usd == 0.04  # no model: the prices of all models of the type
    assert sandbox.requests["GET /models"] == 1
    assert (await flora.estimate([])).usd == 0


def test_the_prices_of_all_runs_that_were_seen() -> None:
    """Each completed run counts once in the mean, the range and the duration, and costs fewer than ten calls."""
    prices, calls = SeenPrices(), 0
    runs = [(0.01 * number, 100.0 - number) for number in range(50)]

    def count(_frame: object, event: str, _function: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        for charge, seconds in runs:
            prices.record(("image", "fast"), charge, seconds)
    finally:
        sys.setprofile(None)
    seen = prices.find(("image", "fast"), {})
    assert seen is not None
    assert (seen.runs, seen.low, seen.high) == (50, 0.0, runs[-1][0])
    assert (seen.mean, seen.seconds) == pytest.approx((0.245, 75.5))
    assert calls < 10 * len(runs)


async def test_charges_that_come_late_are_seen(sandbox: Sandbox) -> None:
    """A charge that appears after the end of the run is a price too."""
    async with Sandbox(charge_delay=30) as late, Flora(late.api_key, base_url=late.base_url) as flora:
        await flora.generate(order(), settle=True)
        estimate = await flora.estimate(order())
        assert (estimate.basis, estimate.usd, estimate.kinds[0].runs) == ("charges", 0.04, 1)
        assert estimate.seconds < 10


async def test_charges_of_a_database(flora: Flora) -> None:
    """Prices that were seen elsewhere count beside the client's own."""
    past: dict[tuple[str, str | None], PriceHistory] = {
        ("video", "m"): PriceHistory(runs=9, mean=1.0, low=0.5, high=2.0)
    }
    estimate = await flora.estimate([order("video", model="m")] * 2, past=past)
    assert (estimate.usd, estimate.low, estimate.high, estimate.kinds[0].runs) == (2.0, 1.0, 4.0, 9)
    assert estimate.seconds == pytest.approx(60)


async def test_a_quote_is_requested_only_if_asked_for(sandbox: Sandbox, flora: Flora) -> None:
    """The quote of FLORA is too low, so the range is wide; FLORA's refusal of the parameter falls back."""
    estimate = await flora.estimate([order()] * 3, quote=True)
    assert estimate.basis == "quote"
    assert estimate.usd == pytest.approx(3 * 0.011429)
    assert sandbox.accepted == 0
    assert sandbox.requests["POST /generate"] == 1
    sandbox.fail_next(400, method="POST")
    assert (await flora.estimate(order(), quote=True)).basis == "unknown"


async def test_a_quote_that_starts_a_run() -> None:
    """If FLORA ignores the parameter, the run is billed: the error has its id, and nothing is sent again."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("POST", "/generate", answer(started("run_paid"), 201))
        with pytest.raises(ResponseDecodeError, match="billed") as caught:
            await flora.estimate(order(), quote=True)
        assert caught.value.run_id == "run_paid"
        assert server.count("POST", "/generate") == 1
        assert msgspec.json.decode(server.asked[0].body)["quote"] is True


async def test_techniques_and_actions_have_declared_costs() -> None:
    """Their costs come from their declarations."""
    async with Scripted() as server, Flora("sk_1", base_url=server.base_url, max_retries=0) as flora:
        technique = {"technique_id": "tech_1", "name": "t", "run_cost": 0.5, "inputs": [], "outputs": []}
        action = {"action_id": "flip-image", "name": "f", "charged_cost": 0, "inputs": [], "outputs": [], "params": []}
        server.on("GET", "/techniques/tech_1", answer(technique)).on("GET", "/actions/flip-image", answer(action))
        server.on("GET", "/models", error(404))
        orders: list[AnyOrder] = [
            TechniqueOrder(technique_id="tech_1", workspace_id="ws_1", inputs={}),
            ActionOrder(action_id="flip-image", workspace_id="ws_1", project_id="prj_1", inputs=()),
        ]
        estimate = await flora.estimate(orders)
        assert [(each.kind, each.usd, each.basis) for each in estimate.kinds] == [
            ("technique", 0.5, "catalogue"),
            ("action", 0.0, "catalogue"),
        ]


async def test_what_is_no_order(flora: Flora) -> None:
    """A thing that is no order is refused."""
    wrong: Any = ["a mug"]
    with pytest.raises(ConfigurationError, match="takes orders"):
        await flora.estimate(wrong)
