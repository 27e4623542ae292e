"""Pure: assign runs in the history to accepted creates whose response was lost.

The history contains no prompts. A run is assigned to a create only if no other assignment is possible: FLORA accepted
the create, and of all runs without a known create only this one matches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TypeAlias

from msgspec import Struct

from flora_async.models import AnyOrder, Generation, Order, TechniqueOrder, TechniqueRun

HistoryRow: TypeAlias = Generation | TechniqueRun
"""An item of the history of generations, or of techniques."""


class Claim(Struct, frozen=True):
    """A create whose run is searched in the history."""

    key: str
    order: AnyOrder
    window: tuple[float, float]
    """Earliest and latest time of the run's creation, in Unix seconds."""
    named: str | None = None
    """Id of the run in a truncated response; ``None`` without one."""
    accepted: bool = True
    """Whether FLORA is known to have accepted the create, so that its run exists."""


def candidate_runs(claim: Claim, rows: Iterable[HistoryRow]) -> list[str]:
    """Return the ids of runs that can belong to a create, newest first."""
    first, last = claim.window
    return [row.run_id for row in rows if first <= row.created.timestamp() <= last and _order_matches(claim.order, row)]


def _order_matches(order: AnyOrder, row: HistoryRow) -> bool:
    """Return whether the row can be a run of the order, by all that the history shows of it."""
    if isinstance(order, Order) and isinstance(row, Generation):
        place = row.workspace_id, row.project_id
        reported = row.model.model_id if row.model else None
        return place == (order.workspace_id, order.project_id) and _models_match(order.model, reported)
    if isinstance(order, TechniqueOrder) and isinstance(row, TechniqueRun):
        return (row.workspace_id, row.technique.technique_id) == (order.workspace_id, order.technique_id)
    return False


def _models_match(ordered: str | None, reported: str | None) -> bool:
    return ordered is None or reported is None or ordered == reported


def match_creates(claims: Collection[Claim], rows: Collection[HistoryRow]) -> dict[str, list[str]]:
    """Return the possible run ids of each accepted create, by idempotency key.

    One id: the run is certain, in every assignment of the others. Several: the run cannot be determined. No id: there
    are more creates than runs, so the history does not contain all runs yet.
    """
    claims = [claim for claim in claims if claim.accepted]
    options = {claim.key: candidate_runs(claim, rows) for claim in claims}
    for claim in claims:
        if claim.named in options[claim.key]:
            options[claim.key] = [claim.named]
    orders = {claim.key: claim.order for claim in claims}
    matches: dict[str, list[str]] = {}
    for group in _connected_groups(options):
        matches |= _match_group({key: options[key] for key in group}, orders)
    return matches


def _connected_groups(options: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    """Yield groups of creates. Creates of different groups have no candidate run in common."""
    left = dict(options)
    while left:
        key, candidates = left.popitem()
        group, runs = [key], set(candidates)
        while more := [other for other, others in left.items() if not runs.isdisjoint(others)]:
            for other in more:
                runs |= set(left.pop(other))
            group += more
        yield group


def _match_group(options: Mapping[str, list[str]], orders: Mapping[str, AnyOrder]) -> dict[str, list[str]]:
    left = {key: list(runs) for key, runs in options.items()}
    matches: dict[str, list[str]] = {}
    while forced := _single_candidate(left) or _identical_orders(left, orders):
        for key, run in forced.items():
            matches[key] = [run]
            del left[key]
        for runs in left.values():
            runs[:] = [run for run in runs if run not in forced.values()]
    if all(left.values()):
        return matches | left
    return {key: [] for key in options}


def _single_candidate(left: Mapping[str, list[str]]) -> dict[str, str]:
    for key, runs in left.items():
        if len(runs) == 1:
            return {key: runs[0]}
    return {}


def _identical_orders(left: Mapping[str, list[str]], orders: Mapping[str, AnyOrder]) -> dict[str, str]:
    """Return an assignment for identical orders with as many candidate runs as orders: any assignment is correct."""
    for key in left:
        identical = [other for other in left if orders[other] == orders[key]]
        runs = list(dict.fromkeys(run for other in identical for run in left[other]))
        if len(identical) == len(runs) and all(len(left[other]) == len(runs) for other in identical):
            return dict(zip(identical, runs, strict=True))
    return {}
