"""A service built on FLORA: it films a script, a clip for each scene."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flora_async import Flora, FloraError, Order, Run


@dataclass
class Film:
    """What was filmed, and why the rest was not, by scene."""

    clips: dict[str, Run] = field(default_factory=dict[str, Run])
    missing: dict[str, FloraError] = field(default_factory=dict[str, FloraError])


async def shoot(flora: Flora, scenes: Iterable[str], *, budget: float = 10.0) -> Film:
    """Film all scenes at once, for no more than *budget* USD. Scenes that the budget is too small for are left out."""
    orders = (Order(type="video", prompt=scene, workspace_id="ws_demo", project_id="prj_demo") for scene in scenes)
    film = Film()
    async for outcome in flora.generate_many(orders, max_cost=budget):
        if outcome.run:
            film.clips[outcome.order.prompt] = outcome.run
        elif outcome.error:
            film.missing[outcome.order.prompt] = outcome.error
    return film


async def keep(flora: Flora, film: Film, folder: Path) -> list[Path]:
    """Save all clips of a film."""
    return [path for run in film.clips.values() for path in await flora.download(run, folder)]
