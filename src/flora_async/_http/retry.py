"""Pure: the retry policy: backoff delays and the retry budget."""

from __future__ import annotations

import random
from collections.abc import Sequence

import backoff

from flora_async import errors

# Trying again. FLORA's advice: exponential, capped at 30 s. With jitter, so that many callers do not return in step.
RETRY_FIRST = 0.5
RETRY_CAP = 30.0
RATE_LIMIT_PAUSE = 1.0
"""The least pause after a 429 that does not say for how long."""
RETRY_AFTER_CAP = 60.0
"""The longest ``Retry-After`` that a call sits out."""
RESEND_PAUSE = 1.0
RESEND_PAUSE_AFTER_TIMEOUT = 5.0
"""Two requests under one idempotency key at once may both execute, so the first gets time to end."""
RESEND_WINDOW = 1800.0
"""FLORA forgets keys, after 2 hours by its reference; a create is never sent again later than this."""

# Finding a run whose create was accepted, and its answer lost.
NOT_FOUND_GRACE = 10.0
"""Seconds after its creation in which a run may be unknown to the server that is asked, and missing in the history."""
RECOVERY_PAUSES = (NOT_FOUND_GRACE, 4.0, 8.0, 8.0)
"""Seconds before each further look at the history. Only after the first does it prove anything by what is missing."""
RECOVERY_CONFIRM = 2.0
"""Seconds in which other creates in flight are given their runs, before a look that depends on them is judged."""
CLOCK_SKEW = 2.0
"""Seconds by which FLORA's clock may be off from what its ``Date`` headers tell."""
CLOCK_SKEW_UNHEARD = 60.0
"""The same, while no such header was seen."""
RETRY_BUDGET = 20.0
RETRY_SHARE = 0.2
"""Each request earns a fifth of a second try; in an outage the load grows by no more."""


def backoff_delay(failures: int) -> float:
    """Say how long to pause after so many failures in a row."""
    delays = backoff.expo(base=2, factor=RETRY_FIRST, max_value=RETRY_CAP)
    next(delays)
    for _ in range(failures - 1):
        next(delays)
    return next(delays) * random.uniform(0.5, 1.0)


def next_retry_delay(
    failures: Sequence[errors.FloraError], *, retries: int, idempotent: bool, billable: bool, elapsed: float
) -> float | None:
    """Return how long to pause before the same request is sent again; ``None``: it is not.

    *failures* are those of this call, oldest first; *elapsed* the seconds since the first attempt that FLORA can have
    seen.
    """
    failure = failures[-1]
    if not idempotent or len(failures) > retries:
        return None
    delay = backoff_delay(len(failures))
    if isinstance(failure, errors.APIError) and failure.status in (429, 503):
        asked = failure.retry_after
        if asked is not None and asked > RETRY_AFTER_CAP:
            return None
        if asked is not None:
            delay = max(asked, delay)
        elif failure.status == 429:
            delay = max(RATE_LIMIT_PAUSE, delay)
        if billable and failure.status == 503:
            delay = max(RESEND_PAUSE, delay)
    elif billable and may_have_arrived(failure):
        late = isinstance(failure, errors.APITimeoutError)
        delay = max(RESEND_PAUSE_AFTER_TIMEOUT if late else RESEND_PAUSE, delay)
    elif not _passing(failure) or sum(map(_unusable, failures)) > 1:
        return None
    return None if billable and elapsed + delay > RESEND_WINDOW else delay


def _passing(failure: errors.FloraError) -> bool:
    if isinstance(failure, errors.APIConnectionError):
        return failure.retryable
    if isinstance(failure, errors.ResponseDecodeError):
        return failure.excerpt.lstrip().startswith("<")  # a page of something in between
    return isinstance(failure, errors.APIError) and failure.status >= 500


def _unusable(failure: errors.FloraError) -> bool:
    """Say whether an answer came and was none of this API's: once that is a stray, twice it is how things are."""
    return isinstance(failure, errors.ProtocolError | errors.ResponseDecodeError)


def may_have_been_seen(failure: errors.FloraError) -> bool:
    """Return whether FLORA can have seen a request that ended so, accepted or not: its key may count from then."""
    return isinstance(failure, errors.APIError | errors.ResponseDecodeError) or (
        isinstance(failure, errors.APIConnectionError) and failure.sent != "not_sent"
    )


def may_have_arrived(failure: errors.FloraError) -> bool:
    """Return whether a create that ended so may have been accepted. A 5xx can come from behind the acceptance."""
    if isinstance(failure, errors.ProtocolError):
        return failure.status is None or not 300 <= failure.status < 400
    if isinstance(failure, errors.APIConnectionError):
        return failure.sent != "not_sent"
    if isinstance(failure, errors.APIError):
        return failure.status >= 500
    return isinstance(failure, errors.ResponseDecodeError)


class RetryBudget:
    """How many second tries a client may still make: a share of its requests, so that an outage is not made worse."""

    def __init__(self) -> None:
        self._left = RETRY_BUDGET

    def earn(self) -> None:
        """Count a request."""
        self._left = min(RETRY_BUDGET, self._left + RETRY_SHARE)

    def spend(self) -> bool:
        """Take a second try, if there is one left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
