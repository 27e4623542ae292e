"""Event types that a client emits to ``Flora(on_event=...)``: requests, runs, polls and waits.

No event contains the API key, a prompt or the URL of an output. Seconds are floats, money is USD.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import iscoroutinefunction
from typing import Literal, TypeAlias

from flora_async import errors
from flora_async.models import OrderKind, Record

log: logging.Logger = logging.getLogger("flora_async")


class Event(Record, frozen=True, gc=False, kw_only=True):
    """Base class of events. Later versions add event types and fields: ignore those that you do not know."""


class RequestFinished(Event, frozen=True, gc=False, kw_only=True):
    """An attempt at a request ended, with or without a response. Downloads emit no events."""

    method: str
    path: str
    """Path below the base URL, without ids and query, like ``/runs/{id}``."""
    status: int | None
    """HTTP status of the response; ``None`` without a response."""
    error: str | None
    """Name of the error, like ``RateLimitError``; ``None`` after a success."""
    seconds: float
    attempt: int
    """1 for the first."""
    request_id: str | None
    """FLORA's id of the request, for its support."""


class RetryScheduled(Event, frozen=True, gc=False, kw_only=True):
    """A failed request will be retried. A failed poll is not retried: the next poll replaces it."""

    method: str
    path: str
    error: str
    """The name of the error."""
    attempt: int
    """Number of the attempt that failed."""
    pause: float
    """Seconds until the retry."""


class RateLimited(Event, frozen=True, gc=False, kw_only=True):
    """FLORA responded with 429, and all requests of this client pause."""

    path: str
    retry_after: float | None
    """Seconds from the ``Retry-After`` header; ``None`` without it."""
    pause: float
    """Seconds until the next request may be sent."""


class RunCreated(Event, frozen=True, gc=False, kw_only=True):
    """FLORA accepted and billed an order."""

    run_id: str
    type: OrderKind
    """Type of the output, or ``technique`` or ``action``."""
    model_id: str | None
    """The model, technique or action."""
    charged_cost: float
    """USD; refunded if the run fails."""
    recovered: bool
    """Whether the response was lost and the run was found in the history."""


class PollStarted(Event, frozen=True, gc=False, kw_only=True):
    """One request polls awaited runs. The request sees the context variables that are set in this event's context."""

    how: Literal["run", "page"]
    """``run``: the URL of one run. ``page``: a page of the history, for several runs."""
    run_ids: tuple[str, ...]


class PollFinished(Event, frozen=True, gc=False, kw_only=True):
    """A poll ended. Emitted in the context of its :class:`PollStarted`."""

    how: Literal["run", "page"]
    run_ids: tuple[str, ...]
    seconds: float


class WaitStarted(Event, frozen=True, gc=False, kw_only=True):
    """A wait for a run began. Its polls see the context variables that are set in this event's context."""

    wait: int
    """Unique number of the wait: several waits can be for one run."""
    run_id: str


class WaitFinished(Event, frozen=True, gc=False, kw_only=True):
    """A wait ended. Emitted in the context of its :class:`WaitStarted`."""

    wait: int
    run_id: str
    status: str | None
    """``completed`` or ``failed``; ``None`` if the wait ended before the run."""
    error: str | None
    """Name of the error that ended the wait, ``CancelledError`` for a cancelled one; ``None`` if the run finished."""
    seconds: float
    polls: int
    """Number of requests that polled this run. A page of the history counts for each run on it."""
    lag: float | None
    """Seconds from the run's end until the client saw it, by this machine's clock. A wait that began after the run's
    end counts from its own beginning. ``None`` if FLORA reports no end."""
    charged_cost: float | None
    """USD; ``None`` if FLORA reports none."""


OnEvent: TypeAlias = Callable[[Event], object]
"""Called with each event on the event loop, so it must return quickly. Its first exception is logged; all are ignored.
"""

Emit: TypeAlias = Callable[[Event], None]
"""Emits an event to ``on_event``. It never raises."""


def make_emitter(on_event: OnEvent | None) -> Emit | None:
    """Return a function that emits events to *on_event*; ``None`` without *on_event*: no event need be built."""
    if on_event is None:
        return None
    if not callable(on_event) or iscoroutinefunction(on_event) or iscoroutinefunction(type(on_event).__call__):
        raise errors.ConfigurationError(
            "on_event must be a plain function that takes an Event, not a coroutine function"
        )
    failed = False

    def emit(event: Event) -> None:
        nonlocal failed
        try:
            on_event(event)
        except Exception:
            if not failed:
                failed = True
                log.exception(
                    "on_event failed: further failures are not logged", extra={"event_type": type(event).__name__}
                )

    return emit
