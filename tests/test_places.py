"""Where in the history a run should stand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_async import Generation, GenerationPage, PageMeta, _places
from flora_async._places import Places


def page(times: list[float], cursor: str | None) -> GenerationPage:
    """Give a page of runs that were created at *times*, newest first."""
    rows = [
        Generation(
            run_id=f"run_{when}",
            generation_id=f"run_{when}",
            status="running",
            progress=0,
            created_at=when,
            project_id="prj_1",
            workspace_id="ws_1",
        )
        for when in times
    ]
    return GenerationPage(generations=tuple(rows), meta=PageMeta(next_cursor=cursor))


def test_by_count_before_anything_was_read() -> None:
    """A hundred newer ones make a page."""
    places = Places()
    for when in range(250):
        places.enter(float(when))
    assert [places.page_of(float(when), 0) for when in (249, 150, 149, 0)] == [0, 0, 1, 2]
    assert places.page_of(math.inf, 0) == 0
    assert places.page_of(249.0, 3) == 3


def test_strangers_in_between_are_learned() -> None:
    """Four of others to one of ours: our runs stand five times as far down."""
    places = Places()
    for when in range(0, 1000, 5):
        places.enter(float(when))
    places.note(0, page([float(when) for when in range(999, 899, -1)], "c1"))
    for _ in range(6):
        places.note(0, page([float(when) for when in range(999, 899, -1)], "c1"))
    assert places.page_of(900.0, 0) in (0, 1)
    assert places.page_of(500.0, 0) in (4, 5)


def test_new_runs_move_the_old_ones_on() -> None:
    """What was read is counted from there."""
    places = Places()
    for when in range(200):
        places.enter(float(when))
    places.note(0, page([float(when) for when in range(199, 99, -1)], "c1"))
    places.note(1, page([float(when) for when in range(99, -1, -1)], None))
    assert places.page_of(99.0, 0) == 1
    for when in range(200, 350):
        places.enter(float(when))
    assert places.page_of(349.0, 0) == 0
    assert places.page_of(160.0, 0) == 1
    assert places.page_of(99.0, 0) == 1, "no page is known to exist behind the last"


def test_the_end_of_the_history() -> None:
    """A null cursor ends it, and so does a circle; behind it there is nothing."""
    for cursor in (None, "c1"):
        places = Places()
        places.note(0, page([2.0], "c1"))
        places.note(1, page([1.0], cursor))
        assert places.last == 1
        assert places.page_of(-5.0, 0) == 1
        assert places.page_of(-5.0, 2) is None
        places.forget()
        assert (places.last, places.page_of(-5.0, 7)) == (0, 7)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(_places, "REMEMBERED", 100)
    places = Places()
    for when in range(1000):
        places.enter(float(when))
    assert len(places._times) <= 101
    assert places._times[-1] == 999.0


@given(
    st.lists(st.floats(0, 1e9), max_size=300), st.lists(st.floats(0, 1e9), min_size=1, max_size=100), st.floats(0, 1e9)
)
def test_any_history_gives_a_page(entered: list[float], read: list[float], asked: float) -> None:
    """Whatever was entered and read."""
    places = Places()
    for when in entered:
        places.enter(when)
    places.note(0, page(sorted(read, reverse=True), "c1"))
    number = places.page_of(asked, 0)
    assert number is not None
    assert 0 <= number <= 1 + len(entered) * 100
