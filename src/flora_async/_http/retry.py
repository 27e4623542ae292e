"""Pure: the retry policy: backoff delays and the retry budget."""

from __future__ import annotations

import random
from collections.abc import Sequence

import backoff

from flora_async import errors

# FLORA recommends exponential backoff, capped at 30 s. Jitter keeps many callers from retrying at the same time.
RETRY_FIRST = 0.5
RETRY_CAP = 30.0
RATE_LIMIT_PAUSE = 1.0
"""Minimum pause in seconds after a 429 without ``Retry-After``."""
RETRY_AFTER_CAP = 60.0
"""Longest ``Retry-After`` in seconds that a call waits for; a longer one raises the error."""
RESEND_PAUSE = 1.0
RESEND_PAUSE_AFTER_TIMEOUT = 5.0
"""Seconds before a create is resent: FLORA may execute two simultaneous requests under one key."""
RESEND_WINDOW = 1800.0
"""Seconds after which a create is not resent. FLORA deletes keys after 2 hours, by its reference."""

# Recovery of a run whose create was accepted and whose response was lost.
NOT_FOUND_GRACE = 10.0
"""Seconds after its creation in which a run may be missing on some servers and in the history."""
RECOVERY_PAUSES = (NOT_FOUND_GRACE, 4.0, 8.0, 8.0)
"""Seconds before each further read of the history. A run missing in the first read proves nothing."""
RECOVERY_CONFIRM = 2.0
"""Seconds to wait for other creates in flight, before the history is matched without them."""
CLOCK_SKEW = 2.0
"""Maximum error in seconds of FLORA's clock as estimated from ``Date`` headers."""
CLOCK_SKEW_WITHOUT_DATE = 60.0
"""The same, before the first such header."""
RETRY_BUDGET = 20.0
RETRY_SHARE = 0.2
"""Retries earned by each request: in an outage the load grows by no more than this share."""


def backoff_delay(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row."""
    delays = backoff.expo(base=2, factor=RETRY_FIRST, max_value=RETRY_CAP)
    next(delays)
    for _ in range(failures - 1):
        next(delays)
    return next(delays) * random.uniform(0.5, 1.0)


def next_retry_delay(
    failures: Sequence[errors.FloraError], *, retries: int, idempotent: bool, billable: bool, elapsed: float
) -> float | None:
    """Return the seconds to wait before the next retry; ``None`` if there is no retry.

    *failures* are the errors of this call, oldest first. *elapsed* is the time in seconds since the first attempt that
    FLORA can have received.
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
    elif billable and failure.outcome_unknown:
        late = isinstance(failure, errors.APITimeoutError)
        delay = max(RESEND_PAUSE_AFTER_TIMEOUT if late else RESEND_PAUSE, delay)
    elif not failure.retryable or sum(map(_is_unusable, failures)) > 1:
        return None
    return None if billable and elapsed + delay > RESEND_WINDOW else delay


def _is_unusable(failure: errors.FloraError) -> bool:
    """Return whether a response came that is not this API's. The first can be a stray, a second one is permanent."""
    return isinstance(failure, errors.ProtocolError | errors.ResponseDecodeError)


def may_have_been_received(failure: errors.FloraError) -> bool:
    """Return whether FLORA can have received the failed request: its idempotency key may be stored from then on."""
    return isinstance(failure, errors.APIError | errors.ResponseDecodeError) or (
        isinstance(failure, errors.APIConnectionError) and failure.sent != "not_sent"
    )


class RetryBudget:
    """The retries that a client may still make: a share of its requests, so that an outage does not multiply load."""

    def __init__(self) -> None:
        self._left = RETRY_BUDGET

    def deposit(self) -> None:
        """Count a request."""
        self._left = min(RETRY_BUDGET, self._left + RETRY_SHARE)

    def try_withdraw(self) -> bool:
        """Withdraw one retry; return whether there was one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
