"""httpx and pydantic by hand: what many a service does without an SDK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pydantic

from benchmarks.clients import PagedHistory, order, page_query

IMPORTS = "httpx, pydantic"


class Output(pydantic.BaseModel):
    output_id: str
    type: str
    url: str


class Model(pydantic.BaseModel):
    model_id: str | None = None


class Run(pydantic.BaseModel):
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


class Meta(pydantic.BaseModel):
    next_cursor: str | None = None
    total_estimate: float | None = None


class Page(pydantic.BaseModel):
    generations: list[Generation]
    meta: Meta


class StartedRun(pydantic.BaseModel):
    run_id: str
    type: str
    charged_cost: float
    estimated_seconds: float | None = None
    poll_url: str | None = None
    project_id: str | None = None
    model: Model | None = None


decode_page = Page.model_validate_json


class Contestant(PagedHistory):
    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def retrieve(self, run_id: str) -> Run:
        return Run.model_validate_json((await self._client.get(f"/runs/{run_id}")).content)

    async def create(self, number: int) -> str:
        response = await self._client.post("/generate", json=order(number))
        return StartedRun.model_validate_json(response.content).run_id

    async def page(self, cursor: str | None) -> Page:
        response = await self._client.get("/generations", params=page_query(cursor))
        return Page.model_validate_json(response.content)


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
    headers = {"Authorization": "Bearer sk_live_bench"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, limits=limits, timeout=60) as client:
        yield Contestant(client)
