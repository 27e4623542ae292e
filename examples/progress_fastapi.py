"""A FastAPI service that answers at once, and streams how far a run is.

``POST /videos?prompt=a+day+over+the+hills`` gives a run id; ``GET /videos/{run_id}/events`` tells of the run as
server-sent events until it has ended. A browser reads them with ``new EventSource(url)``.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypedDict

from fastapi import FastAPI, HTTPException, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent

from flora_async import ConfigurationError, Flora, FloraError, Order


class State(TypedDict):
    """What requests find in their state."""

    flora: Flora


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[State]:
    """Keep one client for the service's event loop, and close it when the service ends."""
    async with Flora() as flora:
        yield {"flora": flora}


app = FastAPI(lifespan=lifespan)


@app.post("/videos", status_code=202)
async def order(prompt: str, request: Request) -> dict[str, Any]:
    """Order a video. The run goes on at FLORA, whoever watches."""
    wanted = Order(type="video", prompt=prompt, workspace_id="ws_demo", project_id="prj_demo")
    try:
        started = await request.state.flora.generations.create(wanted)
    except FloraError as error:
        raise HTTPException(400 if isinstance(error, ConfigurationError) else 502, str(error)) from error
    return {"run_id": started.run_id, "estimated_seconds": started.estimated_seconds}


@app.get("/videos/{run_id}/events", response_class=EventSourceResponse)
async def watch(run_id: str, request: Request) -> AsyncGenerator[ServerSentEvent]:
    """Tell of every change of a run. The looking ends when the reader goes away; many readers share the looks."""
    try:
        async with request.state.flora.watch_run(run_id) as changes:
            async for run in changes:
                yield ServerSentEvent(event=run.status, data=run.to_dict())
    except FloraError as error:
        yield ServerSentEvent(event="error", data={"message": str(error)})
