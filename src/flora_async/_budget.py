"""``Budget``: an amount of USD that several calls of one process share."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from flora_async import errors
from flora_async._costs import CostTracker
from flora_async._validation import check_callback, check_usd, unwrap_number

log = logging.getLogger("flora_async")

THRESHOLDS = (0.5, 0.8, 1.0)

OnThreshold: TypeAlias = Callable[["Budget", float], object]
"""Called with the budget and the threshold that its expected cost has reached, as a share of ``usd``."""


class Budget:
    """An amount of USD that calls and tasks of one event loop share: ``generate_many(orders, budget=budget)``.

    An order starts only if its expected cost fits beside all others: the charges of settled runs, and the expected
    charges of all runs whose charge is not known. The guide page "Costs and budgets" has the rule and its worst case.

    Args:
        usd: the amount in USD.
        on_threshold: called once for each threshold that the expected cost reaches, with this budget and the threshold.
            It must be a plain function that returns quickly. Its exceptions are logged and ignored.
        thresholds: shares of *usd*, each above 0 and at most 1.

    Raises:
        ConfigurationError: an argument is invalid. Calls raise it too, while another event loop uses the budget.
    """

    def __init__(
        self, usd: float, *, on_threshold: OnThreshold | None = None, thresholds: Sequence[float] = THRESHOLDS
    ) -> None:
        self.usd: float = check_usd("usd", usd)
        """The amount in USD."""
        if on_threshold is not None:
            check_callback("on_threshold", on_threshold, "a Budget and a share")
        self._on_threshold = on_threshold
        self._thresholds = sorted(_check_share(share) for share in thresholds)
        self._shares: dict[str, tuple[float, float]] = {}
        self.tracker: CostTracker = CostTracker(self.usd)
        """The counts behind the amounts. Internal to this package."""
        if on_threshold is not None:
            self.tracker.listeners[self._check_thresholds] = None

    def __repr__(self) -> str:
        return f"Budget({self.usd:g}, spent={self.spent:g}, expected={self.expected:g})"

    @property
    def spent(self) -> float:
        """USD that FLORA has charged."""
        return self.tracker.spent + math.fsum(spent for _, spent in self._shares.values())

    @property
    def quoted(self) -> float:
        """Sum in USD of FLORA's quotes for all runs whose charge is not known. FLORA can charge more."""
        return self.tracker.quoted

    @property
    def unsettled(self) -> int:
        """Number of orders whose charge is not known: in flight, without a charge so far, or of unknown outcome."""
        return self.tracker.unsettled

    @property
    def expected(self) -> float:
        """USD that count against the budget: charges, and the expected cost of everything else."""
        return self.tracker.expected

    @property
    def remaining(self) -> float:
        """USD that are left, at least 0."""
        return max(0.0, self.usd - self.expected)

    def take_share(self, name: str, usd: float) -> None:
        """Set aside *usd* for a durable batch; replaces its earlier share.

        Raises:
            ConfigurationError: less than *usd* is left. Nothing was changed.
        """
        left = self.remaining + self._shares.get(name, (0.0, 0.0))[0]
        if usd > left + 1e-9:
            raise errors.ConfigurationError(f"budget has {left:g} USD left, not {usd:g}. Lower max_cost")
        self.set_share(name, usd)

    def set_share(self, name: str, counted: float, spent: float = 0.0) -> None:
        """Count *counted* USD for a durable batch, of which FLORA has charged *spent*; replaces its earlier share."""
        self._shares[name] = counted, spent
        self.tracker.reserved = math.fsum(each for each, _ in self._shares.values())
        self.tracker.notify()

    def _check_thresholds(self) -> None:
        while self._thresholds and self._on_threshold and self.expected >= self._thresholds[0] * self.usd - 1e-9:
            try:
                self._on_threshold(self, self._thresholds.pop(0))
            except Exception as error:
                name = type(error).__name__
                log.warning("on_threshold failed: %s", name, exc_info=error, extra={"error": name})


def check_budget(budget: object) -> Budget | None:
    """Return the budget of a call, or raise ConfigurationError."""
    if budget is None or isinstance(budget, Budget):
        return budget
    raise errors.ConfigurationError(f"budget must be a Budget, not {type(budget).__name__}. Pass Budget(usd=...)")


def _check_share(share: object) -> float:
    number = unwrap_number(share)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 1:
        raise errors.ConfigurationError(f"thresholds must be shares above 0 and at most 1, not {share!r}")
    return float(number)
