"""What a client tells ``Flora(on_event=...)``: small records of requests, runs, looks and waits.

None holds the key, a prompt or the URL of an output. Seconds are floats, money is USD.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Literal, TypeAlias

from flora_async import errors
from flora_async.models import GenerationType, Record

log = logging.getLogger("flora_async")


class Event(Record, frozen=True, gc=False, kw_only=True):
    """Something that has happened. There will be more kinds, and more fields: leave alone what you do not know."""


class RequestFinished(Event, frozen=True, gc=False, kw_only=True):
    """FLORA has answered a request, or did not. Each attempt is one; downloads are not told."""

    method: str
    path: str
    """Below the base URL, without ids and query, like ``/runs/{id}``."""
    status: int | None
    """Of the answer; ``None``: there was none."""
    error: str | None
    """Why it was of no use: the name of the error, like ``RateLimitError``."""
    seconds: float
    attempt: int
    """1 for the first."""
    request_id: str | None
    """What FLORA's support asks for."""


class RetryScheduled(Event, frozen=True, gc=False, kw_only=True):
    """A request that has failed will be sent again. A failed look at a run is not: the next look is."""

    method: str
    path: str
    error: str
    """The name of the error."""
    attempt: int
    """The number of the one that failed."""
    pause: float
    """Seconds."""


class RateLimited(Event, frozen=True, gc=False, kw_only=True):
    """FLORA has answered 429, and all requests of this client pause."""

    path: str
    retry_after: float | None
    """Seconds that FLORA asked for, where it did."""
    pause: float
    """Seconds until the next request may go out."""


class RunCreated(Event, frozen=True, gc=False, kw_only=True):
    """FLORA has accepted an order, and billed it."""

    run_id: str
    type: GenerationType
    """What it makes."""
    model_id: str | None
    charged_cost: float
    """USD; given back if the run fails."""
    recovered: bool
    """Whether the answer was lost, and the run found in the history."""


class PollStarted(Event, frozen=True, gc=False, kw_only=True):
    """Runs that somebody waits for are looked at, by one request. What is current in this context its request sees."""

    how: Literal["run", "page"]
    """By the run's own address, or by a page of the history, for several."""
    run_ids: tuple[str, ...]


class PollFinished(Event, frozen=True, gc=False, kw_only=True):
    """A look is over. Told in the context of its beginning."""

    how: Literal["run", "page"]
    run_ids: tuple[str, ...]
    seconds: float


class WaitStarted(Event, frozen=True, gc=False, kw_only=True):
    """Somebody waits for a run. What is current in this context the looks at the run see."""

    wait: int
    """A number of its own: many can wait for one run."""
    run_id: str


class WaitFinished(Event, frozen=True, gc=False, kw_only=True):
    """A wait is over. Told in the context of its beginning."""

    wait: int
    run_id: str
    status: str | None
    """``completed`` or ``failed``, if the run has ended."""
    error: str | None
    """Else why the wait has: the name of an error, ``CancelledError`` if nobody waits any more."""
    seconds: float
    polls: int
    """How many requests have asked for the run or told of it; a page of the history does so for many at once."""
    lag: float | None
    """Seconds from the run's end (or the wait's beginning, if that came later) until this client knew, as far as this
    machine's clock agrees with FLORA's; ``None``: FLORA does not say when it ended."""
    charged_cost: float | None
    """USD, where FLORA says."""


OnEvent: TypeAlias = Callable[[Event], object]
"""Called with each event as it happens, on the event loop: be quick. What it raises is logged, once, and goes no
further."""

Emit: TypeAlias = Callable[[Event], None]
"""Tells of an event, and never fails."""


def make_emitter(on_event: OnEvent | None) -> Emit | None:
    """Give what tells *on_event*; ``None``: nobody listens, and no event need be made."""
    if on_event is None:
        return None
    if not callable(on_event) or iscoroutinefunction(on_event) or iscoroutinefunction(type(on_event).__call__):
        raise errors.ConfigurationError("on_event must be a plain function that takes an Event, and no coroutine")
    failed = False

    def tell(event: Event) -> None:
        nonlocal failed
        try:
            on_event(event)
        except Exception:
            if not failed:
                failed = True
                log.exception("on_event failed; said once", extra={"event_type": type(event).__name__})

    return tell
