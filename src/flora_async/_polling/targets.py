"""What is known of a run before it is polled."""

from __future__ import annotations

import math
from typing import TypeAlias

from msgspec import Struct

from flora_async.models import Run

Scope: TypeAlias = tuple[str | None, str | None]
"""The workspace and the project that a run is in, where they are known."""


class PollResult(Struct, frozen=True, gc=False):
    """What one request told about a run."""

    run: Run
    age: float
    """Seconds since the run's creation, by FLORA's clock."""


class WaitTarget(Struct, frozen=True):
    """What is known of a run before it is looked at."""

    run_id: str
    poll_url: str | None = None
    born: float | None = None
    """When this client was told of its creation, by the event loop's clock; ``None``: it was not, so look at once."""
    age: float | None = None
    """Seconds since its creation, where that is known otherwise."""
    estimate: float | None = None
    """Seconds that it should take."""
    run: Run | None = None
    """Its last record."""
    scope: Scope = (None, None)
    created: float = math.inf
    """When it was created, in Unix seconds by FLORA's clock, where that is known."""
    told: bool = False
    """Whether a call-back will say that it has ended, so that looking is a safety net."""
