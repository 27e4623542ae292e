"""Cost limits: prices by type and model, quotes, charges, and the decision whether one more order fits."""

import pytest
from msgspec.structs import replace

from flora_async import Order, Run
from flora_async._costs import QUOTE_MARGIN, CostEntry, CostTracker, KindCosts, decide_start, price_key

TEXT, VIDEO = ("text", None), ("video", None)


def test_the_key_of_a_price_is_type_and_model() -> None:
    """Two models of one type have prices of their own."""
    order = Order(type="text", prompt="p", workspace_id="ws_1", project_id="prj_1")
    assert price_key(order) == TEXT
    assert price_key(replace(order, model="m")) == ("text", "m")


@pytest.mark.parametrize(
    ("costs", "key", "max_cost", "decision"),
    [
        ({}, TEXT, 1.0, "start"),
        ({}, TEXT, 0.0, "stop"),
        # The first of a kind has no price: nothing starts beside it.
        ({TEXT: KindCosts(unanswered=1)}, TEXT, 1.0, "wait"),
        ({TEXT: KindCosts(unanswered=1)}, VIDEO, 1.0, "wait"),
        ({TEXT: KindCosts(running=1)}, VIDEO, 1.0, "wait"),
        ({TEXT: KindCosts(charged=0.01, highest_charge=0.01)}, VIDEO, 1.0, "start"),
        # A charge is a price; exactly the limit fits.
        ({TEXT: KindCosts(charged=0.9, highest_charge=0.1)}, TEXT, 1.0, "start"),
        ({TEXT: KindCosts(charged=0.91, highest_charge=0.1)}, TEXT, 1.0, "stop"),
        ({TEXT: KindCosts(charged=0.1, highest_charge=0.1, unanswered=9)}, TEXT, 1.0, "wait"),
        ({TEXT: KindCosts(charged=0.1, highest_charge=0.1, doubtful=9)}, TEXT, 1.0, "stop"),
        # Running orders count with their own quotes, and at least as much as was ever charged.
        (
            {VIDEO: KindCosts(charged=0.5, highest_charge=0.5, running=1, quoted=3.0, highest_quote=3.0)},
            VIDEO,
            6,
            "wait",
        ),
        (
            {VIDEO: KindCosts(charged=0.5, highest_charge=0.5, running=1, quoted=0.2, highest_quote=0.2)},
            VIDEO,
            1.5,
            "start",
        ),
        (
            {VIDEO: KindCosts(charged=0.5, highest_charge=0.5, running=1, quoted=0.2, highest_quote=0.2)},
            VIDEO,
            1.4,
            "wait",
        ),
        # A quote alone counts fourfold.
        ({VIDEO: KindCosts(running=1, quoted=0.25, highest_quote=0.25)}, VIDEO, 2.0, "start"),
        ({VIDEO: KindCosts(running=1, quoted=0.25, highest_quote=0.25)}, VIDEO, 1.9, "wait"),
        # A limit that charges have used up, but for rounding, has no room for an order of unknown price.
        ({VIDEO: KindCosts(charged=0.7 + 0.1 + 0.1 + 0.1, highest_charge=0.7)}, TEXT, 1.0, "stop"),
        # Another kind's cost counts too; a doubtful create of unknown price holds nothing up.
        ({VIDEO: KindCosts(charged=1.0, highest_charge=0.5), TEXT: KindCosts(highest_charge=0.01)}, TEXT, 1.0, "stop"),
        ({TEXT: KindCosts(doubtful=1)}, TEXT, 1.0, "start"),
        # Orders that never show a cost do not go on for ever.
        ({TEXT: KindCosts(doubtful=2, unsettled=2)}, TEXT, 1.0, "start"),
        ({TEXT: KindCosts(doubtful=3, unsettled=2)}, TEXT, 1.0, "stop"),
        ({TEXT: KindCosts(doubtful=5)}, VIDEO, 1.0, "stop"),
        ({TEXT: KindCosts(doubtful=5), VIDEO: KindCosts(highest_charge=0.5)}, VIDEO, 1.0, "start"),
        ({TEXT: KindCosts(doubtful=5, highest_charge=0.1)}, VIDEO, 1.0, "start"),
        # Free of charge fits any limit that is not passed.
        ({TEXT: KindCosts(charged=0.0, highest_charge=0.0)}, TEXT, 0.0, "start"),
    ],
)
def test_whether_one_more_fits(
    costs: dict[tuple[str, str | None], KindCosts], key: tuple[str, str | None], max_cost: float, decision: str
) -> None:
    """Each rule of the limit, with the amounts that tell it from its neighbours."""
    assert decide_start(costs, key, max_cost=max_cost) == decision


def ended(charge: float | None, status: str = "completed") -> Run:
    """Return a finished run."""
    return Run(run_id="run_1", status=status, progress=100, created_at=1, charged_cost=charge)


def test_a_charge_replaces_the_quote() -> None:
    """Too low a quote and too high a quote both end as the charge, and the price follows."""
    tracker = CostTracker()
    video = CostEntry(VIDEO, [tracker])
    video.start(0.253)
    assert tracker.expected == pytest.approx(QUOTE_MARGIN * 0.253)
    assert (tracker.quoted, tracker.spent) == (0.253, 0)
    video.finish(ended(0.873))
    video.finish(ended(5.0))  # it has its charge
    assert tracker.expected == tracker.spent == pytest.approx(0.873)
    assert tracker.costs[VIDEO].price == pytest.approx(0.873)
    text = CostEntry(TEXT, [tracker])
    text.start(1.0)
    text.finish(ended(0.1))
    assert tracker.costs[TEXT].price == pytest.approx(0.1)
    assert tracker.unsettled == 0


def test_amounts_below_zero_make_no_room() -> None:
    """A negative quote is no price, and a negative charge frees no money for further orders."""
    tracker = CostTracker(1.0)
    video = CostEntry(VIDEO, [tracker])
    video.start(-1.0)
    assert (tracker.quoted, tracker.decide(VIDEO)) == (0, "wait")
    video.finish(ended(-5.0))
    assert (tracker.spent, tracker.expected) == (0, 0)


def test_a_later_quote_counts_by_the_ratio_that_was_seen() -> None:
    """A dearer order of the same type and model counts its quote by the highest factor that was charged before."""
    tracker = CostTracker()
    first, dear = CostEntry(VIDEO, [tracker]), CostEntry(VIDEO, [tracker])
    first.start(0.1)
    first.finish(ended(0.35))
    dear.start(1.0)
    assert tracker.costs[VIDEO].price == pytest.approx(3.5)
    assert tracker.expected == pytest.approx(0.35 + 3.5)


def test_a_missing_charge_is_no_small_charge() -> None:
    """A completed run without a charge counts at its expected cost until the charge is there, and in the end too."""
    tracker = CostTracker()
    entry = CostEntry(VIDEO, [tracker])
    entry.start(0.25)
    entry.finish(ended(None))
    assert (tracker.expected, tracker.costs[VIDEO].in_flight) == (1.0, True)
    entry.abandon()
    assert (tracker.expected, tracker.costs[VIDEO].in_flight, tracker.unsettled) == (1.0, False, 1)
    entry.finish(ended(0.7))
    assert (tracker.expected, tracker.spent, tracker.unsettled) == (0.7, 0.7, 0)


def test_what_is_free_and_what_may_not_be() -> None:
    """Failed and refused orders cost nothing; doubtful, abandoned and unpriced ones count."""
    tracker = CostTracker()
    refused, failed, unpriced, doubtful, lost = (CostEntry(TEXT, [tracker]) for _ in range(5))
    refused.release()
    failed.start(0.1)
    failed.finish(ended(None, "failed"))
    assert (tracker.expected, tracker.costs[TEXT].price) == (0.0, None)
    unpriced.start(0.1)
    unpriced.abandon()
    doubtful.abandon()
    lost.start(0)
    lost.abandon()
    lost.release()  # too late
    assert tracker.expected == pytest.approx(3 * QUOTE_MARGIN * 0.1)
    assert not tracker.costs[TEXT].in_flight
    assert tracker.unsettled == 3


def test_an_order_counts_in_each_of_its_budgets() -> None:
    """A limit of its own and a shared one count the same order; a share that is set aside leaves less to the others."""
    own, shared = CostTracker(1.0), CostTracker(3.0)
    CostEntry(TEXT, [own, shared]).start(0.2)
    assert own.expected == shared.expected == pytest.approx(0.8)
    assert (own.decide(TEXT), shared.decide(TEXT)) == ("wait", "start")
    shared.reserved = 2.0
    assert shared.decide(TEXT) == "wait"
    assert shared.expected == pytest.approx(2.8)
