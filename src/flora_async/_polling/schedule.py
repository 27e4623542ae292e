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

# Parameters of adaptive_schedule. One request is worth a quarter of a second of lag, hence the square root of the age.
INTERVAL_FACTOR = 0.5
REMAINING_SHARE = 0.65
MIN_CUSTOM_DELAY = 0.01
"""Minimum delay of a custom schedule, in seconds."""


class PollState(Struct, frozen=True, gc=False):
    """State of a run when its next poll is scheduled."""

    age: float
    """Seconds since the run was created."""
    run: Run | None
    """The latest record; ``None`` before the first poll."""


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

    def adaptive_schedule(self, estimate: float | None) -> Generator[float, PollState, None]:
        """Yield the delays between polls of a run with an expected duration of *estimate* seconds, or unknown.

        A wait generator in backoff's protocol; each ``send()`` passes a :class:`PollState`. While the run needs R more
        seconds, the delay is 65 % of R: a few polls approach the finish. Near and after it, the delay is half the
        square root of the age, the best growth if the true duration is unknown. Progress counts only while it changes.
        Delays are between 2 s (FLORA's advice) and 12 s, with a jitter of 10 %.
        """
        estimate = estimate if estimate and math.isfinite(estimate) and estimate > 0 else None
        progress, moved = 0.0, 0.0
        state = yield 0.0
        while True:
            age, run = max(0.0, state.age), state.run
            started = _start_delay(run) if run else None
            if run and run.progress != progress:
                progress, moved = run.progress, age
            finish = None
            if estimate is not None:
                # A pending run needs its whole time after the start, at least half of it from now.
                finish = started + estimate if started is not None else max(estimate, age + 0.5 * estimate)
            confirmed = started is not None and 5 <= progress < 100 and moved > started
            if started is not None and confirmed:
                implied = started + (moved - started) * 100 / progress
                weight = min(1.0, progress / 50)
                finish = implied if finish is None else max(finish, 0.1) ** (1 - weight) * max(implied, 0.1) ** weight
            delay = INTERVAL_FACTOR * math.sqrt(age)
            if finish is not None and confirmed and age < 1.2 * finish:
                delay /= 2
            delay = max(self.min_delay, delay, REMAINING_SHARE * (finish - age) if finish is not None else 0.0)
            delay = min(delay, max(self.max_delay, self.min_delay))
            state = yield max(self.min_delay, self._vary(delay))

    def webhook_fallback_schedule(self, estimate: float | None) -> Generator[float, PollState, None]:
        """Yield the delays between polls of a run with a webhook: long after its expected end, then ever longer."""
        first = max(self.first_fallback_delay, 2 * (estimate or 0.0))
        state = yield 0.0
        delay = max(self.min_delay, first - state.age)
        while True:
            yield self._vary(delay)
            delay = min(2 * max(first, delay), max(self.max_fallback_delay, first))

    def _vary(self, delay: float) -> float:
        return delay * random.uniform(1 - self.jitter, 1 + self.jitter)


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
