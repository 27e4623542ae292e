"""Pure: the consequence of a failed create, and how long to pause. No clock, no effects."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async.durable._store.database import CLOSE_TIMEOUT
from flora_async.durable._store.orders import LOST_AFTER
from flora_async.models import IDEMPOTENCY_KEY_TTL

Verdict: TypeAlias = Literal["later", "again", "stop", "forbidden", "refused", "recover"]
"""``later``: nothing was started, the order waits again. ``again``: send it again under its key, after a pause.
``stop``: no order of the batch can be started. ``forbidden``: this order cannot, or none can. ``refused``: this order
cannot be started. ``recover``: it may have been: look for its run, and end as ``unknown`` if that does not tell."""

KEY_MARGIN = 600.0
"""Seconds before FLORA forgets a key from which it is not used any more."""
CLOCK_SKEW = 60.0
"""Seconds by which the clocks of workers and FLORA's may differ."""


class WorkerPolicy(Struct, frozen=True, kw_only=True):
    """How long the processes of batches pause, in seconds."""

    first_pause: float = 1.0
    """Pause between attempts while FLORA cannot be used; doubled each time."""
    max_pause: float = 60.0
    read_interval: float = 0.25
    """Pause between reads of changes that other orders or processes make."""
    take_over_interval: float = 2.0
    """Minimum pause between searches for the orders of lost processes."""
    renew_after: float = LOST_AFTER / 3
    """Age from which a claim is renewed before an order is sent."""
    close_timeout: float = CLOSE_TIMEOUT

    def pause_after(self, failures: int) -> float:
        """Return for how long no order is sent after so many failures in a row."""
        return float(min(self.max_pause, self.first_pause * 2 ** min(failures - 1, 20)))


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
