"""Tests of the film service. They need pytest and ``flora-async[sandbox]``, and no other set-up."""

from datetime import timedelta
from pathlib import Path

import pytest
from film import keep, shoot

from flora_async import Flora, InsufficientCreditsError
from flora_async.sandbox import Sandbox


async def test_ten_scenes(flora: Flora, flora_sandbox: Sandbox) -> None:
    film = await shoot(flora, [f"scene {number}" for number in range(10)])
    assert len(film.clips) == 10
    assert flora_sandbox.accepted == 10


async def test_a_scene_that_flora_refuses(flora: Flora) -> None:
    film = await shoot(flora, ["a kiss", "a duel [fail:safety_blocked]"])
    assert list(film.clips) == ["a kiss"]
    assert "safety_blocked" in str(film.missing["a duel [fail:safety_blocked]"])


async def test_no_credit(flora: Flora, flora_sandbox: Sandbox) -> None:
    flora_sandbox.fail_next(402)
    film = await shoot(flora, ["a kiss"])
    assert isinstance(film.missing["a kiss"], InsufficientCreditsError)


@pytest.mark.flora_sandbox(faults={503: 0.2, "reset": 0.1}, seed=1)
async def test_an_outage(flora: Flora, flora_sandbox: Sandbox) -> None:
    scenes = [f"scene {number}" for number in range(10)]
    film = await shoot(flora, scenes)
    assert {*film.clips, *film.missing} == {*scenes}
    assert len(film.clips) <= flora_sandbox.accepted <= 10  # none is billed twice


@pytest.mark.flora_sandbox(time_scale=20)
async def test_four_minutes_for_a_scene(flora: Flora) -> None:
    film = await shoot(flora, ["a glacier"])
    clip = film.clips["a glacier"]
    assert clip.completed
    assert clip.completed - clip.created > timedelta(minutes=3)


async def test_clips_are_kept(flora: Flora, tmp_path: Path) -> None:
    film = await shoot(flora, ["a kiss"])
    (path,) = await keep(flora, film, tmp_path)
    assert path.suffix == ".mp4"
