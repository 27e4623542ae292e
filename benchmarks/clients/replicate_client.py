"""replicate's own transport, with its retries, under FLORA's models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import replicate

from benchmarks.clients import PagedHistory, order, page_query
from benchmarks.clients.httpx_pydantic import Page, Run, StartedRun

IMPORTS = "replicate"
API = "replicate"


def decode_page(body: bytes) -> Page:
    import json

    return Page(**json.loads(body))


class Contestant(PagedHistory):
    def __init__(self, client: replicate.Client) -> None:
        self._client = client

    async def retrieve(self, run_id: str) -> Run:
        return Run(**(await self._client._async_request("GET", f"/runs/{run_id}")).json())

    async def create(self, number: int) -> str:
        response = await self._client._async_request("POST", "/generate", json=order(number))
        return StartedRun(**response.json()).run_id

    async def await_run(self, number: int) -> object:
        prediction = await self._client.models.predictions.async_create(("bench", "model"), input=order(number))
        await prediction.async_wait()
        return prediction.output

    async def page(self, cursor: str | None) -> Page:
        return Page(**(await self._client._async_request("GET", "/generations", params=page_query(cursor))).json())


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    yield Contestant(replicate.Client(api_token="bench", base_url=base_url))
