"""A FastAPI service that FLORA calls back: ``POST /images?prompt=a+mug`` gives the picture's URL.

FLORA_API_KEY, FLORA_WEBHOOK_SECRET and PUBLIC_URL, where FLORA reaches this service, come from the environment.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI, HTTPException, Request

from flora_async import ConfigurationError, Flora, FloraError, Inbox, Order, WebhookVerificationError

PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000")


class State(TypedDict):
    """What requests find in their state."""

    flora: Flora
    inbox: Inbox


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncGenerator[State]:
    """Keep one client for the service's event loop, and close it when the service ends."""
    async with Flora() as flora:
        yield {"flora": flora, "inbox": flora.inbox()}


app = FastAPI(lifespan=lifespan)


@app.post("/images")
async def draw(prompt: str, request: Request) -> dict[str, str]:
    """Order an image, and answer when FLORA has said that it is done."""
    order = Order(
        type="image",
        prompt=prompt,
        workspace_id="ws_demo",
        project_id="prj_demo",
        callback_url=f"{PUBLIC_URL}/flora",
    )
    try:
        run = await request.state.flora.generate(order)
    except FloraError as error:
        raise HTTPException(400 if isinstance(error, ConfigurationError) else 502, str(error)) from error
    return {"run_id": run.run_id, "url": run.outputs[0].url}


@app.post("/flora", status_code=204)
async def call_back(request: Request) -> None:
    """Take what FLORA says of a run; whoever waits for it goes on."""
    try:
        request.state.inbox.receive(await request.body(), request.headers)
    except WebhookVerificationError as error:
        raise HTTPException(400, str(error)) from error
