"""runwayml, on its aiohttp back end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runwayml import AsyncRunwayML, DefaultAioHttpClient

from benchmarks.clients.runwayml_client import API, RUNTIME, Contestant, decode_page

__all__ = ["API", "IMPORTS", "connect", "decode_page"]

IMPORTS = "runwayml, httpx_aiohttp"


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    async with AsyncRunwayML(api_key="bench", base_url=base_url, http_client=DefaultAioHttpClient()) as client:
        yield Contestant(client, RUNTIME)
