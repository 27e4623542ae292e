"""The choice of the next polls, as pure functions."""

import math

import pytest

from flora_async._polling.planner import (
    CLOCK_SKEW,
    GroupKey,
    ReadyGroup,
    choose_group,
    measured_pace,
    narrowest_scope,
    plan_sweeps,
    valid_marks,
)
from flora_async._polling.sweep import MARK_LIFETIME, PACE_HALF_LIFE, Mark

KEYS: tuple[GroupKey, ...] = ((False, False), (False, True), (True, False), (True, True))


def ready(**due: float) -> dict[GroupKey, ReadyGroup]:
    """Return the groups: ``healthy`` and ``failing`` runs, and those of each that must be polled alone."""
    names = dict(zip(("healthy", "healthy_alone", "failing", "failing_alone"), KEYS, strict=True))
    groups = dict.fromkeys(KEYS, ReadyGroup(math.inf))
    return groups | {names[name]: ReadyGroup(when, 2 if "failing" in name else 0) for name, when in due.items()}


@pytest.mark.parametrize(
    ("due", "sweeping", "expected"),
    [
        ({}, False, (math.inf, None)),
        ({"healthy": 9.0}, False, (10.0, (False, False))),
        ({"healthy": 11.0, "failing": 12.0}, False, (11.0, None)),
        ({"healthy": 9.0, "healthy_alone": 8.0}, False, (10.0, (False, True))),
        ({"healthy": 11.0, "failing": 9.0}, False, (10.0, (True, False))),
        ({"healthy": 9.0, "failing": 8.0}, False, (10.0, (False, False))),
        ({"healthy": 9.0}, True, (math.inf, None)),
        ({"healthy": 9.0, "failing_alone": 9.0}, True, (10.0, (True, True))),
    ],
)
def test_the_next_run(due: dict[str, float], sweeping: bool, expected: tuple[float, GroupKey | None]) -> None:
    """Healthy runs come first. During a sweep, only runs that must be polled alone are chosen."""
    assert choose_group(ready(**due), now=10.0, sweeping=sweeping, oldest_poll=None) == expected


def test_a_slow_poll_is_replaced() -> None:
    """If no further poll is allowed, the oldest is replaced after half a second; later if the due run fails."""
    assert choose_group(ready(healthy=9.0), now=10.0, sweeping=False, oldest_poll=9.5) == (10.0, (False, False))
    assert choose_group(ready(healthy=9.0), now=10.0, sweeping=False, oldest_poll=9.8) == (10.3, None)
    assert choose_group(ready(failing=9.0), now=10.0, sweeping=False, oldest_poll=9.5) == (11.5, None)
    assert choose_group(ready(healthy=9.0), now=10.0, sweeping=False, oldest_poll=math.inf) == (math.inf, None)


def test_runs_of_one_page_are_one_sweep() -> None:
    """Three recent runs are read from the head of the history, by one request in place of three."""
    plan = plan_sweeps([(99.0, "a"), (98.0, "b")], [(97.0, "c")], [], 100.0, pace=0.1)
    assert plan.parts == [(None, [(99.0, "a"), (98.0, "b"), (97.0 - CLOCK_SKEW, "c")])]
    assert plan.distant == []


def test_a_distant_run_is_polled_alone() -> None:
    """A run many pages from the head is not worth these pages."""
    plan = plan_sweeps([(99.0, "a"), (98.0, "b"), (0.0, "old")], [], [], 100.0, pace=0.5)
    assert [run_id for _, part in plan.parts for _, run_id in part] == ["a", "b"]
    assert plan.distant == [(0.0, "old")]


def test_an_outdated_pace_counts_less() -> None:
    """A pace loses half of its value in each half-life; without a mark it is zero."""
    mark = Mark(created=0.0, cursor="c", page=10, at=100.0)
    assert measured_pace([], 100.0) == 0.0
    assert measured_pace([mark], 100.0) == pytest.approx(0.1)
    later = 100.0 + PACE_HALF_LIFE
    assert measured_pace([mark], later) == pytest.approx(10 / later / 2)


def test_expired_marks_are_dropped() -> None:
    """The last mark stays, because it has the pace."""
    old, new = Mark(0.0, "a", 1, at=0.0), Mark(0.0, "b", 2, at=MARK_LIFETIME)
    assert valid_marks([old, new], MARK_LIFETIME + 1) == [new]
    assert valid_marks([old], 10 * MARK_LIFETIME) == [old]
    assert valid_marks([], 1.0) == []


def test_the_scope_of_several_runs() -> None:
    """A scope names the workspace and the project if all runs share them."""
    assert narrowest_scope([("ws_1", "prj_1")]) == ("ws_1", "prj_1")
    assert narrowest_scope([("ws_1", "prj_1"), ("ws_1", "prj_2")]) == ("ws_1", None)
    assert narrowest_scope([("ws_1", None), (None, None)]) == (None, None)
