"""Webhooks end waits, and polling is a fallback."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from scripted import Scripted, answer, run, started

from flora_async import ConfigurationError, Flora, Inbox, WebhookVerificationError
from flora_async._polling.schedule import PollPolicy, WebhookFallbackSchedule
from flora_async.sandbox import Sandbox, _webhooks
from flora_async.sandbox._virtual_time import VirtualTimeLoop
from flora_async.webhooks import sign

pytestmark = pytest.mark.anyio

SECRET = "whsec_of_a_test"
ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}


def delivery(run_id: str, number: int = 1, kind: str = "completed") -> bytes:
    """Return the body of a webhook."""
    data = {"run_id": run_id, "run_type": "generation", "workspace_id": "ws_1", "status": kind}
    return msgspec.json.encode({"id": f"whd_{number}", "type": f"run.{kind}", "created_at": 1, "data": data})


@asynccontextmanager
async def endpoint(take: Callable[[bytes, dict[str, str]], object]) -> AsyncIterator[str]:
    """Serve a URL that receives webhooks."""

    async def receive(request: web.Request) -> web.Response:
        take(await request.read(), dict(request.headers))
        return web.Response()

    app = web.Application()
    app.router.add_post("/flora", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/flora"
    finally:
        await runner.cleanup()


async def test_a_webhook_ends_a_wait() -> None:
    """A webhook ends a wait with one poll, and no poll is sent before it."""
    async with Scripted() as server, Flora("any", base_url=server.base_url) as flora:
        server.on("POST", "/generate", answer(started("run_1", estimated_seconds=0.1), 201))
        server.on("GET", "/runs/run_1", answer(run(run_id="run_1")))
        inbox = flora.inbox(SECRET)
        begun = await flora.generations.create(**ORDER, callback_url="http://127.0.0.1/x")
        wait = asyncio.create_task(flora.wait_for_run(begun, timeout=None))
        await asyncio.sleep(0.2)
        assert server.count("GET", "/runs/run_1") == 0
        body = delivery("run_1")
        event = inbox.receive(body, sign(body, SECRET))
        assert (event.run_id, event.repeated) == ("run_1", False)
        assert inbox.receive(body, sign(body, SECRET)).repeated, "the same delivery came twice"
        assert (await asyncio.wait_for(wait, 5)).succeeded
        assert server.count("GET", "/runs/run_1") == 1


async def test_a_webhook_before_the_wait() -> None:
    """A webhook that arrives before the wait is remembered, also before the first wait and from another thread."""
    async with Scripted() as server, Flora("any", base_url=server.base_url) as flora:
        inbox = flora.inbox(SECRET)
        for number in (1, 2):
            run_id = f"run_{number}"
            server.on("POST", "/generate", answer(started(run_id), 201))
            server.on("GET", f"/runs/{run_id}", answer(run(run_id=run_id)))
            begun = await flora.generations.create(**ORDER, callback_url="http://127.0.0.1/x")
            body = delivery(run_id, number)
            await asyncio.to_thread(inbox.receive, body, sign(body, SECRET))
            assert (await flora.wait_for_run(begun, timeout=5)).run_id == run_id


async def test_a_webhook_before_the_end(fast_polls: None) -> None:
    """After a webhook for an unfinished run, the run is polled by the default schedule."""
    async with Scripted() as server, Flora("any", base_url=server.base_url) as flora:
        running = answer(run("running", run_id="run_1"))
        server.on("POST", "/generate", answer(started("run_1"), 201))
        server.on("GET", "/runs/run_1", running, running, answer(run(run_id="run_1")))
        inbox = flora.inbox(SECRET)
        begun = await flora.generations.create(**ORDER, callback_url="http://127.0.0.1/x")
        body = delivery("run_1")
        inbox.receive(body, sign(body, SECRET))
        assert (await flora.wait_for_run(begun, timeout=5)).succeeded
        assert server.count("GET", "/runs/run_1") == 3


async def test_a_delivery_whose_processing_failed_is_returned_again() -> None:
    """A repeated delivery is returned each time, marked, to any thread; another inbox receives it as a first one."""
    async with Flora("any") as flora:
        inbox, restarted = flora.inbox(SECRET), flora.inbox(f" {SECRET}\n")
        body = delivery("run_1")
        calls = (asyncio.to_thread(inbox.receive, body, sign(body, SECRET)) for _ in range(50))
        events = await asyncio.gather(*calls)
        assert Counter(event.repeated for event in events) == {False: 1, True: 49}
        assert {(event.id, event.run_id) for event in events} == {("whd_1", "run_1")}
        assert not restarted.receive(body, sign(body, SECRET)).repeated


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("ping", {"run_id": "run_1", "status": "completed"}),
        ("asset.ready", {"asset_id": "asset_1"}),
        ("run.started", {"run_id": "run_1", "status": "running"}),
        ("run.summarized", {"run": "run_1"}),
    ],
)
async def test_an_event_that_ends_no_run_settles_nothing(kind: str, data: dict[str, str]) -> None:
    """A signed event of another kind is returned, and no run is polled for it."""
    async with Flora("any") as flora:
        body = msgspec.json.encode({"id": "whd_1", "type": kind, "created_at": 1, "data": data})
        event = flora.inbox(SECRET).receive(body, sign(body, SECRET))
        assert (event.type, event.repeated) == (kind, False)
        assert flora._poller._finished_early == {}


async def test_the_log_record_of_a_webhook(caplog: pytest.LogCaptureFixture) -> None:
    """The fields of the record leave the keys of structured loggers (event, level, timestamp, message) alone."""
    caplog.set_level("INFO", "flora_async")
    async with Flora("any") as flora:
        body = delivery("run_1")
        flora.inbox(SECRET).receive(body, sign(body, SECRET))
    fields = vars(caplog.records[-1])
    assert (fields["run_id"], fields["webhook_type"], fields["webhook_id"]) == ("run_1", "run.completed", "whd_1")
    assert not fields.keys() & {"event", "level", "timestamp"}


@pytest.mark.virtual_time
async def test_without_a_callback_url_nothing_changes() -> None:
    """With an inbox, a run without callback_url is polled by the default schedule."""
    async with Scripted() as server, Flora("any", base_url=server.base_url) as flora:
        flora.inbox(SECRET)
        server.on("POST", "/generate", answer(started("run_1", estimated_seconds=1.0), 201))
        server.on("GET", "/runs/run_1", answer(run(run_id="run_1")))
        begun = await flora.generations.create(**ORDER)
        assert (await flora.wait_for_run(begun, timeout=10)).succeeded


async def test_unsigned_webhooks_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inbox rejects unsigned requests, requires a secret and does not show it."""
    async with Flora("any") as flora:
        monkeypatch.delenv("FLORA_WEBHOOK_SECRET", raising=False)
        with pytest.raises(ConfigurationError, match="FLORA_WEBHOOK_SECRET"):
            flora.inbox()
        monkeypatch.setenv("FLORA_WEBHOOK_SECRET", SECRET)
        inbox = flora.inbox()
        assert isinstance(inbox, Inbox)
        assert SECRET not in repr(inbox)
        body = delivery("run_1")
        with pytest.raises(WebhookVerificationError):
            inbox.receive(body, sign(body, "whsec_other"))
        assert not inbox.receive(body, sign(body, SECRET)).repeated


def test_the_webhook_fallback_schedule() -> None:
    """The fallback polls first long after the expected end, then at growing intervals."""
    net = WebhookFallbackSchedule(PollPolicy(), 20.0)
    gaps = [net.next_delay(0.0, None) for _ in range(6)]
    assert 54 <= gaps[0] <= 66
    assert 108 <= gaps[1] <= 132
    assert all(270 <= gap <= 330 for gap in gaps[3:])
    late = WebhookFallbackSchedule(PollPolicy(), 600.0)
    assert 180 <= late.next_delay(1000.0, None) <= 220, "some of it has passed"


class Counting(Sandbox):
    """A sandbox that counts the polls of each run."""

    async def _retrieve(self, request: web.Request) -> web.Response:
        self.requests[request.match_info["run_id"]] += 1
        return await super()._retrieve(request)


def settle(waits: int, *, lost: float) -> tuple[int, Counter[int]]:
    """Wait for that many runs at once in virtual time, with the package's own numbers.

    Returns the number of webhooks and a count of runs by number of polls; pages count as -1.
    """

    async def main() -> tuple[int, Counter[int]]:
        came: set[str] = set()
        async with (
            Counting(lost_webhooks=lost) as sandbox,
            Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        ):
            inbox = flora.inbox(sandbox.webhook_secret)

            def take(body: bytes, headers: dict[str, str]) -> None:
                event = inbox.receive(body, headers)
                assert event.run_id is not None
                came.add(event.run_id)

            async def one(number: int, url: str) -> str:
                run = await flora.generate(**{**ORDER, "prompt": f"mug {number}"}, callback_url=url, timeout=None)
                assert run.succeeded
                return run.run_id

            async with endpoint(take) as url:
                settled = await asyncio.gather(*(one(number, url) for number in range(waits)))
            assert set(settled) == set(sandbox.orders)
            polls = Counter(sandbox.requests[run_id] for run_id in settled)
            polls[-1] = sandbox.requests["GET /generations"]
            return len(came), polls

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


@pytest.mark.parametrize("waits", [50, pytest.param(1000, marks=pytest.mark.proof)])
def test_webhooks_end_waits(waits: int) -> None:
    """All waits end by webhook, with at most one GET for each run, history pages included."""
    came, polls = settle(waits, lost=0.0)
    assert came == waits
    assert set(polls) <= {-1, 0, 1}
    assert polls[1] + polls[-1] <= waits


@pytest.mark.parametrize("waits", [50, pytest.param(1000, marks=pytest.mark.proof)])
def test_lost_webhooks(waits: int) -> None:
    """With one webhook in ten lost, all waits end with at most one GET for each run."""
    came, polls = settle(waits, lost=0.1)
    assert 0.8 * waits <= came < waits, "the sandbox loses some"
    assert set(polls) <= {-1, 0, 1}
    assert polls[1] + polls[-1] <= waits


async def test_remembered_webhooks_are_limited() -> None:
    """The number of remembered webhooks is limited, also if no run is awaited."""
    async with Flora("any") as flora:
        inbox = flora.inbox(SECRET)
        flora._poller._finished_early.limit = inbox._seen.limit = 10
        for number in range(50):
            body = delivery(f"run_{number}", number)
            inbox.receive(body, sign(body, SECRET))
        assert len(flora._poller._finished_early) == len(inbox._seen) == 10


async def test_a_restarted_sandbox_sends_webhooks() -> None:
    """A restarted sandbox sends webhooks again."""
    came: list[bytes] = []
    sandbox = Sandbox(time_scale=0.001)
    async with endpoint(lambda body, _: came.append(body)) as url:
        for times in (1, 2):
            async with sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
                await flora.generations.create(**ORDER, callback_url=url)
                while len(came) < times:
                    await asyncio.sleep(0.01)


async def test_the_sandbox_retries_rejected_webhooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sandbox retries a rejected webhook with the same delivery id and signature."""
    monkeypatch.setattr(_webhooks, "RETRY_DELAYS", (0.0, 0.05, 0.05, 0.05))
    came: list[bytes] = []

    def refuse(body: bytes, _headers: dict[str, str]) -> None:
        came.append(body)
        if len(came) < 3:
            raise web.HTTPBadRequest

    async with (
        Sandbox(time_scale=0.01) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
        endpoint(refuse) as url,
    ):
        failed = {**ORDER, "prompt": "a mug [fail:safety_blocked]"}
        begun = await flora.generations.create(**failed, callback_url=url)
        while len(came) < 3:
            await asyncio.sleep(0.01)
        assert len(set(came)) == 1
        assert msgspec.json.decode(came[0])["data"]["error_code"] == "safety_blocked"
        assert msgspec.json.decode(came[0])["data"]["run_id"] == begun.run_id
