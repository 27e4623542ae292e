"""Pure: when to poll a run next, and which poll errors end a wait."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from typing import Any, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async._http.retry import NOT_FOUND_GRACE, RATE_LIMIT_PAUSE, backoff_delay
from flora_async.models import Run

PollSchedule: TypeAlias = Generator[float, Any, None]
"""A wait generator in backoff's protocol: the first ``next()`` primes it, each further one gives seconds to wait."""

PollFactory: TypeAlias = Callable[[], PollSchedule]
"""Gives a fresh schedule for each run, like ``lambda: backoff.constant(interval=2)``."""

# Looking again. One request is worth a quarter of a second of waiting; from there the square root (see run_schedule).
POLL_STEP = 0.5
POLL_AIM = 0.65
POLL_FLOOR = 2.0
POLL_CAP = 12.0
POLL_JITTER = 0.1
POLL_LEAST = 0.01
"""The least pause that a caller's own schedule can ask for."""
NET_FIRST = 60.0
"""Seconds until the first look at a run that a call-back is expected of; FLORA repeats those after 10 s and 1 min."""
NET_CAP = 300.0


def is_fatal(failure: errors.FloraError, *, age: float) -> bool:
    """Say whether a failed look ends a wait; *age* is the seconds since the run was created, or first asked for."""
    if isinstance(failure, errors.NotFoundError):
        return age > NOT_FOUND_GRACE
    return not (failure.retryable or isinstance(failure, errors.ResponseDecodeError))


def should_drop_poll_url(failure: errors.FloraError) -> bool:
    """Say whether a failed look at a ``poll_url`` may fare better at the run's own address."""
    if isinstance(failure, errors.APIError):
        return not (failure.retryable or isinstance(failure, errors.AuthenticationError))
    return isinstance(failure, errors.ProtocolError | errors.ResponseDecodeError)


def poll_retry_delay(failure: errors.FloraError, failures: int) -> float:
    """Say how long to wait after so many looks in a row that told nothing."""
    asked = failure.retry_after if isinstance(failure, errors.APIError) else None
    floor = RATE_LIMIT_PAUSE if isinstance(failure, errors.RateLimitError) else 0.0
    return max(floor, asked or 0.0, min(backoff_delay(failures), POLL_CAP))


class PollState(Struct, frozen=True, gc=False):
    """What is known when the next look is planned."""

    age: float
    """Seconds since the run was created."""
    run: Run | None
    """The run as it was just seen; ``None`` before the first look."""


def adaptive_schedule(estimate: float | None) -> Generator[float, PollState, None]:
    """Plan the looks at one run that should take *estimate* seconds, where somebody knows.

    A wait generator in backoff's protocol, which is sent a :class:`PollState` each time. While the run should
    need R more seconds it waits 65 % of R, so a few steps close in on the finish. Around and after it the gap is half
    the square root of the age, the growth that is best when the true scale is unknown. Progress counts only when it
    moves. No gap is under 2 s, FLORA's advice, or over 12 s, give or take a tenth.
    """
    estimate = estimate if estimate and math.isfinite(estimate) and estimate > 0 else None
    progress, moved = 0.0, 0.0
    sighting = yield 0.0
    while True:
        age, run = max(0.0, sighting.age), sighting.run
        began = _began(run) if run else None
        if run and run.progress != progress:
            progress, moved = run.progress, age
        finish = None
        if estimate is not None:
            # A run that still queues takes its time from now on, at least half of it.
            finish = began + estimate if began is not None else max(estimate, age + 0.5 * estimate)
        confirmed = began is not None and 5 <= progress < 100 and moved > began
        if began is not None and confirmed:
            implied = began + (moved - began) * 100 / progress
            weight = min(1.0, progress / 50)
            finish = implied if finish is None else max(finish, 0.1) ** (1 - weight) * max(implied, 0.1) ** weight
        gap = POLL_STEP * math.sqrt(age)
        if finish is not None and confirmed and age < 1.2 * finish:
            gap /= 2
        gap = max(POLL_FLOOR, gap, POLL_AIM * (finish - age) if finish is not None else 0.0)
        gap = min(gap, max(POLL_CAP, POLL_FLOOR))
        sighting = yield max(POLL_FLOOR, gap * random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER))


def webhook_fallback_schedule(estimate: float | None) -> Generator[float, PollState, None]:
    """Plan the looks at a run whose end FLORA will call back about: long after it should have come, then ever rarer."""
    first = max(NET_FIRST, 2 * (estimate or 0.0))
    sighting = yield 0.0
    gap = max(POLL_FLOOR, first - sighting.age)
    while True:
        yield gap * random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER)
        gap = min(2 * max(first, gap), max(NET_CAP, first))


def _began(run: Run) -> float | None:
    """Say how many seconds after its creation work on a run began: both times are FLORA's own."""
    started = run.started
    return max(0.0, (started - run.created).total_seconds()) if started is not None else None


def start_schedule(poll: PollFactory) -> PollSchedule:
    """Return a fresh schedule of a caller's *poll* function, primed as backoff primes its own."""
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
    """Try a caller's own schedule before anything is paid that it is for: its first delay must be one."""
    try:
        schedule = poll()
        next(schedule)
        next_delay(schedule, POLL_LEAST)
    except (TypeError, StopIteration) as error:
        raise errors.ConfigurationError(
            f"poll must return a wait generator, like backoff.constant(interval=2): {error or 'it yields nothing'}"
        ) from None


def next_delay(schedule: PollSchedule, last: float) -> float:
    """Ask a caller's own schedule for its next delay; one that has ended keeps to its last."""
    return max(POLL_LEAST, _checked_delay(next(schedule, last)))


def _checked_delay(delay: object) -> float:
    if isinstance(delay, bool) or not isinstance(delay, int | float) or not delay >= 0 or math.isinf(delay):
        raise errors.ConfigurationError(f"the poll schedule must yield finite seconds from 0 on, not {delay!r}")
    return float(delay)
