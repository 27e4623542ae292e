"""Retry decisions: which failed requests are sent again, and when."""

from typing import Any

import pytest
from failures import (
    ACCEPTED_OTHERWISE,
    BAD,
    BAD_CERTIFICATE,
    BROKEN,
    BUSY,
    CUT,
    GARBAGE,
    HTML,
    LATE,
    REDIRECT,
    REFUSED,
    SLOW_DOWN,
    UNDECODABLE,
)
from hypothesis import given
from hypothesis import strategies as st

from flora_async import (
    APIError,
    ClientClosedError,
    FloraError,
    IdempotencyConflictError,
    InternalServerError,
    RateLimitError,
)
from flora_async._http.retry import RetryPolicy

RETRY = RetryPolicy()


def pause(failure: FloraError, *, failures: int = 1, billable: bool = False, **changes: Any) -> float | None:
    """Return the delay before the next retry after *failure*, or ``None``."""
    settings: dict[str, Any] = {"retries": 2, "idempotent": True, "elapsed": 1.0, **changes}
    return RETRY.next_delay([failure] * failures, billable=billable, **settings)


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, BUSY, BROKEN, SLOW_DOWN, APIError("late", status=408)])
def test_reads_are_retried(failure: FloraError) -> None:
    """Reads are retried after connection errors, timeouts, 429 and 5xx, up to the maximum."""
    assert pause(failure, failures=1) is not None
    assert pause(failure, failures=2) is not None
    assert pause(failure, failures=3) is None
    assert pause(failure, retries=0) is None
    assert pause(failure, idempotent=False) is None


@pytest.mark.parametrize("failure", [BAD_CERTIFICATE, REDIRECT, UNDECODABLE, BAD, ClientClosedError("closed")])
def test_definite_errors_of_reads_are_not_retried(failure: FloraError) -> None:
    """Reads are not retried after definite errors."""
    assert pause(failure) is None


@pytest.mark.parametrize("failure", [GARBAGE, HTML])
def test_undecodable_responses_are_retried_once(failure: FloraError) -> None:
    """A response that cannot be decoded is retried once: a broken server always sends it."""
    assert pause(failure, failures=1) is not None
    assert pause(failure, failures=2) is None


@pytest.mark.parametrize("failure", [CUT, GARBAGE, ACCEPTED_OTHERWISE, UNDECODABLE, BROKEN])
def test_creates_that_may_have_arrived_are_retried_after_a_second(failure: FloraError) -> None:
    """A create that may have arrived is retried under the same key after a second, so it is billed once."""
    delay = pause(failure, billable=True)
    assert delay is not None
    assert delay >= RETRY.resend_pause


def test_creates_that_timed_out_wait_longer() -> None:
    """A create that timed out is retried later: two concurrent requests under one key may both execute."""
    delay = pause(LATE, billable=True)
    assert delay is not None
    assert delay >= RETRY.resend_pause_after_timeout


@pytest.mark.parametrize("failure", [REFUSED, BUSY, SLOW_DOWN])
def test_creates_that_did_not_arrive_are_retried(failure: FloraError) -> None:
    """A create that did not reach the server is retried."""
    assert pause(failure, billable=True) is not None


@pytest.mark.parametrize("failure", [BAD, REDIRECT, BAD_CERTIFICATE, IdempotencyConflictError("used", status=409)])
def test_creates_that_were_refused(failure: FloraError) -> None:
    """Refused creates are not retried."""
    assert pause(failure, billable=True) is None


@pytest.mark.parametrize("failure", [REFUSED, CUT, LATE, BUSY])
def test_no_create_is_retried_after_half_an_hour(failure: FloraError) -> None:
    """No create is retried after half an hour, because idempotency keys expire."""
    assert pause(failure, billable=True, elapsed=RETRY.resend_window) is None
    assert pause(failure, elapsed=RETRY.resend_window) is not None


def test_a_create_that_was_only_refused_is_sent_after_hours() -> None:
    """After 429s alone nothing was accepted, as while an order waits in the queue. After another failure it may be."""

    def next_delay(*failures: FloraError) -> float | None:
        elapsed = 4 * RETRY.resend_window
        return RETRY.next_delay(failures, retries=3, idempotent=True, billable=True, elapsed=elapsed)

    assert next_delay(SLOW_DOWN, SLOW_DOWN) is not None
    assert next_delay(SLOW_DOWN, BROKEN) is None
    assert next_delay(LATE, SLOW_DOWN) is None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("billable", [False, True])
def test_retry_after_is_honoured_up_to_a_minute(status: int, billable: bool) -> None:
    """Retry-After is followed up to one minute; a longer one raises the error at once, with the value."""
    kind = RateLimitError if status == 429 else InternalServerError
    for seconds in (2.0, 60.0):
        delay = pause(kind("", status=status, retry_after=seconds), billable=billable)
        assert delay is not None
        assert delay >= seconds
    assert pause(kind("", status=status, retry_after=60.5), billable=billable) is None


def test_a_429_without_retry_after_pauses_a_second() -> None:
    """A 429 without Retry-After delays the retry by at least one second."""
    assert all((pause(SLOW_DOWN) or 0) >= 1.0 for _ in range(50))


@given(st.integers(1, 5000))
def test_delays_grow_and_are_capped(failures: int) -> None:
    """Backoff delays are exponential with jitter, positive and at most 30 seconds."""
    delay = RETRY.backoff_delay(failures)
    top = min(0.5 * 2 ** min(failures - 1, 100), 30)
    assert top / 2 <= delay <= top


@pytest.mark.parametrize(
    ("failure", "arrived"),
    [
        *((failure, True) for failure in (CUT, LATE, GARBAGE, ACCEPTED_OTHERWISE, UNDECODABLE, BROKEN, BUSY)),
        *((failure, False) for failure in (REFUSED, REDIRECT, SLOW_DOWN, BAD, ClientClosedError("closed"))),
    ],
)
def test_errors_with_unknown_outcome(failure: FloraError, arrived: bool) -> None:
    """The outcome of a create is unknown only if the server may have accepted it."""
    assert failure.outcome_unknown is arrived
