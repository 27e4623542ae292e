"""The floor: aiohttp and msgspec by hand, with a timeout and a check of the status, without retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec

from benchmarks.clients import PagedHistory, order, page_query

IMPORTS = "aiohttp"
API = "flora"
POLL_INTERVAL = 2.0
"""Seconds between polls: the shortest that FLORA advises."""


class Output(msgspec.Struct):
    output_id: str
    type: str
    url: str


class Model(msgspec.Struct):
    model_id: str | None = None


class Run(msgspec.Struct):
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


class Generation(Run, kw_only=True):
    generation_id: str
    project_id: str
    workspace_id: str
    model: Model | None = None


class Meta(msgspec.Struct):
    next_cursor: str | None = None
    total_estimate: float | None = None


class Page(msgspec.Struct):
    generations: list[Generation]
    meta: Meta


class StartedRun(msgspec.Struct):
    run_id: str
    type: str
    charged_cost: float
    estimated_seconds: float | None = None
    poll_url: str | None = None
    project_id: str | None = None
    model: Model | None = None


_run = msgspec.json.Decoder(Run)
_page = msgspec.json.Decoder(Page)
_started = msgspec.json.Decoder(StartedRun)
_encode = msgspec.json.Encoder().encode
decode_page = _page.decode


class Contestant(PagedHistory):
    def __init__(self, base_url: str, session: aiohttp.ClientSession) -> None:
        self._base_url = base_url
        self._session = session

    async def retrieve(self, run_id: str) -> Run:
        async with self._session.get(f"{self._base_url}/runs/{run_id}") as response:
            response.raise_for_status()
            return _run.decode(await response.read())

    async def create(self, number: int, **fields: str) -> str:
        async with self._session.post(f"{self._base_url}/generate", data=_encode(order(number, **fields))) as response:
            response.raise_for_status()
            return _started.decode(await response.read()).run_id

    async def wait(self, run_id: str) -> Run:
        while (run := await self.retrieve(run_id)).status not in ("completed", "failed"):  # noqa: ASYNC110 - polls
            await asyncio.sleep(POLL_INTERVAL)
        return run

    async def await_run(self, number: int) -> object:
        return await self.wait(await self.create(number))

    async def page(self, cursor: str | None) -> Page:
        async with self._session.get(f"{self._base_url}/generations", params=page_query(cursor)) as response:
            response.raise_for_status()
            return _page.decode(await response.read())


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    headers = {"Authorization": "Bearer sk_live_bench", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=60),
    ) as session:
        yield Contestant(base_url, session)
