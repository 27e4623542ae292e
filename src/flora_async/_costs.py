"""Pure: costs of orders by type and model, and the decision whether one more order fits a limit.

All amounts are USD. The ``charged_cost`` of a create is a quote. The charge of the completed run replaces it; it can
appear up to a minute after the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async.models import AnyOrder, Run

if TYPE_CHECKING:
    import asyncio

PriceKey: TypeAlias = tuple[str, str | None]
"""Kind of an order, and its model, technique or action: orders with the same key are expected to cost the same."""

BudgetDecision: TypeAlias = Literal["start", "wait", "stop"]
"""``start``: the order fits. ``wait``: an order in flight may still show a lower cost. ``stop``: it never fits."""

StopReason: TypeAlias = Literal["max_cost", "budget", "insufficient_credits", "run_failed", "client_closed"]
"""Reason why no further order was started.

``max_cost``, ``budget``: the next order could exceed the limit. ``insufficient_credits``: FLORA responded with 402.
``run_failed``: a run failed with the advice ``"stop"`` (credits, access, entitlement).
``client_closed``: the client was closed.
"""

QUOTE_MARGIN = 4.0
"""Factor for a quote before the first charge of its type and model: FLORA has charged 0.873 for a quote of 0.253."""
MAX_KINDS = 1000
"""Maximum number of kinds and models whose prices a client keeps."""
MAX_UNPRICED = 5
"""Maximum number of orders whose cost is unknown and is not awaited. Then no order of unknown price starts."""
_ROUNDING = 1e-9


class KindCosts(Struct, frozen=True, kw_only=True):
    """Costs of all orders of one type and model, as sums and counts that a database can return too."""

    charged: float = 0.0
    """Sum of the charges of finished runs. A failed run adds 0, unless FLORA shows a charge for it."""
    highest_charge: float | None = None
    """Highest charge of a completed run; ``None`` before the first."""
    unanswered: int = 0
    """Creates in flight: sent, or about to be sent, without a response."""
    running: int = 0
    """Runs that were created and whose charge is awaited: they run, or have completed a short time ago."""
    quoted: float = 0.0
    """Sum of the quotes of the running and the unsettled ones."""
    highest_quote: float | None = None
    """Highest quote of the running and the unsettled ones; ``None`` without a quote above 0."""
    doubtful: int = 0
    """Creates that ended without a known outcome: they may have been billed."""
    unsettled: int = 0
    """Runs whose charge is not awaited any more: it did not appear, or the wait for the run ended early."""
    highest_ratio: float | None = None
    """Highest charge of a completed run divided by its quote; ``None`` before the first run with both."""

    @property
    def quote_factor(self) -> float:
        """Factor from a quote to the expected charge, at least 1."""
        if self.highest_ratio is not None:
            return max(1.0, self.highest_ratio)
        return QUOTE_MARGIN if self.highest_charge is None else 1.0

    @property
    def price(self) -> float | None:
        """Expected cost of one more order; ``None`` if neither a charge nor a quote is known."""
        if self.highest_charge is None and not self.highest_quote:
            return None
        return max(self.highest_charge or 0.0, self.quote_factor * (self.highest_quote or 0.0))

    @property
    def expected(self) -> float:
        """Charges so far, plus the expected cost of all orders whose charge is not known."""
        price, started = self.price or 0.0, self.running + self.unsettled
        cost = started * price
        if self.highest_charge is not None:
            cost = max(self.quote_factor * self.quoted, started * self.highest_charge)
        return self.charged + cost + (self.unanswered + self.doubtful) * price

    @property
    def in_flight(self) -> bool:
        """Whether an order is in flight whose cost can still become known."""
        return self.unanswered > 0 or self.running > 0

    @property
    def open(self) -> int:
        """Number of orders whose charge is not known."""
        return self.unanswered + self.running + self.unsettled + self.doubtful


def add_costs(some: Mapping[PriceKey, KindCosts], others: Mapping[PriceKey, KindCosts]) -> dict[PriceKey, KindCosts]:
    """Return the costs of both sets of orders together."""
    return {key: _add(some.get(key, KindCosts()), others.get(key, KindCosts())) for key in {**some, **others}}


def _add(one: KindCosts, other: KindCosts) -> KindCosts:
    def highest(*amounts: float | None) -> float | None:
        return max((amount for amount in amounts if amount is not None), default=None)

    return KindCosts(
        charged=one.charged + other.charged,
        highest_charge=highest(one.highest_charge, other.highest_charge),
        unanswered=one.unanswered + other.unanswered,
        running=one.running + other.running,
        quoted=one.quoted + other.quoted,
        highest_quote=highest(one.highest_quote, other.highest_quote),
        doubtful=one.doubtful + other.doubtful,
        unsettled=one.unsettled + other.unsettled,
        highest_ratio=highest(one.highest_ratio, other.highest_ratio),
    )


def price_key(order: AnyOrder) -> PriceKey:
    """Return the kind and endpoint of an order, also of one that will be refused for them."""
    endpoint = order.endpoint
    return str(order.kind), None if endpoint is None else str(endpoint)


def decide_start(costs: Mapping[PriceKey, KindCosts], key: PriceKey, *, max_cost: float) -> BudgetDecision:
    """Decide whether an order may start now. The first order of each type and model starts alone: its price is unknown.

    No order starts while one with an unknown price is in flight. After ``wait``, decide again when an order in flight
    gets its response or its run finishes.
    """
    in_flight = [kind for kind in costs.values() if kind.in_flight]
    if any(kind.price is None for kind in in_flight):
        return "wait"
    total = sum(kind.expected for kind in costs.values())
    price = costs[key].price if key in costs else None
    if price is None:
        unpriced = sum(kind.doubtful + kind.unsettled for kind in costs.values() if kind.price is None)
        fits = total < max_cost - _ROUNDING and unpriced < MAX_UNPRICED
    else:
        fits = total + price <= max_cost + _ROUNDING
    if fits:
        return "start"
    return "wait" if in_flight else "stop"


class CostTracker:
    """Costs of orders in memory, updated when each is sent, accepted and settled, with the limit that they share."""

    def __init__(self, max_cost: float | None = None) -> None:
        self.costs: dict[PriceKey, KindCosts] = {}
        self.max_cost: float | None = max_cost
        """USD; ``None``: no limit."""
        self.reserved: float = 0.0
        """USD of the limit that are set aside for orders that are counted elsewhere."""
        self.listeners: dict[Callable[[], object], None] = {}
        """Functions that are called after each change."""
        self._quotes: dict[PriceKey, list[float]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self, loop: asyncio.AbstractEventLoop, listener: Callable[[], object]) -> None:
        """Call *listener* on *loop* after each change.

        Raise ConfigurationError if another loop still runs that uses the tracker: no waiter would wake.
        """
        if self._loop is not None and self._loop is not loop and self._loop.is_running():
            raise errors.ConfigurationError(
                "budget is used on another event loop, in another thread. Open one Budget for each event loop"
            )
        self._loop = loop
        self.listeners[listener] = None

    @property
    def spent(self) -> float:
        """USD that FLORA has charged."""
        return math.fsum(kind.charged for kind in self.costs.values())

    @property
    def quoted(self) -> float:
        """Sum in USD of the quotes of all runs whose charge is not known."""
        return math.fsum(kind.quoted for kind in self.costs.values())

    @property
    def expected(self) -> float:
        """USD that the limit counts: charges, and the expected cost of all orders whose charge is not known."""
        return math.fsum(kind.expected for kind in self.costs.values()) + self.reserved

    @property
    def unsettled(self) -> int:
        """Number of orders whose charge is not known."""
        return sum(kind.open for kind in self.costs.values())

    def decide(self, key: PriceKey) -> BudgetDecision:
        """Decide whether an order of a type and model may start."""
        if self.max_cost is None:
            return "start"
        return decide_start(self.costs, key, max_cost=self.max_cost - self.reserved)

    def notify(self) -> None:
        """Call all listeners."""
        for listener in list(self.listeners):
            listener()

    def record_sent(self, key: PriceKey) -> None:
        """Count a create that is about to be sent."""
        kind = self.costs.get(key, KindCosts())
        self._set(key, replace(kind, unanswered=kind.unanswered + 1))

    def record_refused(self, key: PriceKey) -> None:
        """Remove a create that was refused or never sent: it costs nothing."""
        kind = self.costs[key]
        self._set(key, replace(kind, unanswered=kind.unanswered - 1))

    def record_doubtful(self, key: PriceKey) -> None:
        """Count a create whose outcome stays unknown: it counts with the price of its kind."""
        kind = self.costs[key]
        self._set(key, replace(kind, unanswered=kind.unanswered - 1, doubtful=kind.doubtful + 1))

    def record_started(self, key: PriceKey, quote: float, *, doubtful: bool = False) -> None:
        """Count a created run with its quote; 0 if that is unknown, as for a recovered run, which was *doubtful*."""
        kind = self.costs[key]
        self._quotes.setdefault(key, []).append(quote)
        unanswered, doubts = kind.unanswered - (not doubtful), kind.doubtful - doubtful
        self._update(key, replace(kind, unanswered=unanswered, doubtful=doubts, running=kind.running + 1))

    def record_charge(
        self, key: PriceKey, quote: float, charge: float, *, completed: bool = True, unsettled: bool = False
    ) -> None:
        """Replace the quote of a run by its charge. The charge of a completed run is a price of its kind."""
        kind = self.costs[key]
        self._quotes[key].remove(quote)
        kind = replace(
            kind,
            charged=kind.charged + charge,
            running=kind.running - (not unsettled),
            unsettled=kind.unsettled - unsettled,
        )
        if completed:
            ratio = max(charge / quote, kind.highest_ratio or 0.0) if quote > 0 else kind.highest_ratio
            kind = replace(kind, highest_charge=max(charge, kind.highest_charge or 0.0), highest_ratio=ratio)
        self._update(key, kind)

    def record_unsettled(self, key: PriceKey) -> None:
        """Count a run whose charge is not awaited any more at its expected cost."""
        kind = self.costs[key]
        self._set(key, replace(kind, running=kind.running - 1, unsettled=kind.unsettled + 1))

    def _update(self, key: PriceKey, kind: KindCosts) -> None:
        quotes = self._quotes[key]
        self._set(key, replace(kind, quoted=math.fsum(quotes), highest_quote=max(quotes, default=None) or None))

    def _set(self, key: PriceKey, kind: KindCosts) -> None:
        self.costs[key] = kind
        self.notify()


class CostEntry:
    """One order in all trackers that count it, from the reservation of its cost to its charge."""

    __slots__ = ("_key", "_quote", "_state", "_trackers")

    def __init__(self, key: PriceKey, trackers: Sequence[CostTracker]) -> None:
        self._key = key
        self._trackers = trackers
        self._quote = 0.0
        self._state: Literal["reserved", "doubtful", "running", "unsettled", "ended"] = "reserved"
        for tracker in trackers:
            tracker.record_sent(key)

    def release(self) -> None:
        """Remove an order that was refused or never sent."""
        if self._state == "reserved":
            self._state = "ended"
            for tracker in self._trackers:
                tracker.record_refused(self._key)

    def start(self, quote: float) -> None:
        """Count the created run with its quote. A quote below 0 is none."""
        if self._state in ("reserved", "doubtful"):
            doubtful, self._state, self._quote = self._state == "doubtful", "running", max(0.0, quote)
            for tracker in self._trackers:
                tracker.record_started(self._key, self._quote, doubtful=doubtful)

    def finish(self, run: Run) -> None:
        """Count the charge of a finished run, at least 0. A completed run without a charge stays as it is."""
        charge = run.charged_cost if run.succeeded else run.charged_cost or 0.0
        if charge is None or self._state not in ("running", "unsettled"):
            return
        unsettled, self._state = self._state == "unsettled", "ended"
        for tracker in self._trackers:
            tracker.record_charge(
                self._key, self._quote, max(0.0, charge), completed=run.succeeded, unsettled=unsettled
            )

    def abandon(self) -> None:
        """Count an order that is not awaited any more at its expected cost. A later charge replaces it."""
        if self._state == "running":
            self._state = "unsettled"
            for tracker in self._trackers:
                tracker.record_unsettled(self._key)
        elif self._state == "reserved":
            self._state = "doubtful"
            for tracker in self._trackers:
                tracker.record_doubtful(self._key)
