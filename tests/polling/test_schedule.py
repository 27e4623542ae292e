"""Poll schedules, and the poll errors that end a wait."""

import math
from collections.abc import Generator
from typing import Any

import backoff
import pytest
from failures import BAD, BAD_CERTIFICATE, BROKEN, BUSY, CUT, GARBAGE, LATE, REDIRECT, REFUSED, SLOW_DOWN, UNDECODABLE
from hypothesis import given
from hypothesis import strategies as st

from flora_async import (
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    FloraError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ResponseTooLargeError,
    Run,
)
from flora_async._http.retry import RetryPolicy
from flora_async._polling import schedule
from flora_async._polling.schedule import AdaptiveSchedule, PollPolicy

RETRY, POLL, STEADY = RetryPolicy(), PollPolicy(), PollPolicy(jitter=0.0)


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, GARBAGE, UNDECODABLE, BUSY, BROKEN, SLOW_DOWN])
def test_transient_errors_never_end_a_wait(failure: FloraError) -> None:
    """Transient poll errors never end a wait, at any age of the run."""
    assert not POLL.is_fatal(failure, age=1e9)


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
def test_definite_errors_end_a_wait(failure: FloraError) -> None:
    """Definite poll errors end a wait at once."""
    assert POLL.is_fatal(failure, age=0.0)


def test_a_404_counts_from_ten_seconds_on() -> None:
    """A 404 ends a wait only 10 seconds after the creation of the run."""
    missing = NotFoundError("no", status=404)
    assert not POLL.is_fatal(missing, age=9.9)
    assert POLL.is_fatal(missing, age=10.1)


def test_the_delay_after_a_failed_poll() -> None:
    """After a failed poll, Retry-After is followed at any length. Other delays are capped."""
    assert POLL.retry_delay(RETRY, RateLimitError("", status=429, retry_after=300.0), 1) == 300.0
    assert POLL.retry_delay(RETRY, SLOW_DOWN, 1) >= 1.0
    assert all(0 < POLL.retry_delay(RETRY, CUT, failures) <= POLL.max_delay for failures in range(1, 50))


# -- the schedule


def seen(progress: float = 0.0, started: float | None = None) -> Run:
    """Return an unfinished run that started *started* seconds after its creation."""
    began = None if started is None else 1000.0 + started
    return Run(run_id="run_1", status="running", progress=progress, created_at=1000.0, started_at=began)


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
def test_the_schedule(estimate: float | None, age: float, delay: float) -> None:
    """Without progress, the delay follows the estimate and the age."""
    assert AdaptiveSchedule(STEADY, estimate).next_delay(age, seen()) == pytest.approx(delay, rel=0.01)


def test_the_estimate_counts_from_the_start() -> None:
    """The estimate counts from the start of the run, not from its creation."""
    assert AdaptiveSchedule(STEADY, 10.0).next_delay(20.0, seen(started=18.0)) == pytest.approx(0.65 * 8)


def test_progress_overrides_the_estimate() -> None:
    """Progress of 50 % after 20 seconds predicts 20 more seconds and overrides the estimate."""
    plan = AdaptiveSchedule(STEADY, 500.0)
    plan.next_delay(10.0, seen(0, started=0.0))
    assert plan.next_delay(20.0, seen(50, started=0.0)) == pytest.approx(12.0)
    assert plan.next_delay(32.0, seen(80, started=0.0)) == pytest.approx(0.65 * 8)


def test_constant_progress_is_ignored() -> None:
    """Progress that stays constant does not shorten the delays permanently."""
    plan = AdaptiveSchedule(STEADY, None)
    delays = [plan.next_delay(float(age), seen(99, started=0.0)) for age in range(1, 400, 10)]
    assert delays[-1] > 9


@given(
    st.none() | st.floats(),
    st.lists(
        st.tuples(st.floats(-10, 1e6), st.floats(0, 100), st.none() | st.floats(-100, 1e6)), min_size=1, max_size=20
    ),
)
def test_any_run_is_polled_every_two_to_thirteen_seconds(
    estimate: float | None, sightings: list[tuple[float, float, float | None]]
) -> None:
    """Delays are between 2 and 13 seconds for any estimate, progress and times."""
    plan = AdaptiveSchedule(POLL, estimate)
    for age, progress, started in sightings:
        assert 2.0 <= plan.next_delay(age, seen(progress, started)) <= 13.3


def test_backoffs_own_generators_are_schedules() -> None:
    """Generators of backoff work as schedules; an exhausted one repeats its last delay."""
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
def test_invalid_delays_are_refused(value: Any) -> None:
    """The error names the invalid delay of a custom schedule."""

    def plan() -> Generator[Any, Any, None]:
        yield value

    with pytest.raises(ConfigurationError, match="schedule"):
        schedule.next_delay(plan(), 1.0)
