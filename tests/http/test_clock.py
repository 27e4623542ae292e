"""FLORA's clock, as the Date headers of responses tell it."""

import random

import pytest

from flora_async._http.clock import REMEMBERED_SECONDS, ServerClock


def test_an_unknown_clock_is_the_wall_clock() -> None:
    """Before any response there is nothing better."""
    clock = ServerClock()
    assert (clock.known, clock.now(steady=5, wall=1000), clock.at(5)) == (False, 1000, None)


def test_each_response_bounds_the_clock_from_both_sides() -> None:
    """Dates are cut to seconds: one that is between the bounds changes nothing, others move the clock up or down."""
    clock = ServerClock()
    clock.observe(1000.0, sent=10.0, received=10.2, wall=1000.9)
    assert clock.at(10.2) == 1000.0
    clock.observe(1001.0, sent=10.5, received=10.7, wall=1001.4)
    assert clock.at(10.7) == 1001.0
    clock.observe(1001.0, sent=11.0, received=11.1, wall=1001.8)
    assert clock.at(11.1) == 1001.4
    clock.observe(900.0, sent=12.0, received=12.1, wall=1002.8)
    assert clock.at(12.0) == 901.0


def test_a_wall_clock_that_is_set_back_does_not_matter() -> None:
    """The steady clock goes on."""
    clock = ServerClock()
    clock.observe(1000.0, sent=10.0, received=10.0, wall=5000.0)
    assert clock.now(steady=11.0, wall=5001.0 - 3600) == 1001.0


def test_a_machine_that_slept_is_not_late() -> None:
    """A steady clock that stood still is corrected by the wall clock."""
    clock = ServerClock()
    clock.observe(1000.0, sent=10.0, received=10.0, wall=5000.0)
    assert clock.now(steady=11.0, wall=5000.0 + 7200) == 8200.0


def test_a_stray_date_widens_spans_for_some_minutes() -> None:
    """A response to another request is dated earlier; a span covers the times by all recent estimates."""
    clock = ServerClock()
    clock.observe(1000.0, sent=10.0, received=10.2, wall=1000.9)
    clock.observe(1001.0, sent=20.0, received=20.2, wall=1010.9)  # ten seconds old
    clock.observe(1020.0, sent=30.0, received=30.1, wall=1020.9)
    assert clock.earliest(30.0) == 1012.0
    assert clock.latest(steady=30.0, wall=0.0) == pytest.approx(1019.9)
    clock.observe(1400.0, sent=410.1, received=410.2, wall=1400.9)
    assert clock.earliest(410.0) == clock.at(410.0)


def test_a_span_covers_every_estimate_of_the_last_minutes() -> None:
    """Also after many estimates, of which few are kept: they bound a span as all together would."""
    chance = random.Random(5)
    clock, replaced, steady = ServerClock(), list[tuple[float, float]](), 0.0
    for _ in range(2000):
        steady += chance.uniform(0, 5)
        before = clock.at(0.0)
        clock.observe(1000 + steady + chance.uniform(-30, 2) // 1, sent=steady - 0.1, received=steady, wall=0.0)
        if before is not None and before != clock.at(0.0):
            replaced.append((steady, before))
        now = clock.at(0.0)
        assert now is not None
        recent = [now, *(each for since, each in replaced if since >= steady - REMEMBERED_SECONDS)]
        assert clock.earliest(0.0) == min(recent)
        assert clock.latest(steady=0.0, wall=-5000.0 - steady) == max(recent)
