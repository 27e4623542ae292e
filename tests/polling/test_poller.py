"""The poller in virtual time, against a hostile simulated FLORA."""

import asyncio
import gc
import math
import random
import selectors
import sys
import tracemalloc
import weakref
from bisect import bisect_left
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import pytest
from msgspec.structs import replace

from benchmarks.polling.simulation import PAGE_SECONDS, Simulated, SimulatedFlora, _Selector, run_virtually, started
from flora_async import NotFoundError
from flora_async._http.rate_limit import RateLimiter
from flora_async._polling.poller import Poller
from flora_async._polling.targets import PollResult, Scope, WaitTarget
from flora_async._polling.tracked_run import REMOVED_ENTRIES, Agenda, TrackedRun
from flora_async._polling.waiting import RunOutcomes, wait_for_run
from flora_async.events import Event, WaitFinished
from flora_async.models import Generation, GenerationPage, PageMeta

RUNS = 150
TOO_LATE = 900.0
"""Seconds in which everything must have ended; the last run ends after some hundred."""


class Trial:
    """Waits for many runs while pages shift, rows are outdated and requests fail; checks that no wait is lost."""

    def __init__(self, seed: int, kind: type[Poller]) -> None:
        self.chance = random.Random(seed)
        storm = self.chance.uniform(5, 60)
        self.flora = SimulatedFlora(
            limit=self.chance.choice([None, 10.0]),
            seed=seed,
            errors=0.05,
            stale=0.1,
            bare=0.2,
            storm=(storm, storm + self.chance.choice([0.0, 5.0])),
        )
        self.poller = kind(self.flora.operations())
        self.settled: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.waiting: list[asyncio.Task[None]] = []
        self.charge_chance = random.Random(-seed)
        self.runs: list[Simulated] = []

    async def wait(self, number: int, run: Simulated, patience: float) -> None:
        """Wait for one run, and check how that ends."""
        loop = asyncio.get_running_loop()
        estimate = (run.ends - run.created) * self.chance.uniform(0.3, 3)
        settle = self.charge_chance.random() < 0.3
        waiter = self.poller.add_waiter(
            self.poller.track(started(run, estimate), None), deadline=loop.time() + patience, settle=settle
        )
        try:
            seen = await waiter
        except NotFoundError:
            assert run.gone, "a run that is there was given up"
            self.settle(number, "gone")
            return
        if seen is None:
            assert patience < math.inf, "timed out without a timeout"
            self.settle(number, "late")
            return
        assert (seen.run_id, seen.status) == (run.run_id, "completed"), "another end"
        assert seen.outputs, "a finished run without its outputs"
        assert loop.time() >= run.ends
        if settle and run.charge_delay < 60 and patience == math.inf and not run.gone:
            assert seen.charged_cost is not None, "a charge was not awaited"
        self.settle(number, "finished")

    def settle(self, number: int, end: str) -> None:
        """Record the end of a wait."""
        assert number not in self.settled, "settled twice"
        self.settled[number] = end

    def order(self, made: int) -> None:
        """Create a run with no waiter, one or several."""
        chance, loop = self.chance, asyncio.get_running_loop()
        bar = chance.choice(["none", "linear"])
        run = Simulated(f"run_{made}", loop.time(), chance.uniform(0, 3), chance.uniform(1, 60), bar=bar)
        run.hidden = chance.random() < 0.1
        run.charge_delay = self.charge_chance.choice([0.0, 0.0, 5.0, 40.0, 1000.0])
        self.flora.add(run)
        self.runs.append(run)
        for _ in range(chance.choice([0, 0, 0, 0, 1, 1, 2, 4])):
            number = len(self.waiting)
            patience = chance.choice([math.inf, math.inf, math.inf, chance.uniform(1, 40)])
            task = asyncio.create_task(self.wait(number, run, patience))
            self.waiting.append(task)
            if chance.random() < 0.15:
                self.cancelled.add(number)
                loop.call_later(chance.uniform(0, 30), task.cancel)

    async def go(self) -> None:
        """Make runs for a minute or two, then see all waits end."""
        for made in range(RUNS):
            self.order(made)
            victim = self.chance.choice(self.runs)
            if self.chance.random() < 0.05 and not victim.gone:
                self.flora.remove(victim)
            await asyncio.sleep(self.chance.choice([0.0, 0.0, 0.1, 2.0]))
        done, pending = await asyncio.wait(self.waiting, timeout=TOO_LATE)
        faults = [task.exception() for task in done if not task.cancelled()]
        assert not any(faults), faults
        assert not pending, f"{len(pending)} waits never ended"
        for number, task in enumerate(self.waiting):
            if task.cancelled():
                assert number in self.cancelled, "cancelled without a request"
            else:
                assert number in self.settled
        await asyncio.sleep(2)
        assert not self.poller._tracked, "a run is still tracked"
        assert self.poller._task is not None
        assert self.poller._task.done(), "the poller runs without waits"
        assert not self.poller._polls, "a poll runs without waits"


async def hostile(seed: int, kind: type[Poller]) -> None:
    """Run one trial."""
    await Trial(seed, kind).go()


@pytest.mark.parametrize("seed", range(12))
def test_every_wait_ends_once_and_right(seed: int) -> None:
    """Each wait ends exactly once with the correct result, for twelve seeds."""
    run_virtually(hostile(seed, Poller))


@pytest.mark.proof
@pytest.mark.parametrize("block", range(20))
def test_every_wait_ends_once_and_right_for_hundreds_of_seeds(block: int) -> None:
    """Each wait ends exactly once with the correct result, for 500 seeds."""
    for seed in range(1000 + 25 * block, 1025 + 25 * block):
        run_virtually(hostile(seed, Poller))


async def burst(count: int, *, pages: bool) -> int:
    """Wait for many runs of about ten seconds that start at once. Return the number of requests."""
    chance = random.Random(count)
    flora = SimulatedFlora(limit=10.0)
    poller = Poller(flora.operations(pages=pages))
    waiters = []
    for number in range(count):
        run = Simulated(f"run_{number}", 0.0, 0.5, chance.uniform(7, 13))
        flora.add(run)
        waiters.append(poller.add_waiter(poller.track(started(run, 10.0), None), deadline=math.inf))
    runs = [await waiter for waiter in waiters]
    assert [run and run.run_id for run in runs] == [f"run_{number}" for number in range(count)]
    return flora.requests


def test_a_thousand_runs_cost_few_requests() -> None:
    """A thousand runs cost at most half a request each; without pages, at least one."""
    assert run_virtually(burst(1000, pages=True)) <= 500
    assert run_virtually(burst(1000, pages=False)) >= 1000


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_runs_are_polled_individually(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One or two runs are polled at their own URLs, because pages would save no request."""
    monkeypatch.delattr(Poller, "_start_page_poll")
    assert run_virtually(burst(count, pages=True)) <= 8 * count


async def stream(count: int, rate: float) -> tuple[int, float]:
    """Start short runs at a rate and wait for them. Return the number of requests and the seconds."""
    flora, loop = SimulatedFlora(), asyncio.get_running_loop()
    poller = Poller(flora.operations())
    slots = asyncio.Semaphore(500)

    async def one(number: int) -> None:
        async with slots:
            run = Simulated(f"run_{number}", loop.time(), 0.01, 0.02)
            flora.add(run)
            await asyncio.sleep(0.1)  # its answer comes after it was created
            seen = started(run, 0.03)
            subject = replace(seen, loop_created=loop.time(), created=seen.created + 0.1)
            assert await poller.add_waiter(poller.track(subject, None), deadline=math.inf)

    tasks = []
    for number in range(count):
        tasks.append(asyncio.create_task(one(number)))
        await asyncio.sleep(1 / rate)
    await asyncio.gather(*tasks)
    return flora.requests, loop.time()


def test_a_stream_of_runs_is_read_by_pages() -> None:
    """A run that newer runs shift to the next page is found there, without a poll of its own."""
    requests, seconds = run_virtually(stream(2000, 400))
    assert requests <= 200
    assert seconds <= 15


def test_ten_thousand_waits_begin_and_end_in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of the event loop with 10,000 runs makes at most 1.5 times the calls of one with 2,000 runs."""
    most = {}
    for count in (2000, 10_000):
        with monkeypatch.context() as patch:
            most[count] = run_virtually(begin_and_close(count, patch))
    assert 0 < most[10_000] <= 1.5 * most[2000]


async def begin_and_close(count: int, patch: pytest.MonkeyPatch) -> int:
    """Start and close waits with events. Return the highest number of calls in one pass of the event loop."""
    calls, most = 0, 0
    select = _Selector.select

    def count_call(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def begin_pass(self: _Selector, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        nonlocal calls, most
        most, calls = max(most, calls), 0
        return select(self, timeout)

    flora, events = SimulatedFlora(), list[Event]()
    poller = Poller(replace(flora.operations(), emit=events.append))
    for number in range(count):
        flora.add(Simulated(f"run_{number}", -float(number), 0.0, 1e6))
    outcomes = RunOutcomes(poller, [WaitTarget(f"run_{number}") for number in range(count)], poll=None, timeout=600)
    await asyncio.sleep(0)
    patch.setattr(_Selector, "select", begin_pass)
    sys.setprofile(count_call)
    try:
        first = asyncio.create_task(anext(outcomes))
        await asyncio.sleep(3)
        assert len(poller._tracked) == count
        first.cancel()
        await outcomes.aclose()
        await asyncio.sleep(1)
    finally:
        sys.setprofile(None)
    assert not poller._tracked
    assert sum(isinstance(event, WaitFinished) for event in events) == count
    return most


def test_runs_that_are_due_together_are_planned_in_small_steps() -> None:
    """One planning takes at most 600 of 3,000 due runs, and asks to be repeated at once for the others."""
    taken = run_virtually(plan_until_empty(3000))
    assert sum(taken) == 3000
    assert 0 < max(taken) <= 600, "planning 1,000 runs and a sweep of them takes over 50 ms"


async def plan_until_empty(count: int) -> list[int]:
    """Plan *count* runs that are due at once. Return the number of runs that each planning took."""
    flora, taken, now = SimulatedFlora(), list[int](), asyncio.get_running_loop().time()
    poller = Poller(flora.operations())
    for number in range(count):
        flora.add(Simulated(f"run_{number}", 0.0, 0.0, math.inf))
        poller.add_waiter(poller.track(WaitTarget(f"run_{number}"), None), deadline=math.inf)
    while before := len(poller._due):
        again = poller._start_polls(now)
        taken.append(before - len(poller._due))
        assert again <= now or not poller._due
    await poller.close()
    return taken


@pytest.mark.parametrize("how", ["timeout", "close"])
def test_waits_that_end_together_end_in_small_steps(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of the event loop ends no more waits of 3,000 than of 1,500, at a common deadline or at ``close()``."""
    most = {}
    for count in (1500, 3000):
        with monkeypatch.context() as patch:
            most[count] = run_virtually(end_together(count, how, patch))
    assert 100 < most[3000] <= min(1.1 * most[1500], 600), "a pass of 1,000 ends takes over 30 ms"


async def end_together(count: int, how: str, patch: pytest.MonkeyPatch) -> int:
    """End waits together. Return the highest number that ended in one pass of the event loop."""
    ended, most, select = 0, 0, _Selector.select

    def end(_waiter: object) -> None:
        nonlocal ended
        ended += 1

    def begin_pass(self: _Selector, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        nonlocal ended, most
        most, ended = max(most, ended), 0
        return select(self, timeout)

    patch.setattr(_Selector, "select", begin_pass)
    poller = Poller(SimulatedFlora().operations(pages=False))
    deadline = asyncio.get_running_loop().time() + (1.0 if how == "timeout" else 600.0)
    waiters = [
        poller.add_waiter(poller.track(WaitTarget(f"run_{number}"), None), deadline=deadline) for number in range(count)
    ]
    for waiter in waiters:
        waiter.add_done_callback(end)
    await asyncio.sleep(0.5)
    if how == "close":
        await poller.close()
    await asyncio.wait(waiters)
    assert all((waiter.exception() or waiter.result()) is None for waiter in waiters) is (how == "timeout")
    assert not poller._tracked
    return most


def test_a_poll_url_that_stays_is_checked_once() -> None:
    """A poll_url that the records of a run repeat is checked once, a new one replaces it, and none keeps it."""
    checked, polled = run_virtually(poll_at_changing_urls())
    assert checked == ["https://flora.test/1", "https://flora.test/2"]
    assert [*dict.fromkeys(polled)] == [None, *checked]
    assert min(map(polled.count, checked)) > 1


async def poll_at_changing_urls() -> tuple[list[str], list[str | None]]:
    """Wait for a run whose poll_url changes after 30 s and vanishes after 50 s. Return the checked and polled URLs."""
    checked, polled = list[str](), list[str | None]()
    flora, run = SimulatedFlora(), Simulated("run_0", 0.0, 0.0, 90.0)
    flora.add(run)
    operations = flora.operations(pages=False)

    async def retrieve(run_id: str, target: str | None, turn: float) -> PollResult:
        polled.append(target)
        result = await operations.retrieve_run(run_id, target, turn)
        shown = None if turn > 50 else f"https://flora.test/{1 if turn < 30 else 2}"
        return PollResult(replace(result.run, poll_url=shown), result.age)

    def resolve(_run_id: str, poll_url: str) -> str:
        checked.append(poll_url)
        return poll_url

    poller = Poller(replace(operations, retrieve_run=retrieve, resolve_poll_url=resolve))
    await poller.add_waiter(poller.track(started(run, 90.0), None), deadline=math.inf)
    return checked, polled


@pytest.mark.parametrize(("timeout", "most"), [(None, 1350), (120.0, 1500)])
def test_a_wait_holds_little_memory(timeout: float | None, most: int) -> None:
    """A wait holds at most 1.35 kB in the poller, and 1.5 kB with a timeout."""
    held = run_virtually(memory_of_waits(500, timeout)) / 500
    assert 500 < held <= most


async def memory_of_waits(count: int, timeout: float | None) -> int:
    """Return the bytes that the modules of the poller hold for *count* waits."""
    flora, loop = SimulatedFlora(), asyncio.get_running_loop()
    runs = [Simulated(f"run_{number}", 0.0, 0.0, math.inf) for number in range(count)]
    for run in runs:
        flora.add(run)
    poller = Poller(flora.operations())
    tracer = sys.gettrace()
    sys.settrace(None)  # that of coverage holds memory for each coroutine
    tracemalloc.start()
    try:
        wait = partial(wait_for_run, poller, poll=None, timeout=timeout, on_update=None)
        waits = [loop.create_task(wait(started(run, 60.0))) for run in runs]
        await asyncio.sleep(0)
        own = tracemalloc.Filter(True, "*/_polling/*")
        held = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([own]).traces)
    finally:
        tracemalloc.stop()
        sys.settrace(tracer)
    for each in waits:
        each.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    return held


def count_calls(work: Callable[[], object]) -> tuple[int, object]:
    """Return the number of calls that a function makes, and its result."""
    calls = 0

    def count_call(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        result = work()
    finally:
        sys.setprofile(None)
    return calls, result


@pytest.mark.parametrize("count", [1000, 10_000])
@pytest.mark.parametrize("in_order", [False, True])
def test_an_agenda_forgets_dropped_items_a_few_at_a_time(count: int, in_order: bool) -> None:
    """No operation takes more calls with more items, few dropped ones are kept, and the order stays right."""
    chance = random.Random(count)
    agenda, due = Agenda[int](), {number: chance.random() for number in range(count)}
    for number in due:
        agenda.put(number, due[number])
    dropped = (
        sorted(due, key=lambda number: -due[number])[100:] if in_order else chance.sample(range(count), count - 100)
    )
    for number in dropped:
        assert count_calls(partial(agenda.drop, number))[0] < 40
        del due[number]
        assert len(agenda._heap) + len(agenda._old_heap) <= 3 * len(due) + 200
    left = sorted(due, key=lambda number: due[number])
    while left:
        soonest, limit = agenda.next_due(), due[left[0]]
        assert soonest <= limit
        calls, item = count_calls(partial(agenda.pop, 1.0))
        assert calls <= 8 * REMOVED_ENTRIES
        assert item in (left[0], None)
        if item is not None:
            del left[0]
    assert agenda.pop(1.0) is None
    assert agenda.next_due() == math.inf


def test_a_cancelled_close_ends_every_wait() -> None:
    """If ``aclose()`` is cancelled between two steps, the remaining waits end too."""

    async def main() -> None:
        poller = Poller(SimulatedFlora().operations())
        outcomes = RunOutcomes(poller, [WaitTarget(f"run_{number}") for number in range(1000)], poll=None, timeout=600)
        first = asyncio.create_task(anext(outcomes))
        while len(poller._tracked) < 1000:
            await asyncio.sleep(0)
        first.cancel()
        closing = asyncio.create_task(outcomes.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        await asyncio.sleep(0.1)
        assert not poller._tracked

    run_virtually(main())


class Thing:
    """Value of a caller's context variable."""


async def cancel_waits() -> bool:
    """Wait for runs and cancel. Return whether the caller's context is released while other waits continue."""
    flora, held = SimulatedFlora(), ContextVar[Thing]("held")
    poller = Poller(flora.operations())
    runs = [Simulated(f"run_{number}", 0.0, 0.0, 1000.0) for number in range(4)]
    for run in runs:
        flora.add(run)

    async def wait(run: Simulated) -> None:
        held.set(Thing())
        things.append(weakref.ref(held.get()))
        await poller.add_waiter(poller.track(started(run, 10.0), None), deadline=900.0)

    things: list[weakref.ref[Thing]] = []
    first = [asyncio.create_task(wait(run)) for run in runs]
    await asyncio.sleep(20)
    others = [poller.add_waiter(poller.track(started(run, 10.0), None), deadline=900.0) for run in runs]
    await asyncio.sleep(20)
    for task in first:
        task.cancel()
    await asyncio.wait(first)
    del first, task
    await asyncio.sleep(60)
    gc.collect()
    assert not any(other.done() for other in others)
    assert len(poller._deadlines) == len(others)
    return not any(thing() for thing in things)


def test_a_departed_wait_leaves_nothing_behind() -> None:
    """A cancelled wait releases its context and deadline, also if it was the first of several waits for a run."""
    assert run_virtually(cancel_waits())


async def end_loop_with_waits() -> None:
    """Start waits whose caller never comes back for them."""
    flora = SimulatedFlora()
    poller = Poller(flora.operations())
    run = Simulated("run_1", 0.0, 0.0, 1000.0)
    flora.add(run)
    poller.add_waiter(poller.track(started(run, 10.0), None), deadline=900.0)
    await asyncio.sleep(20)


def test_a_wait_that_ends_with_the_loop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Its caller has gone: asyncio reports no error that was never retrieved."""
    run_virtually(end_loop_with_waits())
    gc.collect()
    assert not caplog.records


async def crowd(count: int, limit: float) -> list[float]:
    """Create runs of 3 seconds that share the limit with polls. Return the lag of each end."""
    flora, loop = SimulatedFlora(limit=limit), asyncio.get_running_loop()
    poller, calls = Poller(flora.operations()), flora._limiter.calls

    async def one(number: int) -> float:
        while True:  # as a client that retries: all begin at once, and FLORA refuses most
            began = loop.time()
            sent = began if calls.try_acquire(began) else await calls.acquire(began)
            admitted = flora._admit(sent)
            await asyncio.sleep(0.1)
            if not admitted:
                flora._limiter.on_rate_limited(1.0, sent=sent)
            calls.release(sent, succeeded=admitted)
            if admitted:
                break
        run = Simulated(f"run_{number}", loop.time(), 0.0, 3.0)
        flora.add(run)
        assert await poller.add_waiter(poller.track(started(run, 3.0), None), deadline=math.inf)
        return loop.time() - run.ends

    return await asyncio.gather(*(one(number) for number in range(count)))


def test_polls_keep_up_with_creates_under_a_limit() -> None:
    """With 300 orders at 10 requests per second, the lag is 3 seconds on average and 6 at most."""
    lags = run_virtually(crowd(300, 10.0))
    assert sum(lags) / len(lags) <= 3
    assert max(lags) <= 6


@pytest.mark.parametrize("keyset", [False, True])
def test_a_large_steady_crowd_is_read_by_pages(*, keyset: bool) -> None:
    """300 runs cost less than one request each, with offset and keyset cursors."""

    async def main() -> int:
        flora = (KeysetFlora if keyset else SimulatedFlora)(limit=10.0)
        poller, chance, loop = Poller(flora.operations()), random.Random(1), asyncio.get_running_loop()

        async def one(number: int) -> None:
            await asyncio.sleep(chance.uniform(0, 100))
            run = Simulated(f"run_{number}", loop.time(), 0.5, chance.uniform(60, 150))
            flora.add(run)
            await poller.add_waiter(poller.track(started(run, 110.0), None), deadline=math.inf)

        await asyncio.gather(*(one(number) for number in range(300)))
        return flora.requests

    assert run_virtually(main()) <= 300


class KeysetFlora(SimulatedFlora):
    """A simulated FLORA whose cursors name the last row of a page, not an offset."""

    async def _read_page(self, limiter: RateLimiter, cursor: str | None, _scope: Scope, turn: float) -> GenerationPage:
        seen_at = await self.request(limiter, limiter.polls, turn, PAGE_SECONDS)
        created, _, run_id = (cursor or "").partition("|")
        end = bisect_left(self._order, (float(created), run_id)) if cursor else len(self._order)
        taken = self._order[max(0, end - 100) : end][::-1]
        rows = [self._row(self._by_id[run_id], seen_at) for _, run_id in taken]
        following = f"{taken[-1][0]!r}|{taken[-1][1]}" if end > 100 else None
        return GenerationPage(
            generations=tuple(row for row in rows if row is not None), meta=PageMeta(next_cursor=following)
        )


class NeverPollsIndividually(Poller):
    """A mutant that reads pages only."""

    def _start_run_poll(self, tracked: TrackedRun, turn: float) -> None:
        self._operations.lane.release(turn, succeeded=False)
        tracked.poll_individually, tracked.retry_at = False, asyncio.get_running_loop().time() + 5
        self._schedule(tracked)


class AcceptsEveryRow(Poller):
    """A mutant that accepts finished rows without outputs."""

    def _lacks_outputs(self, row: Generation) -> bool:
        return False


class ForgetsMissingRuns(Poller):
    """A mutant that stops tracking a run missing from its page."""

    def _count_page_miss(self, tracked: TrackedRun) -> None:
        self._untrack(tracked)


@pytest.mark.parametrize("mutant", [NeverPollsIndividually, AcceptsEveryRow, ForgetsMissingRuns])
def test_broken_pollers_are_detected(mutant: type[Poller]) -> None:
    """The trial detects each mutant within twelve seeds."""
    with pytest.raises(AssertionError):
        for seed in range(12):
            run_virtually(hostile(seed, mutant))
