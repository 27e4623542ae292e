"""When to try again and when to look again: numbers and decisions."""

import math
from collections.abc import Generator
from typing import Any

import backoff
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ClientClosedError,
    ConfigurationError,
    FloraError,
    IdempotencyConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
    ResponseTooLargeError,
    Run,
)
from flora_async._http import retry
from flora_async._polling import schedule
from flora_async._polling.schedule import PollState

REFUSED = APIConnectionError("refused", sent="not_sent")
CUT = APIConnectionError("cut", sent="maybe_sent")
LATE = APITimeoutError("late", sent="maybe_sent")
BAD_CERTIFICATE = APIConnectionError("certificate", sent="not_sent", retryable=False)
GARBAGE = ProtocolError("garbage")
REDIRECT = ProtocolError("redirect", status=302, retryable=False)
HTML = ResponseDecodeError("no", field=None, url="u", status=200, request_id=None, excerpt=" <!DOCTYPE html>")
ACCEPTED_OTHERWISE = ProtocolError("answered 200", status=200)
UNDECODABLE = ResponseDecodeError("no", field=None, url="u", status=201, request_id=None, excerpt="")
BUSY = InternalServerError("busy", status=503)
BROKEN = InternalServerError("broken", status=500)
SLOW_DOWN = RateLimitError("slow down", status=429)
BAD = BadRequestError("bad", status=400)


def pause(failure: FloraError, *, failures: int = 1, billable: bool = False, **changes: Any) -> float | None:
    """Say how long to pause after *failure*."""
    settings: dict[str, Any] = {"retries": 2, "idempotent": True, "elapsed": 1.0, **changes}
    return retry.next_retry_delay([failure] * failures, billable=billable, **settings)


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, BUSY, BROKEN, SLOW_DOWN, APIError("late", status=408)])
def test_reads_are_tried_again(failure: FloraError) -> None:
    """After connection faults, time-outs, 429 and 5xx, as often as allowed."""
    assert pause(failure, failures=1) is not None
    assert pause(failure, failures=2) is not None
    assert pause(failure, failures=3) is None
    assert pause(failure, retries=0) is None
    assert pause(failure, idempotent=False) is None


@pytest.mark.parametrize("failure", [BAD_CERTIFICATE, REDIRECT, UNDECODABLE, BAD, ClientClosedError("closed")])
def test_reads_that_another_try_does_not_mend(failure: FloraError) -> None:
    """They end at once."""
    assert pause(failure) is None


@pytest.mark.parametrize("failure", [GARBAGE, HTML])
def test_reads_that_another_try_may_mend(failure: FloraError) -> None:
    """One: a stray answer comes once, a broken server always answers so."""
    assert pause(failure, failures=1) is not None
    assert pause(failure, failures=2) is None


@pytest.mark.parametrize("failure", [CUT, GARBAGE, ACCEPTED_OTHERWISE, UNDECODABLE, BROKEN])
def test_creates_that_may_have_arrived_are_sent_again_a_second_later(failure: FloraError) -> None:
    """Under the same key, so that they cannot be billed twice."""
    delay = pause(failure, billable=True)
    assert delay is not None
    assert delay >= retry.RESEND_PAUSE


def test_creates_that_timed_out_wait_longer() -> None:
    """Two requests under one key at once may both execute."""
    delay = pause(LATE, billable=True)
    assert delay is not None
    assert delay >= retry.RESEND_PAUSE_AFTER_TIMEOUT


@pytest.mark.parametrize("failure", [REFUSED, BUSY, SLOW_DOWN])
def test_creates_that_did_not_arrive_are_sent_again(failure: FloraError) -> None:
    """They cost nothing yet."""
    assert pause(failure, billable=True) is not None


@pytest.mark.parametrize("failure", [BAD, REDIRECT, BAD_CERTIFICATE, IdempotencyConflictError("used", status=409)])
def test_creates_that_were_refused(failure: FloraError) -> None:
    """They end at once."""
    assert pause(failure, billable=True) is None


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, BUSY])
def test_no_create_is_sent_again_after_half_an_hour(failure: FloraError) -> None:
    """FLORA forgets keys; long before it does we stop."""
    assert pause(failure, billable=True, elapsed=retry.RESEND_WINDOW) is None
    assert pause(failure, elapsed=retry.RESEND_WINDOW) is not None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("billable", [False, True])
def test_retry_after_is_honoured_up_to_a_minute(status: int, billable: bool) -> None:
    """Above that the error comes at once, with the value."""
    kind = RateLimitError if status == 429 else InternalServerError
    for seconds in (2.0, 60.0):
        delay = pause(kind("", status=status, retry_after=seconds), billable=billable)
        assert delay is not None
        assert delay >= seconds
    assert pause(kind("", status=status, retry_after=60.5), billable=billable) is None


def test_a_429_without_a_word_pauses_a_second() -> None:
    """At least."""
    assert all((pause(SLOW_DOWN) or 0) >= 1.0 for _ in range(50))


@given(st.integers(1, 5000))
def test_delays_grow_and_are_capped(failures: int) -> None:
    """Exponential, with jitter, at most 30 seconds, never none."""
    delay = retry.backoff_delay(failures)
    top = min(0.5 * 2 ** min(failures - 1, 100), 30)
    assert top / 2 <= delay <= top


@pytest.mark.parametrize(
    ("failure", "arrived"),
    [
        *((failure, True) for failure in (CUT, LATE, GARBAGE, ACCEPTED_OTHERWISE, UNDECODABLE, BROKEN, BUSY)),
        *((failure, False) for failure in (REFUSED, REDIRECT, SLOW_DOWN, BAD, ClientClosedError("closed"))),
    ],
)
def test_what_may_have_arrived(failure: FloraError, arrived: bool) -> None:
    """Doubt is about what FLORA can have accepted."""
    assert failure.outcome_unknown is arrived


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, GARBAGE, UNDECODABLE, BUSY, BROKEN, SLOW_DOWN])
def test_passing_faults_never_end_a_wait(failure: FloraError) -> None:
    """However old the run is."""
    assert not schedule.is_fatal(failure, age=1e9)


@pytest.mark.parametrize(
    "failure",
    [
        BAD,
        REDIRECT,
        BAD_CERTIFICATE,
        ResponseTooLargeError("too large"),
        AuthenticationError("no", status=401),
        PermissionDeniedError("no", status=403),
        ClientClosedError("closed"),
        ConfigurationError("other loop"),
    ],
)
def test_definite_failures_end_a_wait(failure: FloraError) -> None:
    """At once."""
    assert schedule.is_fatal(failure, age=0.0)


def test_a_404_counts_from_ten_seconds_on() -> None:
    """A fresh run may not be known everywhere."""
    missing = NotFoundError("no", status=404)
    assert not schedule.is_fatal(missing, age=9.9)
    assert schedule.is_fatal(missing, age=10.1)


def test_the_pause_after_a_look_that_failed() -> None:
    """Retry-After always wins, however long; otherwise looks go on at least as often as ever."""
    assert schedule.poll_retry_delay(RateLimitError("", status=429, retry_after=300.0), 1) == 300.0
    assert schedule.poll_retry_delay(SLOW_DOWN, 1) >= 1.0
    assert all(0 < schedule.poll_retry_delay(CUT, failures) <= schedule.POLL_CAP for failures in range(1, 50))


# -- the schedule


def seen(progress: float = 0.0, started: float | None = None) -> Run:
    """Give an unfinished run that began work *started* seconds after its creation."""
    began = None if started is None else 1000.0 + started
    return Run(run_id="run_1", status="running", progress=progress, created_at=1000.0, started_at=began)


def primed(estimate: float | None) -> Generator[float, PollState, None]:
    """Give a schedule that was primed as backoff primes its own."""
    plan = schedule.adaptive_schedule(estimate)
    next(plan)
    return plan


def unshaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the jitter out."""
    monkeypatch.setattr(schedule, "POLL_JITTER", 0.0)


@pytest.mark.parametrize(
    ("estimate", "age", "delay"),
    [
        (10.0, 0.0, 6.5),  # 65 % of what remains
        (10.0, 6.5, 3.25),  # a run that still queues has half of its time before it, at least
        (100.0, 0.0, 12.0),  # never longer
        (1.0, 0.0, 2.0),  # never shorter
        (None, 0.0, 2.0),
        (None, 100.0, 5.0),  # half the square root of the age
        (None, 10_000.0, 12.0),
        (0.0, 100.0, 5.0),  # an estimate that says nothing
        (-5.0, 100.0, 5.0),
        (math.nan, 100.0, 5.0),
        (10.0, -3.0, 6.5),  # a clock that runs behind
    ],
)
def test_the_schedule(monkeypatch: pytest.MonkeyPatch, estimate: float | None, age: float, delay: float) -> None:
    """Without news of progress."""
    unshaken(monkeypatch)
    assert primed(estimate).send(PollState(age, seen())) == pytest.approx(delay, rel=0.01)


def test_work_that_began_late_ends_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate counts from where work began."""
    unshaken(monkeypatch)
    assert primed(10.0).send(PollState(20.0, seen(started=18.0))) == pytest.approx(0.65 * 8)


def test_progress_that_moves_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half done after 20 seconds means 20 to go, whatever the estimate was."""
    unshaken(monkeypatch)
    plan = primed(500.0)
    plan.send(PollState(10.0, seen(0, started=0.0)))
    assert plan.send(PollState(20.0, seen(50, started=0.0))) == pytest.approx(12.0)
    assert plan.send(PollState(32.0, seen(80, started=0.0))) == pytest.approx(0.65 * 8)


def test_a_bar_that_stands_still_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot make the looks more frequent for ever."""
    unshaken(monkeypatch)
    plan = primed(None)
    delays = [plan.send(PollState(float(age), seen(99, started=0.0))) for age in range(1, 400, 10)]
    assert delays[-1] > 9


@given(
    st.none() | st.floats(),
    st.lists(
        st.tuples(st.floats(-10, 1e6), st.floats(0, 100), st.none() | st.floats(-100, 1e6)), min_size=1, max_size=20
    ),
)
def test_any_run_is_looked_at_every_two_to_thirteen_seconds(
    estimate: float | None, sightings: list[tuple[float, float, float | None]]
) -> None:
    """Whatever FLORA says of estimate, progress and times."""
    plan = primed(estimate)
    for age, progress, started in sightings:
        assert 2.0 <= plan.send(PollState(age, seen(progress, started))) <= 13.3


def test_backoffs_own_generators_are_schedules() -> None:
    """Each is primed, then gives its delays; one that ends keeps to its last."""
    for make, delays in (
        (lambda: backoff.constant(interval=2), [2, 2, 2, 2]),
        (lambda: backoff.constant(interval=[1, 3]), [1, 3, 3, 3]),
        (lambda: backoff.expo(base=2, factor=1, max_value=5), [1, 2, 4, 5]),
        (lambda: backoff.fibo(max_value=3), [1, 1, 2, 3]),
        (lambda: backoff.constant(interval=0), [0.01] * 4),
    ):
        plan = make()
        next(plan)
        last = 9.0
        assert [last := schedule.next_delay(plan, last) for _ in range(4)] == delays


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, "2", None, True])
def test_schedules_that_make_no_sense(value: Any) -> None:
    """The error says what came."""

    def plan() -> Generator[Any, Any, None]:
        yield value

    with pytest.raises(ConfigurationError, match="schedule"):
        schedule.next_delay(plan(), 1.0)
