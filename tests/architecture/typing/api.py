"""What users write, checked by the type checkers only: nothing here is run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any, assert_type

import backoff
import msgspec
import pandas
import polars
import pyarrow

from flora_async import (
    APIError,
    CompletedOutcome,
    CreateOutcomeUnknownError,
    Event,
    FailedOutcome,
    FieldError,
    Flora,
    FloraError,
    Generation,
    GenerationPage,
    HistoryIterator,
    ModelRef,
    Order,
    Outcome,
    Outcomes,
    Output,
    PageIterator,
    PollSchedule,
    Response,
    Run,
    RunFailedError,
    RunLike,
    RunTimeoutError,
    RunWatch,
    StartedRun,
    WaitFinished,
    telemetry,
)
from flora_async.export import ExportResult, record_batches, rows, to_arrow, to_pandas, to_parquet, to_polars
from flora_async.sandbox import Sandbox


class Mine(msgspec.Struct):
    """What somebody expects of an answer."""

    models: list[dict[str, str]]


class Row(Order, frozen=True, kw_only=True):
    """An order with the caller's own number."""

    line: int


def mine() -> Generator[float, Any, None]:
    """Plan looks by hand."""
    yield 0
    while True:
        yield 2.5


async def use(flora: Flora, anything: RunLike) -> None:
    """Use everything once."""
    started = await flora.generations.create(
        type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1", model="m", params={"seed": 7}
    )
    assert_type(started, StartedRun)
    order = Order(type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1")
    assert_type(await flora.generations.create(order, idempotency_key="key-1"), StartedRun)
    assert_type(await flora.generate(order, timeout=5, on_update=print), Run)
    assert_type(await flora.generations.retrieve(started), Run)
    assert_type(started.estimated_seconds, float | None)
    assert_type(started.model, ModelRef | None)

    run = await flora.wait_for_run(started, timeout=None, on_update=print, poll=lambda: backoff.constant(interval=2))
    assert_type(run, Run)
    assert_type(run.outputs, tuple[Output, ...])
    assert_type(run.succeeded, bool)
    await flora.wait_for_run(anything, poll=mine)
    schedule: PollSchedule = backoff.expo(base=1.5, max_value=5)
    await flora.generate(
        type="text", prompt="a poem", workspace_id="ws_1", project_id="prj_1", timeout=60, poll=lambda: schedule
    )

    listing = flora.generations.list(cursor=None, limit=100, status="completed", project_id="prj_1")
    assert_type(aiter(listing), HistoryIterator[GenerationPage, Generation])
    assert_type(listing.pages(), PageIterator[GenerationPage])
    async for generation in listing:
        assert_type(generation, Generation)
        assert_type(await flora.wait_for_run(generation), Run)
    async with flora.generations.list().pages() as pages:
        async for page in pages:
            assert_type(page, GenerationPage)
            assert_type(page.next_cursor, str | None)

    watch = flora.watch_run("run_1", timeout=5)
    assert_type(watch, RunWatch)
    async for seen in watch:
        assert_type(seen, Run)

    assert_type(await flora.download(run, "out"), list[Path])
    assert_type(await flora.download(run.outputs[0], Path("out")), list[Path])

    assert_type(await flora.request("GET", "/models", params={"type": "image"}), Response[dict[str, object]])
    assert_type(await flora.request("GET", "/models", decode_as=Mine), Response[Mine])
    assert_type((await flora.request("GET", "/models", decode_as=Mine)).data.models, list[dict[str, str]])


async def use_many(flora: Flora, runs: list[StartedRun]) -> None:
    """Use what takes many."""
    orders = [Order(type="text", prompt="a poem", workspace_id="ws_1", project_id="prj_1")]

    async def lazily() -> AsyncIterator[Order]:
        for order in orders:
            yield order

    async for outcome in flora.generate_many(orders, concurrency=8, max_cost=1.5):
        assert_type(outcome.order, Order)
        assert_type(outcome.result(), Run)
        if outcome.error is not None:
            assert_type(outcome.error, FloraError)
            raise outcome.error
        assert_type(outcome.run, Run)
    async for row in flora.generate_many(
        [Row(type="text", prompt="x", workspace_id="ws_1", project_id="prj_1", line=1)]
    ):
        assert_type(row.order.line, int)
        kept: Outcome[Row] = row
        assert_type(kept.run.outputs if kept.run else kept.error, tuple[Output, ...] | FloraError | None)
    async with flora.generate_many(lazily()) as outcomes:
        assert_type(outcomes, Outcomes[Order])
    async for ended in flora.as_completed([*runs, "run_1"], timeout=60):
        assert_type(ended.run_id, str)
        assert_type(ended.order, None)
        known: Outcome[None] = ended
        match known:
            case CompletedOutcome(run=run):
                assert_type(run, Run)
            case FailedOutcome(error=error):
                assert_type(error, FloraError)
    async for seen in flora.watch_run(runs):
        assert_type(seen, Run)


async def fail(flora: Flora) -> None:
    """Meet errors."""
    try:
        await flora.wait_for_run("run_1")
    except RunFailedError as failed:
        assert_type(failed.run, Run)
        assert_type(failed.run_id, str)
    except RunTimeoutError as late:
        assert_type(late.run, Run | None)
        assert_type(late.run_id, str)
    except CreateOutcomeUnknownError as unknown:
        assert_type(unknown.window, tuple[float, float])
        assert_type(await flora.recover_create(unknown), StartedRun)
    except APIError as error:
        assert_type(error.fields, tuple[FieldError, ...])
        assert_type(error.retry_after, float | None)


def hear(event: Event) -> None:
    """Hear of what happens."""
    match event:
        case WaitFinished():
            assert_type(event.lag, float | None)
        case _:
            pass


async def see() -> None:
    """Make tables of the history, and look inside."""
    async with Flora(on_event=hear) as flora, Flora(on_event=telemetry.observe()):
        listing = flora.generations.list(limit=100)
        assert_type(await to_parquet(listing, "h.parquet"), ExportResult)
        async for batch in record_batches(listing):
            assert_type(batch, pyarrow.RecordBatch)
        runs = [generation async for generation in listing]
        assert_type(rows(runs), list[dict[str, object]])
        assert_type(to_arrow(runs), pyarrow.Table)
        assert_type(to_pandas(runs), pandas.DataFrame)
        assert_type(to_polars(runs), polars.DataFrame)


async def sandbox() -> None:
    """Use a FLORA of one's own."""
    async with Sandbox(time_scale=0.1) as own, Flora(own.api_key, base_url=own.base_url) as flora:
        await use(flora, "run_1")
