"""Pure: costs of orders by type and model, and the decision whether one more order fits a limit.

All amounts are USD. The ``charged_cost`` of a create is a quote. The charge of the finished run replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from flora_async.models import AnyOrder

PriceKey: TypeAlias = tuple[str, str | None]
"""Kind of an order, and its model, technique or action: orders with the same key are expected to cost the same."""

BudgetDecision: TypeAlias = Literal["start", "wait", "stop"]
"""``start``: the order fits. ``wait``: an order in flight may still show a lower cost. ``stop``: it never fits."""

StopReason: TypeAlias = Literal["max_cost", "insufficient_credits"]
"""Reason why no further order was started: the cost limit was reached, or FLORA responded with 402."""

QUOTE_MARGIN = 4.0
"""Factor for a quote before the first charge of its type and model: FLORA has charged 0.873 for a quote of 0.253."""
_ROUNDING = 1e-9


class KindCosts(Struct, frozen=True, kw_only=True):
    """Costs of all orders of one type and model, as sums and counts that a database can return too."""

    charged: float = 0.0
    """Sum of the charges of finished runs. A failed run adds 0; a completed run without a charge adds its quote."""
    highest_charge: float | None = None
    """Highest charge of a completed run; ``None`` before the first."""
    unanswered: int = 0
    """Creates in flight: sent, or about to be sent, without a response."""
    running: int = 0
    """Runs that were created and have not finished."""
    quoted: float = 0.0
    """Sum of the quotes of the running ones."""
    highest_quote: float | None = None
    """Highest quote of the running ones; ``None`` without a quote above 0."""
    doubtful: int = 0
    """Creates that ended without a known outcome: they may have been billed."""

    @property
    def price(self) -> float | None:
        """Expected cost of one more order; ``None`` if neither a charge nor a quote is known."""
        if self.highest_charge is not None:
            return max(self.highest_charge, self.highest_quote or 0.0)
        return QUOTE_MARGIN * self.highest_quote if self.highest_quote else None

    @property
    def expected(self) -> float:
        """Charges so far, plus the expected cost of all orders whose charge is not known."""
        price = self.price or 0.0
        running = self.running * price
        if self.highest_charge is not None:
            running = max(self.quoted, self.running * self.highest_charge)
        return self.charged + running + (self.unanswered + self.doubtful) * price

    @property
    def in_flight(self) -> bool:
        """Whether an order is in flight whose cost can still become known."""
        return self.unanswered > 0 or self.running > 0


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
    if total < max_cost if price is None else total + price <= max_cost + _ROUNDING:
        return "start"
    return "wait" if in_flight else "stop"


def decide_read(costs: Mapping[PriceKey, KindCosts], *, max_cost: float) -> BudgetDecision:
    """Decide whether to read another order of unknown type and model: an order of a known price key must fit."""
    decisions = {decide_start(costs, key, max_cost=max_cost) for key in costs or [("", None)]}
    return "start" if "start" in decisions else "wait" if "wait" in decisions else "stop"


class CostTracker:
    """Costs of orders in memory, updated when each is sent, accepted and finished."""

    def __init__(self) -> None:
        self.costs: dict[PriceKey, KindCosts] = {}
        self._quotes: dict[PriceKey, list[float]] = {}

    def record_sent(self, key: PriceKey) -> None:
        """Count a create that is about to be sent."""
        kind = self.costs.get(key, KindCosts())
        self.costs[key] = replace(kind, unanswered=kind.unanswered + 1)

    def record_refused(self, key: PriceKey) -> None:
        """Remove a create that was refused or never sent: it costs nothing."""
        kind = self.costs[key]
        self.costs[key] = replace(kind, unanswered=kind.unanswered - 1)

    def record_doubtful(self, key: PriceKey) -> None:
        """Count a create whose outcome stays unknown: it counts with the price of its kind."""
        kind = self.costs[key]
        self.costs[key] = replace(kind, unanswered=kind.unanswered - 1, doubtful=kind.doubtful + 1)

    def record_started(self, key: PriceKey, quote: float) -> None:
        """Count a created run with its quote; 0 if that is unknown, as for a recovered run."""
        kind = self.costs[key]
        self._quotes.setdefault(key, []).append(quote)
        self._update(key, replace(kind, unanswered=kind.unanswered - 1, running=kind.running + 1))

    def record_completed(self, key: PriceKey, quote: float, charge: float | None) -> None:
        """Replace the quote of a completed run by its charge. Without a charge the quote is kept."""
        kind = self.costs[key]
        charge = quote or None if charge is None else charge
        highest = kind.highest_charge if charge is None else max(charge, kind.highest_charge or 0.0)
        self._finish(key, quote, replace(kind, charged=kind.charged + (charge or 0.0), highest_charge=highest))

    def record_failed(self, key: PriceKey, quote: float) -> None:
        """Remove the quote of a failed run: failed runs are not charged."""
        self._finish(key, quote, self.costs[key])

    def record_abandoned(self, key: PriceKey, quote: float) -> None:
        """Count a run that is no longer awaited at its expected cost: it continues, and its charge stays unknown."""
        kind = self.costs[key]
        self._finish(key, quote, replace(kind, charged=kind.charged + max(quote, kind.price or 0.0)))

    def _finish(self, key: PriceKey, quote: float, kind: KindCosts) -> None:
        self._quotes[key].remove(quote)
        self._update(key, replace(kind, running=kind.running - 1))

    def _update(self, key: PriceKey, kind: KindCosts) -> None:
        quotes = self._quotes[key]
        self.costs[key] = replace(kind, quoted=sum(quotes), highest_quote=max(quotes, default=None) or None)
