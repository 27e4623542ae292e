"""A service: an order is answered at once, a run as JSON, and finished runs are written down."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request

from flora_async import Flora, FloraError, NotFoundError, Run, StartedRun

STARTED, FINISHED = Path("started.jsonl"), Path("finished.jsonl")


def write_down(file: Path, record: dict[str, object]) -> None:
    """Append a line."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


class Desk:
    """The client, and a waiter for each run."""

    def __init__(self, flora: Flora) -> None:
        self.flora = flora
        self._waiters: set[asyncio.Task[None]] = set()

    def watch(self, started: StartedRun) -> None:
        """Keep the id, and wait in the background."""
        write_down(STARTED, {"run_id": started.run_id, "quote": started.charged_cost})
        waiter = asyncio.create_task(self._wait(started.run_id))
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)

    async def _wait(self, run_id: str) -> None:
        try:
            write_down(FINISHED, (await self.flora.wait_for_run(run_id, timeout=None)).to_dict())
        except FloraError as error:  # ClientClosedError at the end of the service: the id stays in STARTED
            write_down(FINISHED, error.to_dict())

    async def close(self) -> None:
        """Leave the runs to FLORA."""
        for waiter in self._waiters:
            waiter.cancel()
        await asyncio.gather(*self._waiters, return_exceptions=True)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    """Open one client for the service."""
    async with Flora() as flora:
        app.state.desk = desk = Desk(flora)
        yield
        await desk.close()


def desk_of(request: Request) -> Desk:
    """Return the desk of the service."""
    desk: Desk = request.app.state.desk
    return desk


app = FastAPI(lifespan=lifespan)
TheDesk = Annotated[Desk, Depends(desk_of)]


@app.post("/pictures", status_code=202)
async def order(prompt: str, desk: TheDesk) -> dict[str, str | float]:
    """Start an image, and answer with its id and its quoted cost."""
    try:
        started = await desk.flora.generations.create(
            type="image", prompt=prompt, workspace_id="ws_demo", project_id="prj_demo"
        )
    except FloraError as error:
        raise HTTPException(502, str(error)) from error
    desk.watch(started)
    return {"run_id": started.run_id, "quote": started.charged_cost}


@app.get("/pictures/{run_id}")
async def show(run_id: str, desk: TheDesk) -> Run:
    """Answer with the run."""
    try:
        return await desk.flora.generations.retrieve(run_id)
    except NotFoundError as error:
        raise HTTPException(404, "no such run") from error
