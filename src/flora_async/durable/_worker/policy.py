"""Pure: the consequence of a failed create, and how long to pause. No clock, no effects.

The numbers are module globals, read at each use.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from flora_async import errors
from flora_async.models import IDEMPOTENCY_KEY_TTL

Verdict: TypeAlias = Literal["later", "again", "stop", "forbidden", "refused", "recover"]
"""``later``: nothing was started, the order waits again. ``again``: send it again under its key, after a pause.
``stop``: no order of the batch can be started. ``forbidden``: this order cannot, or none can. ``refused``: this order
cannot be started. ``recover``: it may have been: look for its run, and end as ``unknown`` if that does not tell."""

KEY_MARGIN = 600.0
"""Seconds before FLORA forgets a key from which it is not used any more."""
CLOCK_SKEW = 60.0
"""Seconds by which the clocks of workers and FLORA's may differ."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between attempts while FLORA cannot be used; doubled each time."""


def judge_failure(failure: errors.FloraError, *, doubtful: bool, fresh: bool) -> Verdict:
    """Return the consequence of a create that failed.

    *doubtful*: an earlier attempt under the key may have been accepted. *fresh*: FLORA still knows the key.
    """
    status = failure.status if isinstance(failure, errors.APIError) else None
    if isinstance(failure, errors.IdempotencyConflictError) or (doubtful and status == 409):
        return "recover"
    if isinstance(failure, errors.CreateOutcomeUnknownError) and failure.accepted:
        return "recover"
    if status in (401, 402):
        return "stop"
    passing = isinstance(failure, errors.APIError) and failure.retryable
    if passing or isinstance(failure, errors.CreateOutcomeUnknownError | errors.APIConnectionError):
        started = (
            doubtful or (status is not None and status != 429) or isinstance(failure, errors.CreateOutcomeUnknownError)
        )
        return "later" if not started else "again" if fresh else "recover"
    if doubtful or getattr(failure, "code", None) == "idempotency_conflict":
        return "recover"
    return "forbidden" if status == 403 else "refused"


def key_is_fresh(sent: float, now: float) -> bool:
    """Return whether FLORA still knows a key that was first used at *sent*, with time to spare."""
    return now < sent + IDEMPOTENCY_KEY_TTL - KEY_MARGIN


def pause_after(failures: int) -> float:
    """Return for how long no order is sent after so many failures in a row."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(failures - 1, 20)))
