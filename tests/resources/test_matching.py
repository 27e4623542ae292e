"""Which run belongs to which create: only where nothing else is possible."""

from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import generation

from flora_async import Generation, Order
from flora_async._resources.matching import Claim, candidate_runs, match_creates


def row(run_id: str, at: float = 100.0, **more: Any) -> Generation:
    """Give a run of the history."""
    record = generation(run_id, **{"created_at": at, "model": {"model_id": "m"}, **more})
    return msgspec.convert(record, Generation)


def claim(key: str, first: float = 90.0, last: float = 110.0, prompt: str = "", **more: Any) -> Claim:
    """Give a create that was accepted."""
    kept = {name: more.pop(name) for name in ("named", "accepted") if name in more}
    order = Order(**{"type": "image", "prompt": prompt or key, "workspace_id": "ws_1", "project_id": "prj_1", **more})
    return Claim(key, order, (first, last), **kept)


@pytest.mark.parametrize(
    ("seen", "possible"),
    [
        (row("r"), True),
        (row("r", 90.0), True),
        (row("r", 110.0), True),
        (row("r", 89.9), False),
        (row("r", 110.1), False),
        (row("r", 100_000.0), False),
        (row("r", model={"model_id": "other"}), False),
        (row("r", model=None), True),
        (row("r", model={"model_id": None}), True),
        (row("r", project_id="prj_2"), False),
        (row("r", workspace_id="ws_2"), False),
    ],
)
def test_what_a_run_must_share_with_the_order(seen: Generation, possible: bool) -> None:
    """Its time, its model where both are known, its place."""
    assert (candidate_runs(claim("a", model="m"), [seen]) == ["r"]) is possible
    assert candidate_runs(claim("a"), [row("r", model={"model_id": "any"})]) == ["r"]


def test_one_run_for_one_create() -> None:
    """It is that one."""
    assert match_creates([claim("a")], [row("r")]) == {"a": ["r"]}


def test_none_yet() -> None:
    """The history is behind."""
    assert match_creates([claim("a")], []) == {"a": []}


def test_two_runs_for_one_create() -> None:
    """One is somebody else's, and nobody can tell which."""
    assert match_creates([claim("a")], [row("r1"), row("r2")]) == {"a": ["r1", "r2"]}


def test_one_run_for_two_creates() -> None:
    """The other run is not there yet, so this may be either's."""
    assert match_creates([claim("a"), claim("b")], [row("r")]) == {"a": [], "b": []}


def test_a_chain() -> None:
    """What only one can have leaves the rest for the next."""
    creates = [claim("a", 90, 110), claim("b", 105, 125), claim("c", 120, 140)]
    runs = [row("r3", 122), row("r2", 107), row("r1", 95)]
    assert match_creates(creates, runs) == {"a": ["r1"], "b": ["r2"], "c": ["r3"]}


def test_two_creates_of_one_order() -> None:
    """Whichever gets which run, each gets its like."""
    verdicts = match_creates([claim("a", prompt="x"), claim("b", prompt="x")], [row("r1"), row("r2")])
    assert sorted(runs[0] for runs in verdicts.values()) == ["r1", "r2"]
    assert all(len(runs) == 1 for runs in verdicts.values())
    assert match_creates([claim("a"), claim("b")], [row("r1"), row("r2")]) == {"a": ["r1", "r2"], "b": ["r1", "r2"]}


def test_a_run_that_was_named() -> None:
    """By a torn answer; but only if it is there."""
    runs = [row("r1"), row("r2")]
    assert match_creates([claim("a", named="r2")], runs) == {"a": ["r2"]}
    assert match_creates([claim("a", named="r9")], runs) == {"a": ["r1", "r2"]}


def test_creates_that_may_not_have_been_accepted() -> None:
    """They take nothing from others, and get nothing."""
    assert match_creates([claim("a"), claim("b", accepted=False)], [row("r")]) == {"a": ["r"]}


WINDOWS = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)


@settings(max_examples=400)
@given(st.lists(st.tuples(WINDOWS, st.sampled_from("xyz")), max_size=4), st.lists(st.integers(0, 6), max_size=5))
def test_a_verdict_holds_in_every_possible_world(wanted: list[tuple[list[int], str]], times: list[int]) -> None:
    """A create is given a run only if every sharing out gives it that run, or one to an order just like it."""
    creates = [claim(f"k{n}", first, last, prompt) for n, ((first, last), prompt) in enumerate(wanted)]
    runs = [row(f"r{n}", at) for n, at in enumerate(times)]
    verdicts = match_creates(creates, runs)
    options = [set(candidate_runs(create, runs)) for create in creates]
    ids = [run.run_id for run in runs]
    worlds = [
        world
        for world in permutations(ids, len(creates))
        if all(run in can for run, can in zip(world, options, strict=True))
    ]
    given_out = [runs[0] for runs in verdicts.values() if len(runs) == 1]
    assert len(given_out) == len(set(given_out))
    for number, create in enumerate(creates):
        verdict = verdicts[create.key]
        if len(verdict) == 1 and worlds:
            alike = [n for n, other in enumerate(creates) if other.order == create.order]
            assert all(any(world[n] == verdict[0] for n in alike) for world in worlds), number
