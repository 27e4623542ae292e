"""Pure: which run of the history belongs to which create that was accepted, and whose answer was lost.

The history does not show prompts. A run is given to a create only where nothing else is possible: the create is known
to have been accepted, and of all runs that nobody else has a claim to only this one can be it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from msgspec import Struct

from flora_async.models import Generation, Order


class Claim(Struct, frozen=True):
    """A create whose run is looked for."""

    key: str
    order: Order
    window: tuple[float, float]
    """Unix seconds between which the run was created."""
    named: str | None = None
    """The run that a torn answer has named."""
    accepted: bool = True
    """Whether it is known to have been accepted, so that its run exists."""


def candidate_runs(claim: Claim, rows: Iterable[Generation]) -> list[str]:
    """List the runs that can be a create's, newest first."""
    order, (first, last) = claim.order, claim.window
    return [
        row.run_id
        for row in rows
        if first <= row.created.timestamp() <= last
        and (row.workspace_id, row.project_id) == (order.workspace_id, order.project_id)
        and _same_model(order.model, row.model.model_id if row.model else None)
    ]


def _same_model(ordered: str | None, made_by: str | None) -> bool:
    return ordered is None or made_by is None or ordered == made_by


def match_creates(claims: Collection[Claim], rows: Collection[Generation]) -> dict[str, list[str]]:
    """Say, for the key of each create that was accepted, which runs it can have.

    One: it is that one, whatever the others have. Several: nobody can tell. None: there are more creates than runs, so
    the history does not show all of them yet.
    """
    claims = [claim for claim in claims if claim.accepted]
    options = {claim.key: candidate_runs(claim, rows) for claim in claims}
    for claim in claims:
        if claim.named in options[claim.key]:
            options[claim.key] = [claim.named]
    orders = {claim.key: claim.order for claim in claims}
    verdicts: dict[str, list[str]] = {}
    for rivals in _connected_groups(options):
        verdicts |= _settle({key: options[key] for key in rivals}, orders)
    return verdicts


def _connected_groups(options: Mapping[str, Collection[str]]) -> Iterator[list[str]]:
    """Part the creates into groups that want no run of each other."""
    left = dict(options)
    while left:
        key, wanted = left.popitem()
        group, runs = [key], set(wanted)
        while more := [other for other, others in left.items() if not runs.isdisjoint(others)]:
            for other in more:
                runs |= set(left.pop(other))
            group += more
        yield group


def _settle(options: Mapping[str, list[str]], orders: Mapping[str, Order]) -> dict[str, list[str]]:
    left = {key: list(runs) for key, runs in options.items()}
    settled: dict[str, list[str]] = {}
    while forced := _single_candidate(left) or _identical_orders(left, orders):
        for key, run in forced.items():
            settled[key] = [run]
            del left[key]
        for runs in left.values():
            runs[:] = [run for run in runs if run not in forced.values()]
    if all(left.values()):
        return settled | left
    return {key: [] for key in options}


def _single_candidate(left: Mapping[str, list[str]]) -> dict[str, str]:
    for key, runs in left.items():
        if len(runs) == 1:
            return {key: runs[0]}
    return {}


def _identical_orders(left: Mapping[str, list[str]], orders: Mapping[str, Order]) -> dict[str, str]:
    """Find creates of one and the same order that have just as many runs: whichever gets which, each gets its like."""
    for key in left:
        twins = [other for other in left if orders[other] == orders[key]]
        runs = list(dict.fromkeys(run for twin in twins for run in left[twin]))
        if len(twins) == len(runs) and all(len(left[twin]) == len(runs) for twin in twins):
            return dict(zip(twins, runs, strict=True))
    return {}
