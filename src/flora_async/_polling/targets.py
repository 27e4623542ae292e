"""Input and result of polls: WaitTarget and PollResult."""

from __future__ import annotations

import math
from typing import TypeAlias

from msgspec import Struct

from flora_async.models import Run

Scope: TypeAlias = tuple[str | None, str | None]
"""Workspace id and project id of a run, each ``None`` if unknown."""


class PollResult(Struct, frozen=True, gc=False):
    """The response to a poll of one run."""

    run: Run
    age: float
    """Seconds since the run's creation, by the server's clock."""


class WaitTarget(Struct, frozen=True):
    """A run to wait for, with everything known about it before the first poll."""

    run_id: str
    poll_url: str | None = None
    loop_created: float | None = None
    """Creation time by the event loop's clock; ``None`` if another client created it. Such a run is polled at once."""
    age: float | None = None
    """Seconds since its creation, if known."""
    estimate: float | None = None
    """Expected duration in seconds."""
    run: Run | None = None
    """The last known record."""
    scope: Scope = (None, None)
    in_history: bool = True
    """Whether pages of the history can show it. They show generations only."""
    created: float = math.inf
    """Creation time in Unix seconds by the server's clock; infinity if unknown."""
    webhook_expected: bool = False
    """Whether a webhook will report the end. Polls are then only a fallback."""
