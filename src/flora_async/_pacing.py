"""Pure: when to try again and when to look again. Numbers and decisions; no clock, no sleep.

The numbers are module globals, read at each use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeAlias

import backoff
from msgspec import Struct

from flora_async import errors
from flora_async.models import GenerationType, Run

PollSchedule: TypeAlias = Generator[float, Any, None]
"""A wait generator in backoff's protocol: the first ``next()`` primes it, each further one gives seconds to wait."""

PollFactory: TypeAlias = Callable[[], PollSchedule]
"""Gives a fresh schedule for each run, like ``lambda: backoff.constant(interval=2)``."""

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
KEY_SECONDS = 7200.0
"""How long FLORA remembers a key. Reference: "Start a generation"."""

# How many requests a second (as TCP CUBIC finds its rate, RFC 9438), and how many second tries.
RATE_CUT = 0.7
RATE_GROWTH = 0.02
"""Requests a second that a rate gains in a second, one second from its peak; it grows with the cube of that time."""
RATE_FIRST = 2.0
"""What FLORA is thought to take, at least, when it first refuses."""
RATE_FLOOR = 0.1
RETRY_BUDGET = 20.0
RETRY_SHARE = 0.2
"""Each request earns a fifth of a second try; in an outage the load grows by no more."""

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
USUAL_SECONDS: dict[GenerationType, float] = {"text": 3.0, "audio": 6.0, "image": 8.0, "video": 60.0}
"""What is assumed of a run for which FLORA gives no estimate."""
LEARNED_MODELS = 1000
"""For how many models what was learned is kept."""


def retry_delay(failures: int) -> float:
    """Say how long to pause after so many failures in a row."""
    delays = backoff.expo(base=2, factor=RETRY_FIRST, max_value=RETRY_CAP)
    next(delays)
    for _ in range(failures - 1):
        next(delays)
    return next(delays) * random.uniform(0.5, 1.0)


def pause_before_retry(
    failures: Sequence[errors.FloraError], *, retries: int, repeatable: bool, billable: bool, elapsed: float
) -> float | None:
    """Return how long to pause before the same request is sent again; ``None``: it is not.

    *failures* are those of this call, oldest first; *elapsed* the seconds since the first attempt that FLORA can have
    seen.
    """
    failure = failures[-1]
    if not repeatable or len(failures) > retries:
        return None
    delay = retry_delay(len(failures))
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


class Rate:
    """How many requests a second FLORA takes, as far as its refusals tell: a token bucket that grows as TCP CUBIC does.

    A refusal cuts it to 70 % of what FLORA let in during the second before. From there it grows with time alone: back
    to that peak within seconds, on a plateau around it, then ever faster, so that one refusal is forgotten in a minute.
    """

    def __init__(self) -> None:
        self._peak = math.inf
        self._before = math.inf
        self._admitted = 0
        self._cut = -math.inf
        self._resumed = -math.inf
        self._tokens = 1.0
        self._at = 0.0

    def value(self, now: float) -> float:
        """Return the requests a second that may go out *now*."""
        if self._peak == math.inf:
            return math.inf
        turning = math.cbrt(self._peak * (1 - RATE_CUT) / RATE_GROWTH)
        return max(RATE_FLOOR, self._peak + RATE_GROWTH * (max(0.0, now - self._resumed) - turning) ** 3)

    def refuse(self, now: float, *, until: float, sent: float, answered: Iterable[float]) -> None:
        """Count a 429 to a request *sent* then: nothing goes out *until* then, and from there one at a time.

        *answered* are the times at which requests were sent that FLORA has answered since. The rate is cut once for
        all that was under way.
        """
        if sent > self._cut:
            self._before = self.value(now)
            self._admitted = sum(now - 1 < when <= now for when in answered)
            self._cut = now
            self._peak = self._measured()
        self._resumed = max(self._resumed, until)
        self._tokens, self._at = min(self._tokens, 1.0), max(self._at, until)

    def admit(self, sent: float) -> None:
        """Count a request *sent* then that FLORA has answered: the last refusal may have come before its answer."""
        if self._cut - 1 < sent <= self._cut:
            self._admitted += 1
            self._peak = self._measured()

    def wait(self, now: float) -> float:
        """Return in how many seconds the next request may go out."""
        rate = self.value(now)
        if now > self._at:
            self._tokens = min(max(1.0, rate / 4), self._tokens + (now - self._at) * rate)
            self._at = now
        wait = max(0.0, self._at - now) + max(0.0, 1 - self._tokens) / rate
        # Timers are rounded: a hair's breadth is no wait, or the next request would wait for it for ever.
        return wait if wait > 1e-6 else 0.0

    def take(self) -> None:
        """Count a request that goes out."""
        self._tokens -= 1

    def _measured(self) -> float:
        return min(self._before, max(RATE_FIRST, self._admitted))


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


class Estimates:
    """How far FLORA's estimates are off, by type and model, learned from the runs that finish."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str | None], tuple[float, int]] = {}

    def expect(self, kind: GenerationType, model: str | None, estimate: float | None) -> float:
        """Say how many seconds a run should take, where FLORA says *estimate* or nothing."""
        bias, _ = self._seen.get((kind, model), (0.0, 0))
        return _usable(estimate, USUAL_SECONDS[kind]) * math.exp(bias)

    def learn(self, kind: GenerationType, model: str | None, estimate: float | None, took: float) -> None:
        """Count a run that *took* so many seconds."""
        key = kind, model
        bias, runs = self._seen.pop(key, (0.0, 0))
        error = math.log(min(max(took, 0.1), 1e5) / _usable(estimate, USUAL_SECONDS[kind]))
        weight = max(0.1, 1 / (runs + 2))
        self._seen[key] = (bias + weight * (error - bias), runs + 1)
        if len(self._seen) > LEARNED_MODELS:
            del self._seen[next(iter(self._seen))]


def _usable(estimate: float | None, usual: float) -> float:
    return estimate if estimate and 0 < estimate < 1e5 else usual


def ends_wait(failure: errors.FloraError, *, age: float) -> bool:
    """Say whether a failed look ends a wait; *age* is the seconds since the run was created, or first asked for."""
    if isinstance(failure, errors.NotFoundError):
        return age > NOT_FOUND_GRACE
    if isinstance(failure, errors.APIError):
        return failure.status < 500 and failure.status not in (408, 429)
    if isinstance(failure, errors.APIConnectionError):
        return not failure.retryable
    return not isinstance(failure, errors.ResponseDecodeError)


def blames_address(failure: errors.FloraError) -> bool:
    """Say whether a failed look at a ``poll_url`` may fare better at the run's own address."""
    if isinstance(failure, errors.APIError):
        return failure.status < 500 and failure.status not in (401, 408, 429)
    return isinstance(failure, errors.ProtocolError | errors.ResponseDecodeError)


def pause_after_failed_look(failure: errors.FloraError, failures: int) -> float:
    """Say how long to wait after so many looks in a row that told nothing."""
    asked = failure.retry_after if isinstance(failure, errors.APIError) else None
    floor = RATE_LIMIT_PAUSE if isinstance(failure, errors.RateLimitError) else 0.0
    return max(floor, asked or 0.0, min(retry_delay(failures), POLL_CAP))


class Sighting(Struct, frozen=True, gc=False):
    """What is known when the next look is planned."""

    age: float
    """Seconds since the run was created."""
    run: Run | None
    """The run as it was just seen; ``None`` before the first look."""


def run_schedule(estimate: float | None) -> Generator[float, Sighting, None]:
    """Plan the looks at one run that should take *estimate* seconds, where somebody knows.

    A wait generator in backoff's protocol; unlike others it is sent a :class:`Sighting` each time. While the run should
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


def safety_net(estimate: float | None) -> Generator[float, Sighting, None]:
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
