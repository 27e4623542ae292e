"""A chat bot: users start videos from a photo, leave, and come back."""

from dataclasses import dataclass, field
from pathlib import Path

from flora_async import Flora, FloraError, Order


@dataclass
class Bot:
    """The videos that users wait for."""

    flora: Flora
    videos: dict[str, str] = field(default_factory=dict[str, str])
    """Run ids by user: a table of a database, in a bot that restarts."""

    async def start(self, user: str, photo: Path, wish: str) -> str:
        """Start a video from a photo that the user has posted, and keep its run."""
        order = Order(
            type="video",
            prompt=wish,
            workspace_id="ws_demo",
            project_id="prj_demo",
            params={"image_url": photo},
        )
        started = await self.flora.generations.create(order)
        self.videos[user] = started.run_id
        return f"about {started.estimated_seconds} seconds, {started.charged_cost} USD"

    async def wait(self, user: str) -> str:
        """Return the address of the user's video. A user who leaves ends this wait, and not the run."""
        try:
            run = await self.flora.wait_for_run(self.videos[user], timeout=900)
        except FloraError as error:
            return f"that did not work: {error}"
        return run.outputs[0].url
