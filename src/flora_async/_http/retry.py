"""Pure: the retry policy: backoff delays and the retry budget."""

from __future__ import annotations

import random
from collections.abc import Sequence

from msgspec import Struct

from flora_async import errors


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Which failed requests are sent again, and when. Delays are in seconds."""

    # FLORA recommends exponential backoff, capped at 30 s. Jitter keeps many callers from retrying at the same time.
    first_delay: float = 0.5
    max_delay: float = 30.0
    rate_limit_pause: float = 1.0
    """Minimum pause after a 429 without ``Retry-After``."""
    max_retry_after: float = 60.0
    """Longest ``Retry-After`` that a call waits for; a longer one raises the error."""
    resend_pause: float = 1.0
    """Minimum pause before a create is resent: FLORA may execute two simultaneous requests under one key."""
    resend_pause_after_timeout: float = 5.0
    resend_window: float = 1800.0
    """Time after which a create that may have been accepted is not resent. FLORA deletes keys after 2 hours, by its
    reference."""
    budget: float = 20.0
    """Maximum number of saved retries."""
    budget_share: float = 0.2
    """Retries earned by each request: in an outage the load grows by no more than this share."""

    def backoff_delay(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row."""
        from backoff import expo  # imported beside aiohttp, in a thread: see Transport

        delays = expo(base=2, factor=self.first_delay, max_value=self.max_delay)
        next(delays)
        for _ in range(failures - 1):
            next(delays)
        return next(delays) * random.uniform(0.5, 1.0)

    def next_delay(
        self, failures: Sequence[errors.FloraError], *, retries: int, idempotent: bool, billable: bool, elapsed: float
    ) -> float | None:
        """Return the seconds to wait before the next retry; ``None`` if there is no retry.

        *failures* are the errors of this call, oldest first. *elapsed* is the time in seconds since the first attempt
        that FLORA can have received.
        """
        failure = failures[-1]
        if not idempotent or len(failures) > retries:
            return None
        delay = self.backoff_delay(len(failures))
        if isinstance(failure, errors.APIError) and failure.status in (429, 503):
            asked = failure.retry_after
            if asked is not None and asked > self.max_retry_after:
                return None
            if asked is not None:
                delay = max(asked, delay)
            elif failure.status == 429:
                delay = max(self.rate_limit_pause, delay)
            if billable and failure.status == 503:
                delay = max(self.resend_pause, delay)
        elif billable and failure.outcome_unknown:
            late = isinstance(failure, errors.APITimeoutError)
            delay = max(self.resend_pause_after_timeout if late else self.resend_pause, delay)
        elif not failure.retryable or sum(map(_is_unusable, failures)) > 1:
            return None
        late = billable and elapsed + delay > self.resend_window
        # After 429s alone nothing was accepted, however long the create waited in the queue.
        refused = all(isinstance(each, errors.RateLimitError) for each in failures)
        return None if late and not refused else delay


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

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._left = policy.budget

    def deposit(self) -> None:
        """Count a request."""
        self._left = min(self._policy.budget, self._left + self._policy.budget_share)

    def try_withdraw(self) -> bool:
        """Withdraw one retry; return whether there was one."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
