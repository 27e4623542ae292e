"""fal-client: ``subscribe``, which polls every 0.1 seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fal_client import client as fal

from benchmarks.clients import order

IMPORTS = "fal_client"
API = "fal"


class Contestant:
    def __init__(self) -> None:
        self._client = fal.AsyncClient(key="bench")

    async def await_run(self, number: int) -> object:
        return await self._client.subscribe("bench/model", order(number))


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    fal.QUEUE_URL_FORMAT = f"{base_url}/"  # otherwise https, at fal's own host
    yield Contestant()
