"""Pure: what follows from a failed create, what may still be spent, how orders are parted. No clock, no effects.

The numbers are module globals, read at each use.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from flora_async import _pacing, errors

Verdict: TypeAlias = Literal["again", "stop", "refused", "recover", "unknown"]
"""``again``: after a pause, under the same key. ``stop``: the whole batch, until somebody has seen to it. ``refused``:
this order never will be. ``recover``: its run exists, and is to be found. ``unknown``: nobody can say."""

Ended: TypeAlias = Literal["completed", "failed", "refused", "unknown"]
"""How an order can end."""

KEY_MARGIN = 600.0
"""Seconds before FLORA forgets a key from which it is not used any more."""
CLOCK_SKEW = 60.0
"""Seconds by which the clocks of workers and FLORA's may differ."""
PAUSE_FIRST = 1.0
PAUSE_CAP = 60.0
"""Seconds between tries while FLORA is away; double each time."""
RECOVERY_TRIES = 3
"""How often the run of an accepted create is looked for while the history shows none that it could be."""
CHUNK = 100
"""Orders in a workflow, at most; a million orders are ten thousand workflows."""
CHUNKS = 64
"""A small batch is parted into so many workflows, so that several workers have some each."""


def judge_failure(failure: errors.FloraError, *, doubtful: bool, fresh: bool) -> Verdict:
    """Say what follows from a create that failed.

    *doubtful*: an earlier attempt under the key may have been accepted. *fresh*: FLORA still knows the key.
    """
    if isinstance(failure, errors.IdempotencyConflictError):
        return "recover"
    if isinstance(failure, errors.CreateOutcomeUnknownError):
        if failure.accepted:
            return "recover"
        return "again" if fresh else "unknown"
    if isinstance(failure, errors.InsufficientCreditsError | errors.AuthenticationError | errors.PermissionDeniedError):
        return "stop"
    if isinstance(failure, errors.APIConnectionError) or (
        isinstance(failure, errors.APIError) and (failure.status >= 500 or failure.status in (408, 429))
    ):
        return "again" if fresh or not doubtful else "unknown"
    if isinstance(failure, errors.UnprocessableEntityError) and failure.code == "idempotency_conflict":
        return "unknown"
    if doubtful and not isinstance(failure, errors.APIError):
        return "unknown"
    return "refused"


def key_is_fresh(sent: float, now: float) -> bool:
    """Say whether FLORA still knows a key that was first used at *sent*, with time to spare."""
    return now < sent + _pacing.KEY_SECONDS - KEY_MARGIN


def pause_after(failures: int) -> float:
    """Say for how long nothing is ordered after so many failures in a row."""
    return float(min(PAUSE_CAP, PAUSE_FIRST * 2 ** min(failures - 1, 20)))


def affordable(wanted: int, *, spent: float, dearest: float | None, sending: int, max_cost: float | None) -> int:
    """Say how many of the *wanted* creates may go out, while *sending* others have not said what they cost.

    USD; each is reckoned as the dearest so far. The first tells what one costs, so it goes alone.
    """
    if max_cost is None:
        return wanted
    if dearest is None:
        return min(wanted, 1) if not sending and spent < max_cost else 0
    if dearest <= 0:
        return wanted
    room = int((max_cost - spent + 1e-9) / dearest) - sending
    return max(0, min(wanted, room))


def chunk_size(total: int, rate: float | None) -> int:
    """Say how many orders make a workflow; at a *rate*, in orders a second, a workflow is no more than a second's."""
    size = max(1, min(CHUNK, total // CHUNKS))
    return size if rate is None else max(1, min(size, int(rate)))
