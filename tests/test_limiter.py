"""Turns, in virtual time: nobody waits until FLORA refuses, then everybody does, in order."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import run_virtually

from flora_async import InternalServerError, _pacing
from flora_async._limiter import Limiter
from flora_async._pacing import Estimates, Rate, RetryBudget


async def turns(limiter: Limiter, count: int) -> list[float]:
    """Take turns all at once; say when each came, in order of asking."""
    loop = asyncio.get_running_loop()
    came: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        if not limiter.enter(loop.time()):
            await limiter.turn()
        came.append((number, loop.time()))
        limiter.leave(answered=False)

    await asyncio.gather(*(one(number) for number in range(count)))
    assert [number for number, _ in came] == sorted(number for number, _ in came), "somebody was overtaken"
    return [when for _, when in came]


def test_nobody_waits_before_a_refusal() -> None:
    """However many they are."""

    async def main() -> None:
        assert set(await turns(Limiter(), 1000)) == {0.0}

    run_virtually(main())


def test_a_refusal_pauses_everybody_and_nobody_rushes_back() -> None:
    """After the pause, one at a time, in the order of arrival, ever faster."""

    async def main() -> None:
        limiter = Limiter()
        await turns(limiter, 20)
        limiter.refused(5.0)
        assert limiter.wait() == pytest.approx(5.0)
        came = await turns(limiter, 100)
        assert came[0] == pytest.approx(5.0)
        gaps = [later - sooner for sooner, later in pairwise(came)]
        assert max(gaps) <= 1 / 13.9  # 20 in the last second, less 30 %
        assert min(gaps) >= 1 / 14.1
        for _ in range(200):
            limiter.leave(answered=True)
        faster = await turns(limiter, 20)
        assert faster[-1] - faster[10] < came[20] - came[10]

    run_virtually(main())


def test_a_rate_is_cut_once_a_second_and_has_a_floor() -> None:
    """A burst of refusals is one event."""
    rate = Rate(100.0)
    for _ in range(50):
        rate.refused(10.0, 11.0)
    assert rate.rate == pytest.approx(70.0)
    for second in range(50):
        rate.refused(20.0 + 2 * second, 0.0)
    assert rate.rate == _pacing.RATE_FLOOR


def test_a_pause_beyond_a_minute_is_nobodys() -> None:
    """Each call raises it at once; the others go on."""

    async def main() -> None:
        limiter = Limiter()
        limiter.refused(3600.0)
        assert limiter.wait() <= 1.0
        limiter.refused(None)
        assert limiter.wait() <= 3.0

    run_virtually(main())


def test_turns_that_are_cancelled_are_not_used_up() -> None:
    """Those behind move up."""

    async def main() -> None:
        limiter = Limiter()
        limiter.refused(1.0)
        waiting = [asyncio.create_task(limiter.turn()) for _ in range(100)]
        await asyncio.sleep(0)
        for task in waiting[:-1]:
            task.cancel()
        await waiting[-1]
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)

    run_virtually(main())


@given(st.floats(0.5, 100), st.lists(st.floats(0.001, 5), min_size=1, max_size=50))
def test_no_rate_is_exceeded(rate: float, pauses: list[float]) -> None:
    """In any stretch of time, but for what was saved up: a quarter of a second's worth."""
    bucket, now, sent = Rate(rate), 0.0, 0
    for pause in pauses:
        now += pause
        while not bucket.wait(now):
            bucket.take()
            sent += 1
    assert sent <= 1 + max(1.0, rate / 4) + rate * now


def test_the_ceiling_of_looks() -> None:
    """Successes raise the rate, no further than allowed."""
    rate = Rate(20.0, ceiling=50.0)
    for _ in range(10_000):
        rate.succeeded()
    assert rate.rate == 50.0


def test_an_outage_is_not_made_worse() -> None:
    """Two hundred callers that all fail try again forty times, and what was saved up."""
    budget = RetryBudget()
    again = 0
    for _ in range(200):
        budget.earn()
        again += budget.spend() + budget.spend()
    assert again <= 200 * _pacing.RETRY_SHARE + _pacing.RETRY_BUDGET


@pytest.mark.anyio
async def test_a_client_in_an_outage() -> None:
    """Its requests grow by little over a fifth."""
    from scripted import Scripted, error

    from flora_async import Flora

    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("GET", "/runs/run_1", error(503))
        ends = await asyncio.gather(*(flora.generations.retrieve("run_1") for _ in range(200)), return_exceptions=True)
        assert {type(end) for end in ends} == {InternalServerError}
        assert len(server.asked) <= 200 * 1.2 + _pacing.RETRY_BUDGET + 1


def test_estimates_are_learned_by_type_and_model() -> None:
    """A service that is always twice off is corrected after a few runs; others are not touched."""
    estimates = Estimates()
    assert estimates.expect("image", "m", 10.0) == 10.0
    assert [estimates.expect(kind, None, None) for kind in ("text", "audio", "image", "video")] == [3.0, 6.0, 8.0, 60.0]
    for _ in range(10):
        estimates.learn("image", "m", 10.0, 20.0)
        estimates.learn("video", None, None, 30.0)
    assert estimates.expect("image", "m", 5.0) == pytest.approx(10.0, rel=0.15)
    assert estimates.expect("video", None, None) == pytest.approx(30.0, rel=0.15)
    assert estimates.expect("image", "other", 10.0) == 10.0


def test_what_is_learned_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And strange numbers teach nothing strange."""
    monkeypatch.setattr(_pacing, "LEARNED_MODELS", 3)
    estimates = Estimates()
    for number in range(10):
        estimates.learn("image", f"m{number}", -5.0, float("inf"))
    assert len(estimates._seen) == 3
    assert estimates.expect("image", "m9", float("nan")) < 1e6
