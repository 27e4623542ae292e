"""A rate limit that clients share, in virtual time: together they send what one would."""

import asyncio
import logging
from collections.abc import Callable

import msgspec
import pytest
from test_rate_limit import Admitting, call, turns

from flora_async import Allowance, ClientClosedError, ConfigurationError, Flora
from flora_async._http.allowance import LOOK_INTERVAL, MAX_LEAD, RETRY_INTERVAL, UPDATE_TIMEOUT, SharedRate, StoredRate
from flora_async._http.rate_limit import RateLimiter, RateLimitPolicy
from flora_async._http.retry import RetryPolicy

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

POLICY = RateLimitPolicy()
SKEW = 1e6
"""The shared clock less that of the event loop, in seconds."""


class Shared:
    """An allowance in memory. Each update takes three milliseconds, and its transaction is made twice."""

    def __init__(self) -> None:
        self.state: bytes | None = None
        self.updates = 0
        self.fault: Exception | None = None
        self.hangs = False
        self.skew = SKEW
        self._lock = asyncio.Lock()

    async def update(self, base_url: str, change: Callable[[bytes | None, float], bytes | None], /) -> None:
        """Change the state, unless a fault is set."""
        assert base_url == "url"
        self.updates += 1
        async with self._lock:
            await asyncio.sleep(1e9 if self.hangs else 0.003)
            if self.fault is not None:
                raise self.fault
            now = asyncio.get_running_loop().time() + self.skew
            change(self.state, now - 0.001)
            self.state = change(self.state, now)


def client(shared: Allowance) -> RateLimiter:
    """Return the rate limiter of a client with an allowance."""
    limiter = RateLimiter(POLICY, RetryPolicy())
    limiter.rate = SharedRate(shared, "url", limiter, POLICY)
    return limiter


async def use(flora: Admitting, limiters: list[RateLimiter], seconds: float, *, each: int = 12) -> None:
    """Make calls, so many at once by each client, for so many seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def work(limiter: RateLimiter) -> None:
        while loop.time() < end:
            await call(flora, limiter, limiter.calls, tries=100)

    await asyncio.gather(*(work(limiter) for limiter in limiters for _ in range(each)))


async def measure(clients: int, pause: float) -> Admitting:
    """Return what a FLORA of 10 requests a second has admitted in 40 seconds of 36 calls at once."""
    shared, flora = Shared(), Admitting(10, pause)
    limiters = [client(shared) for _ in range(clients)]
    await use(flora, limiters, 20, each=36 // clients)  # the rate is found
    flora.taken = flora.refused = shared.updates = 0
    await use(flora, limiters, 40, each=36 // clients)
    assert shared.updates <= 40 * 12
    return flora


@pytest.mark.parametrize("pause", [1.0, 0.02])
async def test_three_clients_send_what_one_would(pause: float) -> None:
    """Three clients use a limit as fully as one with as many calls, with as few 429s, and need few updates.

    A pause shorter than the lead of the leases is the harder one: the others still send what they have leased.
    """
    one, three = await measure(1, pause), await measure(3, pause)
    for flora in (one, three):
        assert flora.taken >= 0.85 * 10 * 40
        assert flora.refused <= 0.07 * flora.taken
    assert three.taken >= 0.93 * one.taken


async def test_nothing_waits_before_a_429() -> None:
    """Without a 429, requests wait for the first look alone, and a client looks once in two seconds."""
    shared = Shared()
    limiter, loop = client(shared), asyncio.get_running_loop()
    began = loop.time()
    assert max(await turns(limiter.calls, 10)) < began + 0.01
    for _ in range(100):
        assert set(await turns(limiter.calls, 10)) == {loop.time()}
        await asyncio.sleep(0.1)
    assert shared.updates <= (loop.time() - began) / LOOK_INTERVAL + 1
    assert shared.state is None


async def test_a_429_of_one_client_slows_the_other() -> None:
    """The other client has the pause and the rate of the first within two seconds, also if it has just begun."""
    shared, loop = Shared(), asyncio.get_running_loop()
    first, second = client(shared), client(shared)
    await turns(second.calls, 1)
    await turns(first.calls, 20, answered=True)
    first.on_rate_limited(30.0, sent=loop.time())
    began = loop.time()
    await asyncio.sleep(LOOK_INTERVAL + 0.1)
    await turns(second.calls, 1)
    await asyncio.sleep(0.01)
    for limiter in (second, client(shared)):
        came = await turns(limiter.calls, 20)
        assert came[0] >= began + 30
        assert came[-1] - came[0] >= 0.7  # at 20 a second, of which a quarter may be sent at once


async def test_after_a_minute_without_a_429_there_is_no_limit() -> None:
    """The rate grows with time until it counts as none, and the state is dropped."""
    shared = Shared()
    limiter = client(shared)
    limiter.on_rate_limited(1.0, sent=asyncio.get_running_loop().time())
    await asyncio.sleep(60)
    await turns(limiter.calls, 1)
    assert shared.state is None
    assert len(set(await turns(limiter.calls, 500))) == 1


async def test_a_lost_client_keeps_no_allowance() -> None:
    """The requests that a client has leased and does not send delay the others by half a second at most."""
    shared, loop = Shared(), asyncio.get_running_loop()
    lost, other = client(shared), client(shared)
    lost.on_rate_limited(1.0, sent=loop.time())
    await asyncio.sleep(1.1)
    waiting = [asyncio.create_task(turns(lost.calls, 50)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in waiting:
        task.cancel()
    assert isinstance(lost.rate, SharedRate)
    lost.rate.close()
    began = loop.time()
    await turns(other.calls, 1)
    assert loop.time() - began < MAX_LEAD + 0.6  # of which half a second at two requests a second


async def test_a_failing_allowance_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A client continues by its own 429s, with one warning, and returns when the allowance can be used again."""
    shared, loop = Shared(), asyncio.get_running_loop()
    shared.fault = OSError("no database")
    limiter = client(shared)
    began = loop.time()
    assert max(await turns(limiter.calls, 10, answered=True)) < began + 0.01
    await asyncio.sleep(0.1)
    limiter.on_rate_limited(1.0, sent=loop.time())
    began = loop.time()
    came = await turns(limiter.calls, 20)
    assert came[0] == pytest.approx(began + 1)
    assert came[-1] > came[0] + 1  # at the rate of its own law
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "the shared allowance cannot be used: OSError. This client continues by its own 429s"
    ]
    shared.fault = None
    await asyncio.sleep(RETRY_INTERVAL)
    await turns(limiter.calls, 1)
    await asyncio.sleep(0.1)
    limiter.on_rate_limited(1.0, sent=loop.time())
    await turns(limiter.calls, 1)
    assert shared.state is not None


async def test_an_allowance_that_does_not_answer_holds_requests_for_two_seconds() -> None:
    """While an update hangs, a busy client without a limit sends at once, and after a 429 it continues by itself."""
    shared, loop = Shared(), asyncio.get_running_loop()
    limiter = client(shared)
    await turns(limiter.calls, 10)
    shared.hangs = True
    await asyncio.sleep(LOOK_INTERVAL + 0.1)
    began = loop.time()
    assert set(await turns(limiter.calls, 10, answered=True)) == {began}
    limiter.on_rate_limited(1.0, sent=began)
    assert limiter.delay() == pytest.approx(1.0)
    came = await turns(limiter.calls, 10)
    assert came[0] <= began + UPDATE_TIMEOUT + 0.01
    other, began = client(shared), loop.time()
    assert set(await turns(other.calls, 10)) == {began + UPDATE_TIMEOUT}
    assert isinstance(other.rate, SharedRate)
    other.rate.close()
    assert isinstance(limiter.rate, SharedRate)
    limiter.rate.close()


async def test_a_cancelled_call_loses_no_more_than_its_turn() -> None:
    """Calls that are cancelled while they wait, or as they are granted, do not hold up those behind them."""
    shared, loop = Shared(), asyncio.get_running_loop()
    limiter = client(shared)
    await turns(limiter.calls, 20, answered=True)
    limiter.on_rate_limited(1.0, sent=loop.time())
    began = loop.time()
    gone = [asyncio.create_task(turns(limiter.calls, 1)) for _ in range(50)]
    stays = asyncio.create_task(turns(limiter.calls, 5))
    await asyncio.sleep(0.5)
    for task in gone[:25]:
        task.cancel()
    await asyncio.sleep(0.6)
    for task in gone[25:]:
        task.cancel()
    assert max(await stays) < began + 2.5


async def test_closing_ends_the_waiting_calls_and_the_update() -> None:
    """A call that waits for a lease ends in ClientClosedError, and the update is cancelled."""
    shared, loop, before = Shared(), asyncio.get_running_loop(), asyncio.all_tasks()
    limiter = client(shared)
    limiter.on_rate_limited(30.0, sent=loop.time())
    waiting = asyncio.create_task(turns(limiter.calls, 1))
    await asyncio.sleep(1)
    shared.hangs = True
    limiter.on_rate_limited(30.0, sent=loop.time())
    await asyncio.sleep(0)
    assert isinstance(limiter.rate, SharedRate)
    limiter.close(ClientClosedError("closed"))
    limiter.rate.close()
    with pytest.raises(ClientClosedError):
        await waiting
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("change", ["another law", "not a state", "a clock that was set back"])
async def test_a_state_that_cannot_be_used_is_dropped(change: str) -> None:
    """A state of another version, a broken one, or one from the future counts as none."""
    shared, loop = Shared(), asyncio.get_running_loop()
    limiter = client(shared)
    limiter.on_rate_limited(30.0, sent=loop.time())
    await asyncio.sleep(0.1)
    assert shared.state is not None
    if change == "another law":
        stored = msgspec.msgpack.decode(shared.state, type=StoredRate)
        shared.state = msgspec.msgpack.encode(msgspec.structs.replace(stored, law={"_tokens": 1.0}))
    elif change == "not a state":
        shared.state = b"\xff"
    else:
        shared.skew -= 3600
    other, began = client(shared), loop.time()
    assert max(await turns(other.calls, 5)) < began + 0.01


async def test_the_allowance_of_a_client_can_be_set_and_removed() -> None:
    """``flora.allowance`` takes an object with ``async def update`` or None, at any time."""
    async with Flora("key") as flora:
        assert flora.allowance is None
        shared = Shared()
        flora.allowance = shared
        assert flora.allowance is shared
        flora.allowance = None
        assert flora.allowance is None
        with pytest.raises(ConfigurationError, match="async def update"):
            flora.allowance = object()  # type: ignore[assignment]
