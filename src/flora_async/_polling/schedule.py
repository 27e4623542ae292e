"""Pure: when to poll a run next, and which poll errors end a wait."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async._http.retry import RetryPolicy
from flora_async.models import Run

PollSchedule: TypeAlias = Generator[float, Any, None]
"""A wait generator in backoff's protocol: the first ``next()`` primes it, each further one returns seconds to wait."""

PollFactory: TypeAlias = Callable[[], PollSchedule]
"""Returns a new schedule for each run, like ``lambda: backoff.constant(interval=2)``."""

# Parameters of AdaptiveSchedule. One request is worth a quarter of a second of lag, hence the square root of the age.
INTERVAL_FACTOR = 0.5
REMAINING_SHARE = 0.65
MIN_CUSTOM_DELAY = 0.01
"""Minimum delay of a custom schedule, in seconds."""


class PollPolicy(Struct, frozen=True, kw_only=True):
    """When runs are polled. Delays are in seconds."""

    min_delay: float = 2.0
    """FLORA advises to poll no more often."""
    max_delay: float = 12.0
    jitter: float = 0.1
    """Share by which each delay varies at random."""
    not_found_grace: float = 10.0
    """Time after its creation in which a run may be missing on some servers."""
    first_fallback_delay: float = 60.0
    """Time until the first poll of a run with a webhook. FLORA retries webhooks after 10 s and 1 min."""
    max_fallback_delay: float = 300.0
    max_concurrent: int = 64
    """Maximum number of polls in flight."""

    def is_fatal(self, failure: errors.FloraError, *, age: float) -> bool:
        """Return whether a poll error ends a wait; *age* is the seconds since the run's creation or first poll."""
        if isinstance(failure, errors.NotFoundError):
            return age > self.not_found_grace
        return not (failure.retryable or isinstance(failure, errors.ResponseDecodeError))

    def retry_delay(self, retry: RetryPolicy, failure: errors.FloraError, failures: int) -> float:
        """Return the seconds to wait after a number of failed polls in sequence."""
        retry_after = failure.retry_after if isinstance(failure, errors.APIError) else None
        floor = retry.rate_limit_pause if isinstance(failure, errors.RateLimitError) else 0.0
        return max(floor, retry_after or 0.0, min(retry.backoff_delay(failures), self.max_delay))

    def vary(self, delay: float) -> float:
        """Return the delay with its random share."""
        return delay * random.uniform(1 - self.jitter, 1 + self.jitter)


class AdaptiveSchedule(Struct, eq=False, gc=False):
    """The delays between polls of a run with an expected duration of *estimate* seconds, or unknown.

    While the run needs R more seconds, the delay is 65 % of R: a few polls approach the finish. Near and after it, the
    delay is half the square root of the age, the best growth if the true duration is unknown. Progress counts only
    while it changes. Delays are between 2 s (FLORA's advice) and 12 s, with a jitter of 10 %. Each wait holds one: a
    generator would need seven times the memory.
    """

    policy: PollPolicy
    estimate: float | None
    progress: float = 0.0
    """The latest progress."""
    moved: float = 0.0
    """Age of the run when its progress changed."""

    def __post_init__(self) -> None:
        if not (self.estimate and math.isfinite(self.estimate) and self.estimate > 0):
            self.estimate = None

    def next_delay(self, age: float, run: Run | None) -> float:
        """Return the seconds until the next poll; *age* is the seconds since the run's creation."""
        age = max(0.0, age)
        started = _start_delay(run) if run else None
        if run and run.progress != self.progress:
            self.progress, self.moved = run.progress, age
        finish = None
        if self.estimate is not None:
            # A pending run needs its whole time after the start, at least half of it from now.
            finish = started + self.estimate if started is not None else max(self.estimate, age + 0.5 * self.estimate)
        confirmed = started is not None and 5 <= self.progress < 100 and self.moved > started
        if started is not None and confirmed:
            implied = started + (self.moved - started) * 100 / self.progress
            weight = min(1.0, self.progress / 50)
            finish = implied if finish is None else max(finish, 0.1) ** (1 - weight) * max(implied, 0.1) ** weight
        delay = INTERVAL_FACTOR * math.sqrt(age)
        if finish is not None and confirmed and age < 1.2 * finish:
            delay /= 2
        least = self.policy.min_delay
        delay = max(least, delay, REMAINING_SHARE * (finish - age) if finish is not None else 0.0)
        return max(least, self.policy.vary(min(delay, max(self.policy.max_delay, least))))


class WebhookFallbackSchedule(Struct, eq=False, gc=False):
    """The delays between polls of a run with a webhook: long after its expected end, then ever longer."""

    policy: PollPolicy
    estimate: float | None
    delay: float | None = None
    """The last delay, without its random share."""

    def next_delay(self, age: float, _run: Run | None) -> float:
        """Return the seconds until the next poll; *age* is the seconds since the run's creation."""
        first = max(self.policy.first_fallback_delay, 2 * (self.estimate or 0.0))
        if self.delay is None:
            self.delay = max(self.policy.min_delay, first - age)
        else:
            self.delay = min(2 * max(first, self.delay), max(self.policy.max_fallback_delay, first))
        return self.policy.vary(self.delay)


def should_drop_poll_url(failure: errors.FloraError) -> bool:
    """Return whether a poll that failed at a ``poll_url`` may succeed at the run's own URL."""
    if isinstance(failure, errors.APIError):
        return not (failure.retryable or isinstance(failure, errors.AuthenticationError))
    return isinstance(failure, errors.ProtocolError | errors.ResponseDecodeError)


def _start_delay(run: Run) -> float | None:
    """Return the seconds between creation and start of a run, both by the server's clock."""
    started = run.started
    return max(0.0, (started - run.created).total_seconds()) if started is not None else None


def start_schedule(poll: PollFactory) -> PollSchedule:
    """Return a new primed schedule from a custom *poll* function."""
    schedule = poll()
    try:
        next(schedule)
    except (TypeError, StopIteration) as error:
        raise errors.ConfigurationError(
            f"poll must return a wait generator, like backoff.constant(interval=2), not {type(schedule).__name__}: "
            f"{str(error) or 'it yields nothing'}"
        ) from None
    return schedule


def check_schedule(poll: PollFactory) -> None:
    """Raise ConfigurationError if a custom schedule yields no valid first delay. Call it before a paid request."""
    next_delay(start_schedule(poll), MIN_CUSTOM_DELAY)


def next_delay(schedule: PollSchedule, last: float) -> float:
    """Return the next delay of a custom schedule; an exhausted schedule repeats its last delay."""
    return max(MIN_CUSTOM_DELAY, _checked_delay(next(schedule, last)))


def _checked_delay(delay: object) -> float:
    if isinstance(delay, bool) or not isinstance(delay, int | float) or not delay >= 0 or math.isinf(delay):
        raise errors.ConfigurationError(f"the poll schedule must yield finite seconds from 0 on, not {delay!r}")
    return float(delay)
