"""Spans and metrics on OpenTelemetry, beside its own instrumentation of aiohttp."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import backoff
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from programs import complaints_of
from scripted import RUN_ID, Scripted, answer, error, generation, history, run, started

from flora_async import Flora, RunFailedError, RunTimeoutError, telemetry
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

GUIDE = (Path(__file__).parent.parent / "docs" / "guide" / "telemetry.md").read_text(encoding="utf-8")
ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}


class Kept:
    """What was exported."""

    def __init__(self) -> None:
        self._spans = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._spans))
        self.on_event = telemetry.observe(tracer_provider=self.tracers, meter_provider=MeterProvider([self._reader]))

    def spans(self, name: str) -> list[ReadableSpan]:
        """Give the ended spans of a name, in order of their beginning."""
        ended = [span for span in self._spans.get_finished_spans() if span.name == name]
        return sorted(ended, key=lambda span: span.start_time or 0)

    def metric(self, name: str) -> dict[tuple[object, ...], float]:
        """Give a metric: its sum by the values of its attributes."""
        read = self._reader.get_metrics_data()
        assert read is not None
        (scope,) = read.resource_metrics[0].scope_metrics
        points = [point for metric in scope.metrics if metric.name == name for point in metric.data.data_points]
        return {
            tuple((point.attributes or {}).values()): point.value if hasattr(point, "value") else point.sum
            for point in points
        }


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
def kept() -> Kept:
    """Give a place for what is exported."""
    return Kept()


@pytest.fixture
async def flora(server: Scripted, kept: Kept) -> AsyncIterator[Flora]:
    """Give a client that is observed."""

    def often() -> Any:
        return backoff.constant(interval=[0.01])

    async with Flora("sk_1", base_url=server.base_url, poll=often, on_event=kept.on_event) as client:
        yield client


async def until(so: Callable[[], object]) -> None:
    """Let the loop run until something is so."""
    with anyio.fail_after(30):
        while not so():
            await asyncio.sleep(0.001)


def id_of(span: ReadableSpan | trace.SpanContext | None) -> int:
    """Give the id of a span."""
    found = span.context if isinstance(span, ReadableSpan) else span
    assert found is not None
    return found.span_id


# -- spans


async def test_a_wait_and_its_looks(flora: Flora, server: Scripted, kept: Kept) -> None:
    """Each wait below what was current where it began, each look below its wait; afterwards all is as it was."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("running")), answer(run(charged_cost=0.04)))
    with kept.tracers.get_tracer("mine").start_as_current_span("mine") as mine:
        await flora.wait_for_run(RUN_ID)
        assert trace.get_current_span() is mine
    (wait,), polls, (outer,) = kept.spans("flora.wait"), kept.spans("flora.poll"), kept.spans("mine")
    assert id_of(wait.parent) == id_of(outer)
    assert [id_of(look.parent) for look in polls] == [id_of(wait)] * 2
    assert dict(wait.attributes or {}) == {
        "flora.run_id": RUN_ID,
        "flora.polls": 2,
        "flora.status": "completed",
        "flora.charged_cost": 0.04,
    }
    assert dict(polls[0].attributes or {}) == {"flora.how": "run", "flora.runs": 1}
    assert wait.status.status_code is StatusCode.UNSET
    assert (wait.end_time or 0) >= (polls[-1].end_time or 0)


async def test_a_page_is_linked_to_the_waits_that_it_serves(flora: Flora, server: Scripted, kept: Kept) -> None:
    """Below one, and linked to the others."""
    ids = ["run_1", "run_2", "run_3"]
    server.on("GET", "/generations", history(*(generation(run_id) for run_id in ids)))
    async for outcome in flora.as_completed(ids):
        assert outcome.run
    waits = {id_of(wait) for wait in kept.spans("flora.wait")}
    (look,) = kept.spans("flora.poll")
    assert len(waits) == 3
    assert {id_of(look.parent), *(id_of(link.context) for link in look.links)} == waits
    assert len(look.links) == 2


@pytest.mark.virtual_time
@pytest.mark.parametrize("way", ["failed", "late", "cancelled"])
async def test_how_a_wait_ended(flora: Flora, server: Scripted, kept: Kept, way: str) -> None:
    """A failed run and an error are errors; that nobody waits any more is none."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run("failed" if way == "failed" else "running")))
    if way == "failed":
        with pytest.raises(RunFailedError):
            await flora.wait_for_run(RUN_ID)
    elif way == "late":
        with pytest.raises(RunTimeoutError):
            await flora.wait_for_run(RUN_ID, timeout=0.05)
    else:
        waiting = asyncio.create_task(flora.wait_for_run(RUN_ID))
        await until(lambda: server.asked)
        waiting.cancel()
        await asyncio.wait([waiting])
    await until(lambda: kept.spans("flora.wait"))
    (wait,) = kept.spans("flora.wait")
    attributes = wait.attributes or {}
    status, told = {
        "failed": (StatusCode.ERROR, ("failed", None)),
        "late": (StatusCode.ERROR, (None, "RunTimeoutError")),
        "cancelled": (StatusCode.UNSET, (None, "CancelledError")),
    }[way]
    assert wait.status.status_code is status
    assert (attributes.get("flora.status"), attributes.get("error.type")) == told


async def test_two_waits_for_one_run(flora: Flora, server: Scripted, kept: Kept) -> None:
    """Two spans; the look that serves both is below one, and linked to the other."""
    server.on("GET", f"/runs/{RUN_ID}", answer(run()))
    await asyncio.gather(flora.wait_for_run(RUN_ID), flora.wait_for_run(RUN_ID))
    waits = {id_of(wait) for wait in kept.spans("flora.wait")}
    (look,) = kept.spans("flora.poll")
    assert len(waits) == 2
    assert {id_of(look.parent), *(id_of(link.context) for link in look.links)} == waits


# -- metrics


@pytest.mark.virtual_time
async def test_what_is_counted(flora: Flora, server: Scripted, kept: Kept) -> None:
    """Requests, retries, 429s, runs and their cost, looks and lag of each wait."""
    server.on("POST", "/generate", error(429, headers={"retry-after": "0"}), answer(started(), 201))
    server.on("GET", f"/runs/{RUN_ID}", error(500), answer(run(completed_at=1.0)))
    await flora.generate(**ORDER)
    assert kept.metric("flora.client.requests") == {
        ("POST", "/generate", 429, "RateLimitError"): 1,
        ("POST", "/generate", 201): 1,
        ("GET", "/runs/{id}", 500, "InternalServerError"): 1,
        ("GET", "/runs/{id}", 200): 1,
    }
    assert kept.metric("flora.client.retries") == {("/generate", "RateLimitError"): 1}
    assert kept.metric("flora.client.rate_limits") == {("/generate",): 1}
    assert kept.metric("flora.run.created") == {("image",): 1}
    assert kept.metric("flora.run.cost") == {("image",): 0.04}
    assert kept.metric("flora.run.polls") == {("completed",): 2}
    assert 0 <= kept.metric("flora.run.lag")[("completed",)] <= kept.metric("flora.run.wait")[("completed",)] + 0.1


async def test_requests_of_uploads_have_templates(flora: Flora, server: Scripted, kept: Kept) -> None:
    """The operations of assets are counted each by its own path, without ids."""
    for path in ("/assets/asset_1", "/assets/asset_2"):
        server.on("GET", path, answer({"asset_id": path[-7:], "status": "ready", "url": "https://a.example/1.png"}))
        await flora.assets.retrieve(path[-7:])
    assert kept.metric("flora.client.requests") == {("GET", "/assets/{id}", 200): 2}


async def test_attributes_have_few_values(flora: Flora, server: Scripted, kept: Kept) -> None:
    """What a caller asks for by himself is _OTHER."""
    for number in range(3):
        server.on("PROPFIND", f"/coffee/{number}", answer({}))
        await flora.request("PROPFIND", f"/coffee/{number}")
    assert kept.metric("flora.client.requests") == {("_OTHER", "_OTHER", 200): 3}


# -- the guide: what is instrumented there is instrumented everywhere in a process, so each runs in its own


async def printed(word: str, tmp_path: Path) -> list[str]:
    """Run the program of the guide that has this word, and give what it prints."""
    (program,) = (block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if word in block)
    path = tmp_path / "program.py"
    path.write_text(program, encoding="utf-8")
    async with Sandbox(time_scale=0.01) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-X", "dev", str(path)),
            env={"FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url, "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
    assert complaints_of(complaints) == ""
    return output.decode().splitlines()


async def test_one_trace_with_the_wait_its_looks_and_their_http_spans(tmp_path: Path) -> None:
    """As opentelemetry-instrumentation-aiohttp-client makes them, unchanged."""
    lines = await printed("AioHttpClientInstrumentor", tmp_path)
    depths = [((len(line) - len(line.lstrip())) // 3, line.split()[0]) for line in lines]
    second = depths.index((0, "make"), 1)
    video, images = depths[:second], depths[second:]
    polls = [(2, "flora.poll"), (3, "GET")]
    assert video[:3] == [(0, "make"), (1, "POST"), (1, "flora.wait")]
    assert video[3:] == polls * (len(video[3:]) // 2)
    assert video[3:]
    assert [line for line in images if line[0] == 1] == [(1, "POST")] * 4 + [(1, "flora.wait")] * 4
    assert [line for line in images if line[0] > 1] == polls * (len(images[9:]) // 2)
    assert any("page" in line and "linked to" in line for line in lines)


async def test_the_metrics_of_a_burst(tmp_path: Path) -> None:
    """A hundred runs: all created, none twice, all known to have ended."""
    lines = await printed("InMemoryMetricReader", tmp_path)
    said = dict(line.split(": ", 1) for line in lines)
    sums = [line.split(": ")[1] for line in lines if line.startswith("flora.run.created")]
    assert sorted(sums) == ["50 image", "50 text"]
    assert said["flora.client.rate_limits {response}"].split()[0] != "0"
    assert any(line.startswith("flora.client.retries") for line in lines)
    for name in ("flora.run.wait s", "flora.run.polls {poll}", "flora.run.lag s"):
        assert said[name].startswith("100 x, ")


# -- without


def test_without_the_extra_it_says_what_to_install() -> None:
    """In one sentence; the package itself does not load OpenTelemetry."""
    program = (
        "import sys, flora_async; assert 'opentelemetry' not in sys.modules; sys.modules['opentelemetry'] = None\n"
        "try: import flora_async.telemetry\n"
        "except flora_async.ConfigurationError as error: print(error)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "telemetry needs OpenTelemetry: pip install 'flora-async[otel]'\n"
