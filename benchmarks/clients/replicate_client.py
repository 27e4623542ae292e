"""replicate's own transport, with its retries, under FLORA's models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import replicate

from benchmarks.clients.httpx_pydantic import Page, Run, StartedRun

IMPORTS = "replicate"


def decode_page(body: bytes) -> Page:
    import json

    return Page(**json.loads(body))


class Contestant:
    def __init__(self, client: replicate.Client) -> None:
        self._client = client

    async def retrieve(self, run_id: str) -> Run:
        return Run(**(await self._client._async_request("GET", f"/runs/{run_id}")).json())

    async def create(self, prompt: str) -> str:
        order = {"type": "image", "prompt": prompt, "workspace_id": "ws_bench", "project_id": "prj_bench"}
        return StartedRun(**(await self._client._async_request("POST", "/generate", json=order)).json()).run_id

    async def history(self) -> int:
        items = 0
        cursor: str | None = ""
        while cursor is not None:
            query = {"limit": "100", "cursor": cursor} if cursor else {"limit": "100"}
            page = Page(**(await self._client._async_request("GET", "/generations", params=query)).json())
            for _ in page.generations:
                items += 1
            cursor = page.meta.next_cursor
        return items


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    yield Contestant(replicate.Client(api_token="bench", base_url=base_url))
