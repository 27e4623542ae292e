"""The rate limiter in virtual time: requests wait only after a 429, then in the order of their calls."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.polling.fleet import fleet, jain
from benchmarks.polling.simulation import run_virtually
from flora_async import ClientClosedError, FloraError, InternalServerError, RateLimitError
from flora_async._http.rate_limit import Lane, RateLimiter, RateLimitPolicy, TokenBucket
from flora_async._http.retry import RetryBudget, RetryPolicy
from flora_async._polling.durations import DurationEstimator

LIMITS, RETRY = RateLimitPolicy(), RetryPolicy()


async def turns(lane: Lane, count: int, *, answered: bool = False) -> list[float]:
    """Acquire *count* permits at once; return the time of each, in order of request."""
    loop = asyncio.get_running_loop()
    came: list[tuple[int, float]] = []

    async def one(number: int) -> None:
        now = loop.time()
        sent = now if lane.try_acquire(now) else await lane.acquire(now)
        came.append((number, loop.time()))
        lane.release(sent, succeeded=answered)

    await asyncio.gather(*(one(number) for number in range(count)))
    assert [number for number, _ in came] == sorted(number for number, _ in came), "one was overtaken"
    return [when for _, when in came]


class Admitting:
    """A FLORA that takes so many requests a second, or this many at once after a quiet time, else asks for a pause."""

    def __init__(self, rate: float, pause: float = 1.0) -> None:
        self.refused = self.taken = 0
        self.pause = pause
        self._rate = self._tokens = rate
        self._at = 0.0

    def takes(self, now: float) -> bool:
        """Return whether a request is admitted."""
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        taken = self._tokens >= 1
        self._tokens -= taken
        self.taken += taken
        self.refused += not taken
        return taken


async def call(flora: Admitting, limiter: RateLimiter, lane: Lane, *, tries: int = 3, seconds: float = 0.05) -> float:
    """Make a call as a client does, with the default of two retries; return how long it took."""
    loop = asyncio.get_running_loop()
    began = now = loop.time()
    failures: list[FloraError] = []
    while True:
        sent = now if lane.try_acquire(now) else await lane.acquire(began)
        taken = flora.takes(loop.time())
        await asyncio.sleep(seconds)
        if not taken:
            limiter.on_rate_limited(flora.pause, sent=sent)
        lane.release(sent, succeeded=taken)
        if taken:
            return loop.time() - began
        failures.append(RateLimitError("too many", status=429, retry_after=flora.pause))
        pause = RETRY.next_delay(failures, retries=tries - 1, idempotent=True, billable=False, elapsed=0.0)
        if pause is None:
            raise failures[-1]
        await asyncio.sleep(pause)
        now = loop.time()


def test_nothing_waits_before_a_refusal() -> None:
    """Before the first 429, a thousand simultaneous calls are sent without a delay."""

    async def main() -> None:
        assert set(await turns(RateLimiter(LIMITS, RETRY).calls, 1000)) == {0.0}

    run_virtually(main())


def test_a_refusal_pauses_all_and_none_rushes_back() -> None:
    """After the pause of a 429, calls are sent one at a time in their order, at a growing rate."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        await turns(limiter.calls, 20, answered=True)
        limiter.on_rate_limited(5.0, sent=0.0)
        assert limiter.delay() == pytest.approx(5.0)
        came = await turns(limiter.calls, 200)
        assert came[0] == pytest.approx(5.0)
        gaps = [later - sooner for sooner, later in pairwise(came)]
        assert 1 / 15 <= gaps[0] <= 1 / 13.9  # 20 in the second before, less 30 %
        assert min(gaps) >= 1 / 22  # on the plateau
        assert gaps[-1] < gaps[0]

    run_virtually(main())


def test_polls_and_calls_take_turns() -> None:
    """Where both wait, every second turn is a poll's; where only one kind does, every turn is its own."""

    async def main() -> None:
        loop, limiter = asyncio.get_running_loop(), RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(1.0, sent=0.0)
        order: list[str] = []

        async def one(name: str, lane: Lane) -> None:
            now = loop.time()
            sent = now if lane.try_acquire(now) else await lane.acquire(now)
            order.append(name)
            lane.release(sent, succeeded=True)

        calls = [loop.create_task(one("call", limiter.calls)) for _ in range(20)]
        await asyncio.sleep(0.5)
        await asyncio.gather(*calls, *(one("poll", limiter.polls) for _ in range(5)))
        assert order == ["poll", "call"] * 5 + ["call"] * 15

    run_virtually(main())


def test_one_walk_does_not_keep_a_poll_waiting() -> None:
    """A poll's turn comes next, though another call asks at the moment at which each answer comes."""

    async def main() -> None:
        loop, limiter, flora = asyncio.get_running_loop(), RateLimiter(LIMITS, RETRY), Admitting(5.0)

        async def walk() -> None:
            while True:
                await call(flora, limiter, limiter.calls)

        walker = loop.create_task(walk())
        await asyncio.sleep(20)
        assert flora.refused
        assert max([await call(flora, limiter, limiter.polls) for _ in range(20)]) < 2.0
        walker.cancel()

    run_virtually(main())


def test_hanging_polls_and_calls_do_not_hold_each_other_up() -> None:
    """A hundred calls under way keep no poll waiting, and any number of polls under way no call."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        assert all(limiter.calls.try_acquire(0.0) for _ in range(100))
        assert not limiter.calls.try_acquire(0.0)
        assert all(limiter.polls.try_acquire(0.0) for _ in range(300))
        limiter.calls.release(0.0, succeeded=True)
        assert limiter.calls.try_acquire(0.0)

    run_virtually(main())


def test_a_call_that_comes_back_goes_before_those_that_began_later() -> None:
    """Its turn is by when the call began, not by when it was refused."""

    async def main() -> None:
        loop, limiter = asyncio.get_running_loop(), RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(1.0, sent=0.0)
        order: list[float] = []

        async def one(began: float) -> None:
            await limiter.calls.acquire(began)
            order.append(began)

        await asyncio.gather(*(loop.create_task(one(began)) for began in (3.0, 2.0, 4.0, 1.0)))
        assert order == [1.0, 2.0, 3.0, 4.0]

    run_virtually(main())


@pytest.mark.parametrize("seconds", [0.05, 1.0])
def test_a_steady_limit_costs_no_call(seconds: float) -> None:
    """Three hundred calls at once under ten requests a second all get through with two retries, in little more time."""

    async def main() -> None:
        limiter, flora = RateLimiter(LIMITS, RETRY), Admitting(10.0)
        await asyncio.gather(*(call(flora, limiter, limiter.calls, seconds=seconds) for _ in range(300)))
        assert flora.taken == 300
        assert asyncio.get_running_loop().time() < 45  # 29 is the least

    run_virtually(main())


@pytest.fixture
def seeded() -> Iterator[None]:
    """Repeat the random parts of the limiters."""
    state = random.getstate()
    random.seed(1)
    yield
    random.setstate(state)


async def share(stays: Sequence[tuple[float, float]], begin: float, end: float, limit: float) -> tuple[list[int], int]:
    """Let clients send as much as they may, from the first to the second time of each.

    Return the admitted calls of each and the 429s of all between *begin* and *end*.
    """
    loop, flora, counts = asyncio.get_running_loop(), Admitting(limit), Counter[int]()

    async def work(number: int, limiter: RateLimiter) -> None:
        starts, ends = stays[number]
        await asyncio.sleep(starts)
        while loop.time() < ends:
            await call(flora, limiter, limiter.calls, tries=1000, seconds=0.2)
            counts[number] += 1

    limiters = [RateLimiter(LIMITS, RETRY) for _ in stays]
    working = [loop.create_task(work(number, limiters[number])) for number in range(len(stays)) for _ in range(4)]
    await asyncio.sleep(begin)
    before, refused = Counter(counts), flora.refused
    await asyncio.sleep(end - begin)
    counts.subtract(before)
    refused = flora.refused - refused
    for task in working:
        task.cancel()
    return [counts[number] for number in range(len(stays))], refused


@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("clients", "limit"), [(1, 2.0), (1, 10.0), (5, 10.0), (20, 10.0)])
def test_clients_share_one_limit(clients: int, limit: float) -> None:
    """Each gets its part, at most one request in ten is refused, and next to nothing is left unused."""
    counts, refused = run_virtually(share([(0, 300)] * clients, 200, 300, limit))
    assert sum(counts) > 0.95 * limit * 100
    assert refused < 0.1 * sum(counts)
    assert jain(counts) > 0.85
    assert min(counts) > 0.4 * sum(counts) / clients


@pytest.mark.usefixtures("seeded")
def test_the_clients_that_stay_use_the_whole_limit() -> None:
    """Four minutes after three of five clients have left, the other two use 85 % of ten requests a second."""
    counts, _ = run_virtually(share([(0, 420)] * 2 + [(0, 100)] * 3, 360, 420, 10.0))
    assert sum(counts) > 0.85 * 10 * 60


@pytest.mark.usefixtures("seeded")
def test_clients_that_come_later_get_their_part() -> None:
    """Three minutes after two clients have come to two others, each has between half and double its part."""
    counts, _ = run_virtually(share([(0, 400)] * 2 + [(100, 400)] * 2, 300, 400, 10.0))
    part = sum(counts) / 4
    assert min(counts) > part / 2
    assert max(counts) < part * 2


@pytest.mark.usefixtures("seeded")
def test_clients_that_were_refused_together_do_not_return_together() -> None:
    """Their next requests are spread over the time between two requests."""
    rates = [TokenBucket(LIMITS) for _ in range(100)]
    for rate in rates:
        for _ in range(2):
            rate.on_rate_limited(1.0, until=2.0, sent=0.9, answered=())
            rate.take()
        rate.on_rate_limited(3.0, until=4.0, sent=2.9, answered=())
    delays = sorted(rate.delay(4.0) for rate in rates)
    between = 1 / rates[0].value(4.0)
    assert delays[10] < 0.2 * between
    assert delays[90] > 0.8 * between


def sharing(rate: float) -> tuple[TokenBucket, float]:
    """Return a bucket that shares a limit, cut to at most *rate*, and the time of its last 429."""
    bucket, now = TokenBucket(LIMITS), 0.0
    for _ in range(LIMITS.patience + 1):
        now += 1
        bucket.on_rate_limited(now, until=now, sent=now, answered=[now] * 100)
    while bucket.value(now) > rate:
        now += 1
        bucket.on_rate_limited(now, until=now, sent=now, answered=[now] * 100)
    return bucket, now


@pytest.mark.parametrize(("highest", "interval"), [(10.0, 40.0), (1.0, 63.2), (0.05, 282.8)])
def test_a_rate_is_in_balance_at_one_refusal_in_each_interval(highest: float, interval: float) -> None:
    """It grows by as much as a 429 cuts it. The interval of a slow client is longer by the square root of its rate."""
    bucket, cut = sharing(highest)
    rate = bucket.value(cut)
    assert 0.92 * highest < rate <= highest
    interval *= math.sqrt(min(1.0, highest / 2.5) / min(1.0, rate / 2.5))
    later = cut + math.sqrt(2) * interval  # 429s at random, once in an interval on average, have the same effect
    assert bucket.value(later) == pytest.approx(rate * math.exp(LIMITS.step), rel=0.001)
    bucket.on_rate_limited(later, until=later, sent=later, answered=())
    assert bucket.value(later) == pytest.approx(rate, rel=0.001)


def test_a_rate_grows_faster_when_refusals_are_overdue() -> None:
    """Four missing 429s nearly double the rate, eight raise it tenfold; then the next 429 starts a new search."""
    bucket, cut = sharing(10.0)
    rate = bucket.value(cut)
    assert bucket.value(cut + 4 * 40) == pytest.approx(1.9 * rate, rel=0.01)
    assert bucket.value(cut + 8 * 40) == pytest.approx(12.9 * rate, rel=0.01)
    now = cut + 8.1 * 40
    bucket.on_rate_limited(now, until=now, sent=now, answered=[now] * 30)
    assert bucket.value(now) == pytest.approx(30 * 0.7)


@pytest.mark.proof
@pytest.mark.usefixtures("seeded")
def test_a_large_fleet_shares_one_limit() -> None:
    """Two hundred clients that create and await runs get their parts of ten requests a second."""
    figures = run_virtually(fleet(200, 10.0, seed=1))
    assert figures["use of the limit"] > 0.9
    assert figures["fairness"] > 0.9
    assert figures["least share"] > 0.2
    assert figures["429s for an accepted request"] < 0.1


def test_one_refusal_is_forgotten() -> None:
    """A minute after the one 429 of a quiet client, a hundred calls go out at once."""

    async def main() -> None:
        loop, limiter = asyncio.get_running_loop(), RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(None, sent=0.0)
        await asyncio.sleep(60)
        began = loop.time()
        assert max(await turns(limiter.calls, 100)) - began < 0.2

    run_virtually(main())


def test_a_rate_is_cut_once_for_all_that_was_under_way_and_has_a_floor() -> None:
    """A burst of refusals is one event, and ever more events do not stop a client."""
    rate = TokenBucket(LIMITS)
    for when in range(50):
        rate.on_rate_limited(10.0 + when / 100, until=11.0, sent=9.0, answered=[9.5] * 100)
    assert rate.value(11.0) == pytest.approx(70.0)
    for second in range(50):
        rate.on_rate_limited(20.0 + second, until=21.0 + second, sent=20.0 + second, answered=())
    assert rate.value(70.0) == LIMITS.min_rate


def test_a_rate_begins_with_what_flora_took() -> None:
    """Answers that come after the refusal, to requests from before it, count too; those to later requests do not."""
    rate = TokenBucket(LIMITS)
    rate.on_rate_limited(10.0, until=11.0, sent=9.99, answered=[8.0, 9.5])
    assert rate.value(11.0) == pytest.approx(LIMITS.min_first_rate * 0.7)
    for _ in range(19):
        rate.record_response(9.9)
    rate.record_response(10.5)
    assert rate.value(11.0) == pytest.approx(20 * 0.7)


def test_a_rate_grows_as_cubic_does() -> None:
    """After a 429, the rate returns to its peak within seconds, stays there, and is high after a minute."""
    rate = TokenBucket(LIMITS)
    rate.on_rate_limited(0.0, until=1.0, sent=0.0, answered=[0.0] * 10)
    values = [rate.value(float(second)) for second in range(60)]
    assert values == sorted(values)
    assert values[1] == pytest.approx(7.0)
    assert 9.5 < values[5] < values[8] < 10.5
    assert values[16] > 20
    assert values[59] > 1000


def test_a_pause_beyond_a_minute_holds_no_other_call_up() -> None:
    """The call that is told so raises it at once, and the others go on."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(3600.0, sent=0.0)
        assert limiter.delay() <= 1.0
        limiter.on_rate_limited(None, sent=0.0)
        assert limiter.delay() <= 3.0

    run_virtually(main())


def test_turns_that_are_cancelled_are_not_used_up() -> None:
    """Those behind move up, also where a turn had been given but not yet taken."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(1.0, sent=0.0)
        waiting = [asyncio.create_task(limiter.calls.acquire(0.0)) for _ in range(100)]
        await asyncio.sleep(0)
        for task in waiting[:-1]:
            task.cancel()
        await waiting[-1]
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)

    run_virtually(main())


def test_a_turn_that_was_given_to_a_cancelled_call_goes_on_to_the_next() -> None:
    """No place among those under way is lost."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        while limiter.calls.try_acquire(0.0):
            pass
        given, behind = (asyncio.create_task(limiter.calls.acquire(when)) for when in (0.0, 1.0))
        await asyncio.sleep(0)
        limiter.calls.release(0.0, succeeded=True)
        given.cancel()
        await asyncio.wait([given])
        assert await behind == 0.0
        assert given.cancelled()

    run_virtually(main())


def test_an_end_reaches_all_that_wait() -> None:
    """Calls and polls alike, at once; each gets an error of its own."""

    async def main() -> None:
        limiter = RateLimiter(LIMITS, RETRY)
        limiter.on_rate_limited(30.0, sent=0.0)
        waiting = [asyncio.create_task(lane.acquire(0.0)) for lane in (limiter.calls, limiter.polls) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        limiter.close(ClientClosedError("closed"))
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        assert asyncio.get_running_loop().time() == 0.0
        assert isinstance(ends[0], asyncio.CancelledError)
        assert len({id(end) for end in ends if isinstance(end, ClientClosedError)}) == 5

    run_virtually(main())


@given(st.integers(1, 400), st.lists(st.floats(0.001, 5), min_size=1, max_size=50))
def test_no_rate_is_exceeded(taken: int, pauses: list[float]) -> None:
    """No period has more requests than the rate allows, plus the tokens saved in a quarter of a second."""
    rate, now, sent, most = TokenBucket(LIMITS), 0.0, 0, 0.0
    rate.on_rate_limited(0.0, until=0.0, sent=0.0, answered=[0.0] * taken)
    for pause in pauses:
        now += pause
        most += pause * rate.value(now)
        while not rate.delay(now):
            rate.take()
            sent += 1
    assert sent <= 1 + max(1.0, rate.value(now) / 4) + most


def test_an_outage_is_not_made_worse() -> None:
    """Two hundred failing callers retry forty times, and use the saved retries."""
    budget = RetryBudget(RETRY)
    again = 0
    for _ in range(200):
        budget.deposit()
        again += budget.try_withdraw() + budget.try_withdraw()
    assert again <= 200 * RETRY.budget_share + RETRY.budget


@pytest.mark.anyio
@pytest.mark.virtual_time
async def test_a_client_in_an_outage() -> None:
    """Its requests grow by little over a fifth."""
    from scripted import Scripted, error

    from flora_async import Flora

    async with Scripted() as server, Flora("sk_1", base_url=server.base_url) as flora:
        server.on("GET", "/runs/run_1", error(503))
        ends = await asyncio.gather(*(flora.generations.retrieve("run_1") for _ in range(200)), return_exceptions=True)
        assert {type(end) for end in ends} == {InternalServerError}
        assert len(server.asked) <= 200 * 1.2 + RETRY.budget + 1


def test_estimates_are_learned_by_type_and_model() -> None:
    """A service that is always twice off is corrected after a few runs; others are not touched."""
    estimates = DurationEstimator()
    assert estimates.predict("image", "m", 10.0) == 10.0
    assert [estimates.predict(kind, None, None) for kind in ("text", "audio", "image", "video")] == [
        3.0,
        6.0,
        8.0,
        60.0,
    ]
    for _ in range(10):
        estimates.update("image", "m", 10.0, 20.0)
        estimates.update("video", None, None, 30.0)
    assert estimates.predict("image", "m", 5.0) == pytest.approx(10.0, rel=0.15)
    assert estimates.predict("video", None, None) == pytest.approx(30.0, rel=0.15)
    assert estimates.predict("image", "other", 10.0) == 10.0


def test_what_is_learned_is_bounded() -> None:
    """And strange numbers teach nothing strange."""
    estimates = DurationEstimator()
    estimates._seen.limit = 3
    for number in range(10):
        estimates.update("image", f"m{number}", -5.0, float("inf"))
    assert len(estimates._seen) == 3
    assert estimates.predict("image", "m9", float("nan")) < 1e6
