"""Costs: sums over the history, and estimates from charges that this client has seen or from FLORA's catalogue."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import asdict

from flora_async import errors
from flora_async._bounded_dict import BoundedDict
from flora_async._costs import MAX_KINDS, QUOTE_MARGIN, PriceKey, price_key
from flora_async._polling.durations import DurationEstimator
from flora_async._resources.pagination import Deduplicator, PageIterator
from flora_async.models import (
    ActionOrder,
    AnyOrder,
    CostRow,
    CostTable,
    Estimate,
    EstimateBasis,
    Generation,
    GenerationPage,
    KindEstimate,
    Model,
    Order,
    PriceHistory,
    TechniqueOrder,
    lacks_charge,
)

CREDIT_USD = 0.001
"""USD of a credit, in which FLORA's catalogue names prices."""

CostKey: TypeAlias = Literal["model", "project", "day"]

_KEYS: dict[CostKey, Callable[[Generation], str | None]] = {
    "model": lambda run: run.model.model_id if run.model else None,
    "project": lambda run: run.project_id,
    "day": lambda run: f"{run.created:%Y-%m-%d}",
}


class _Sum(Struct, gc=False):
    """The sums of one row."""

    runs: int = 0
    completed: int = 0
    failed: int = 0
    charged: float = 0.0
    unsettled: int = 0

    def add(self, run: Generation) -> None:
        """Add a run."""
        self.runs += 1
        self.completed += run.succeeded
        self.failed += run.finished and not run.succeeded
        self.charged += run.charged_cost or 0.0 if run.finished else 0.0
        self.unsettled += lacks_charge(run) or not run.finished


def check_since(since: datetime | timedelta | None) -> datetime | None:
    """Return the time from which on runs are counted, in UTC."""
    if since is None:
        return None
    if isinstance(since, timedelta):
        try:
            return datetime.now(UTC) - abs(since)
        except OverflowError:
            return None
    if not isinstance(since, datetime) or since.tzinfo is None:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise errors.ConfigurationError(
            f"since must be a timedelta, or a datetime with a time zone, not {since!r}. Use datetime(..., tzinfo=UTC)"
        )
    return since.astimezone(UTC)


def check_cost_key(by: str) -> CostKey:
    """Return the column by which costs are summed up."""
    for known in _KEYS:
        if by == known:
            return known
    raise errors.ConfigurationError(f"by must be one of {', '.join(_KEYS)}, not {by!r}")


async def sum_history(pages: PageIterator[GenerationPage], by: CostKey) -> CostTable:
    """Sum up the runs of a history. The memory depends on the number of rows, not of runs."""
    sums: dict[str | None, _Sum] = {}
    key_of, once, broken = _KEYS[by], Deduplicator(), 0
    async with aclosing(pages):
        async for page in pages:
            broken += len(page.broken)
            for run in once.filter_new(page.generations):
                sums.setdefault(key_of(run), _Sum()).add(run)
    rows = [CostRow(key=key, **asdict(each)) for key, each in sums.items()]
    rows.sort(key=(lambda row: (0.0, row.key or "")) if by == "day" else (lambda row: (-row.charged, row.key or "")))
    return CostTable(by=by, rows=tuple(rows), broken=broken)


_NO_RUNS = PriceHistory(runs=0, mean=0.0, low=math.inf, high=-math.inf)


class SeenPrices:
    """Charges and durations of the completed runs that a client has seen, by kind and model."""

    def __init__(self) -> None:
        self._seen: BoundedDict[PriceKey, PriceHistory] = BoundedDict(MAX_KINDS)

    def record(self, key: PriceKey, charge: float, seconds: float) -> None:
        """Add a completed run."""
        # Each run that ends comes here: merge_prices would make five times the calls.
        before = self._seen.pop(key, _NO_RUNS)
        runs = before.runs + 1
        self._seen[key] = PriceHistory(
            runs=runs,
            mean=before.mean + (charge - before.mean) / runs,
            low=min(before.low, charge),
            high=max(before.high, charge),
            seconds=seconds if before.seconds is None else before.seconds + (seconds - before.seconds) / runs,
        )

    def find(self, key: PriceKey, past: Mapping[PriceKey, PriceHistory]) -> PriceHistory | None:
        """Return the prices of a kind and model. An order without a model can get each model of its kind."""
        kind, endpoint = key
        found = [
            history
            for seen in (self._seen, past)
            for (seen_kind, model), history in seen.items()
            if seen_kind == kind and endpoint in (None, model)
        ]
        return merge_prices(found) if found else None


def merge_prices(histories: Iterable[PriceHistory]) -> PriceHistory:
    """Return the prices of several histories together."""
    known = list(histories)
    runs = sum(each.runs for each in known)
    timed = [each for each in known if each.seconds is not None]
    timed_runs = sum(each.runs for each in timed)
    return PriceHistory(
        runs=runs,
        mean=sum(each.mean * each.runs for each in known) / runs,
        low=min(each.low for each in known),
        high=max(each.high for each in known),
        seconds=sum((each.seconds or 0.0) * each.runs for each in timed) / timed_runs if timed_runs else None,
    )


class Catalogue(Struct, frozen=True):
    """The requests that an estimate can need."""

    model: Callable[[str], Coroutine[Any, Any, Model | None]]
    """Returns a model by its id, from the list that the client keeps."""
    cost: Callable[[TechniqueOrder | ActionOrder], Coroutine[Any, Any, float | None]]
    """Returns the declared cost of a technique or an action in USD."""
    quote: Callable[[Order], Coroutine[Any, Any, float | None]] | None
    """Requests a quote; ``None``: quotes are not requested."""


async def count_orders(
    orders: AnyOrder | Iterable[AnyOrder] | AsyncIterable[AnyOrder],
) -> tuple[Counter[PriceKey], dict[PriceKey, AnyOrder]]:
    """Return the number of orders of each kind and model, and the first one of each."""
    counts: Counter[PriceKey] = Counter()
    samples: dict[PriceKey, AnyOrder] = {}

    def count(order: object) -> None:
        if not isinstance(order, AnyOrder):
            raise errors.ConfigurationError(f"estimate takes orders, not {type(order).__name__}")
        key = price_key(order)
        counts[key] += 1
        samples.setdefault(key, order)

    if isinstance(orders, AsyncIterable):
        async for order in orders:
            count(order)
    elif isinstance(orders, Iterable):
        for order in orders:
            count(order)
    else:
        count(orders)
    return counts, samples


async def estimate_costs(
    counts: Mapping[PriceKey, int],
    samples: Mapping[PriceKey, AnyOrder],
    *,
    find_prices: Callable[[PriceKey], PriceHistory | None],
    durations: DurationEstimator,
    catalogue: Catalogue,
) -> Estimate:
    """Return the expected cost of orders, by the best source for each kind and model."""
    kinds: list[KindEstimate] = []
    for key, count in counts.items():
        sample, history, model = samples[key], find_prices(key), None
        if history is None and isinstance(sample, Order) and sample.model is not None:
            model = await catalogue.model(sample.model)
        if history is not None and history.seconds is not None:
            seconds = history.seconds
        else:
            seconds = durations.predict(sample.kind, sample.endpoint, model.estimated_seconds if model else None)
        basis, usd, low, high = await _find_price(sample, history, model, catalogue)
        kinds.append(
            KindEstimate(
                kind=sample.kind,
                endpoint=sample.endpoint,
                orders=count,
                usd=None if usd is None else count * usd,
                low=None if low is None else count * low,
                high=None if high is None else count * high,
                seconds=seconds,
                basis=basis,
                runs=history.runs if history is not None and basis == "charges" else 0,
            )
        )
    return Estimate(kinds=tuple(kinds))


_Price: TypeAlias = tuple[EstimateBasis, float | None, float | None, float | None]
"""Source of a price, the price, and its range in USD."""


async def _find_price(
    sample: AnyOrder, history: PriceHistory | None, model: Model | None, catalogue: Catalogue
) -> _Price:
    if isinstance(sample, Order) and catalogue.quote is not None:
        quote = await catalogue.quote(sample)
        if quote is not None:
            return "quote", quote, quote, QUOTE_MARGIN * quote
    if history is not None:
        return "charges", history.mean, history.low, history.high
    if isinstance(sample, Order):  # FLORA lists 0 credits for some models that are not free
        usd = model.estimated_credits * CREDIT_USD if model and model.estimated_credits else None
        margin = QUOTE_MARGIN
    else:
        usd, margin = await catalogue.cost(sample), 1.0
    return ("unknown", None, None, None) if usd is None else ("catalogue", usd, usd, margin * usd)
