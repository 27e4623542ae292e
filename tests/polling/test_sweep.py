"""Sweeps of the history: their extent and when they save requests."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_async._polling.sweep import MAX_PARTS, MIN_PART_PAGES, Mark, Sweep, Wanted, count_worthwhile, split

NOW = 1000.0


@pytest.mark.parametrize(
    ("ages", "pace", "read", "count"),
    [
        ([], 0.0, 0, 0),
        ([1.0], 0.0, 0, 0),  # one run is polled by its own address
        ([1.0, 1.0], 0.0, 0, 2),  # one page, as far as is known
        ([1.0, 2.0], 1.0, 0, 0),  # two pages for two runs
        ([1.0, 2.0, 2.0], 1.0, 0, 3),
        ([1.0, 1.0, 900.0], 1.0, 0, 2),  # the last one is too far down
        ([1.0, 900.0], 1.0, 899, 2),  # those pages are read already
        ([-math.inf, -5.0], 9.0, 0, 2),  # a run of unknown age is taken for a new one
    ],
)
def test_how_many_runs_are_worth_a_sweep(ages: list[float], pace: float, read: int, count: int) -> None:
    """A sweep is worth it for as many of the youngest runs as cost fewer pages than polls."""
    assert count_worthwhile(ages, pace, read) == count


@given(st.lists(st.floats(0, 1e6)), st.floats(0, 100), st.integers(0, 100))
def test_no_sweep_costs_more_than_polling(ages: list[float], pace: float, read: int) -> None:
    """For any ages, a sweep expects fewer pages than it searches runs."""
    ages.sort()
    count = count_worthwhile(ages, pace, read)
    assert count == 0 or max(1, math.ceil(ages[count - 1] * pace) - read) < count <= len(ages)


def test_a_sweep_ends_when_all_runs_are_met() -> None:
    """A sweep stops searching for the runs found on a page."""
    sweep = Sweep([(990.0, "a"), (980.0, "b"), (970.0, "c")])
    assert sweep.apply_page({"a"}, 985.0, "2", NOW) == ([], [])
    assert [run_id for _, run_id in sweep.wanted] == ["b", "c"]
    assert sweep.apply_page({"b", "c"}, 960.0, "3", NOW) == ([], [])
    assert not sweep.wanted


def test_a_run_that_is_not_where_it_should_be_is_passed() -> None:
    """A page with an older last row passes a run; a run of the same time may be on the next page."""
    sweep = Sweep([(990.0, "a"), (980.0, "b"), (970.0, "c"), (970.0, "d")])
    assert sweep.apply_page(set(), 980.0, "2", NOW) == (["a"], [])
    assert [run_id for _, run_id in sweep.wanted] == ["b", "c", "d"]


def test_the_end_of_the_history_passes_all() -> None:
    """A sweep ends at the end of the history and at a repeated cursor."""
    assert Sweep([(990.0, "a"), (980.0, "b")]).apply_page(set(), 985.0, None, NOW) == (["a", "b"], [])
    circle = Sweep([(955.0, run_id) for run_id in "abcd"])
    assert circle.apply_page(set(), 960.0, "2", NOW) == ([], [])
    assert circle.apply_page(set(), 960.0, "2", NOW) == (["a", "b", "c", "d"], [])


def test_runs_of_unknown_age_are_looked_for_while_pages_tell_of_some() -> None:
    """The next page is read for runs of unknown age only after a page with two awaited runs."""
    sweep = Sweep([(math.inf, run_id) for run_id in "abcdef"])
    assert sweep.apply_page({"a", "b"}, 985.0, "2", NOW) == ([], [])
    assert sweep.apply_page(set(), 980.0, "3", NOW) == (["c", "d", "e", "f"], [])


def test_dense_traffic_ends_a_sweep_after_a_page() -> None:
    """A page that covers two seconds predicts that runs of a minute ago are 30 pages away."""
    sweep = Sweep([(940.0, "a"), (940.0, "b"), (940.0, "c")])
    assert sweep.apply_page(set(), 998.0, "2", NOW) == ([], ["a", "b", "c"])
    assert not sweep.wanted


@given(st.lists(st.booleans(), max_size=60))
def test_a_sweep_reads_no_more_pages_than_it_looks_for_runs(full: list[bool]) -> None:
    """A sweep reads at most one page for each run, for any pages."""
    sweep = Sweep([(0.0, str(number)) for number in range(10)])
    pages = 0
    for rows in full:
        if not sweep.wanted:
            break
        pages += 1
        sweep.apply_page(set(), 500.0 if rows else None, str(pages), NOW)
    assert pages <= 10


def test_marks_split_a_long_history() -> None:
    """Parts start at marks a few pages apart; a run with the time of a mark belongs to the part before it."""
    marks = [Mark(NOW - page, str(page), page, NOW) for page in range(1, 81)]
    wanted = [(NOW - 0.5 - page, f"run_{page}") for page in range(80)] + [(NOW - 10.0, "run_tie")]
    parts = split(wanted, [(NOW, "run_unsure")], marks)
    assert parts[0][0] is None
    assert (NOW, "run_unsure") in parts[0][1]
    assert len(parts) <= MAX_PARTS + 1
    assert [run for _, part in parts for run in part] == [(NOW, "run_unsure"), *sorted(wanted, reverse=True)]
    begins = [mark.page if mark else 0 for mark, _ in parts]
    assert all(later - sooner >= MIN_PART_PAGES for sooner, later in pairwise(begins))
    for mark, part in parts:
        assert mark is None or all(created < mark.created for created, _ in part)
    assert next(mark for mark, part in parts if (NOW - 10.0, "run_tie") in part) is None


@given(
    st.lists(st.tuples(st.floats(0, 1e9), st.text(max_size=3)), max_size=40),
    st.lists(st.floats(0, 1e9), max_size=40),
)
def test_no_run_is_lost_between_parts(wanted: list[Wanted], ends: list[float]) -> None:
    """Each run is in exactly one part, after the start mark of the part."""
    marks = [Mark(end, str(page), page, NOW) for page, end in enumerate(sorted(ends, reverse=True), 1)]
    parts = split(wanted, [], marks)
    assert [run for _, part in parts for run in part] == sorted(wanted, reverse=True)
    assert all(mark is None or created < mark.created for mark, part in parts for created, _ in part)
