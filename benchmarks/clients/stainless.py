"""A Stainless client in Python: runwayml, whose ``get(cast_to=)`` and ``post(cast_to=)`` reach any API."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runwayml import AsyncRunwayML
from runwayml._base_client import make_request_options
from runwayml._models import BaseModel, construct_type

IMPORTS = "runwayml"


class Output(BaseModel):
    output_id: str
    type: str
    url: str


class Model(BaseModel):
    model_id: str | None = None


class Run(BaseModel):
    run_id: str
    status: str
    progress: float
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    charged_cost: float | None = None
    outputs: list[Output] | None = None
    error_code: str | None = None
    error_message: str | None = None
    poll_url: str | None = None


class Generation(Run):
    generation_id: str
    project_id: str
    workspace_id: str
    model: Model | None = None


class Meta(BaseModel):
    next_cursor: str | None = None
    total_estimate: float | None = None


class Page(BaseModel):
    generations: list[Generation]
    meta: Meta


class StartedRun(BaseModel):
    run_id: str
    type: str
    charged_cost: float
    estimated_seconds: float | None = None
    poll_url: str | None = None
    project_id: str | None = None
    model: Model | None = None


def decode_page(body: bytes) -> object:
    return construct_type(value=json.loads(body), type_=Page)


class Contestant:
    def __init__(self, client: AsyncRunwayML) -> None:
        self._client = client

    async def retrieve(self, run_id: str) -> Run:
        return await self._client.get(f"/runs/{run_id}", cast_to=Run)

    async def create(self, prompt: str) -> str:
        order = {"type": "image", "prompt": prompt, "workspace_id": "ws_bench", "project_id": "prj_bench"}
        options = make_request_options(extra_headers={"Idempotency-Key": str(uuid.uuid4())})
        return (await self._client.post("/generate", body=order, options=options, cast_to=StartedRun)).run_id

    async def history(self) -> int:
        items = 0
        cursor: str | None = ""
        while cursor is not None:
            query = {"limit": "100", "cursor": cursor} if cursor else {"limit": "100"}
            options = make_request_options(query=query)
            page = await self._client.get("/generations", options=options, cast_to=Page)
            for _ in page.generations:
                items += 1
            cursor = page.meta.next_cursor
        return items


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    async with AsyncRunwayML(api_key="bench", base_url=base_url) as client:
        yield Contestant(client)
