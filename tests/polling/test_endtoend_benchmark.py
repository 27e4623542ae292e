"""The end-to-end benchmark: its smallest cells, and that no order is given up under a narrow limit."""

import pytest

from benchmarks.endtoend.contestants import OURS
from benchmarks.endtoend.report import markdown
from benchmarks.endtoend.run import Cell, lower_bound, measure, measure_all


@pytest.mark.parametrize("name", OURS)
def test_the_smallest_cell_ends_near_its_bound(name: str) -> None:
    """One image: one create, some polls, one file; no later than five seconds after the earliest possible time."""
    cell = Cell("image", 10.0, 1)
    figures = measure(name, cell)
    assert (figures["saved"], figures["429s"], figures["failures"]) == (1, 0, {})
    assert lower_bound(cell) <= figures["seconds"] < lower_bound(cell) + 5


def test_many_orders_at_once_are_all_saved_under_a_narrow_limit() -> None:
    """Forty images, all ordered at once under two requests a second: each is refused often, and none is given up."""
    cell = Cell("image", 2.0, 40)
    figures = measure("flora-async", cell)
    assert (figures["saved"], figures["failures"]) == (40, {})
    assert figures["429s"] > 30
    assert figures["seconds"] < 2 * lower_bound(cell)


def test_the_table_has_a_row_for_each_cell() -> None:
    """A cell that was not measured shows a dash."""
    rows = measure_all(["flora-async"], (10.0,), (1,))
    table = markdown({"rows": rows, "real": [], "versions": {}, "date": "", "machine": ""})
    assert table.count("| 10 | 1 |") == 2
    assert table.count("| - |") > 0
