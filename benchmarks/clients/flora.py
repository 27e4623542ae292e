"""flora-async, as its README shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from benchmarks.clients import order
from flora_async import Flora, GenerationPage, Run, StartedRun

IMPORTS = "flora_async"
API = "flora"

decode_page = msgspec.json.Decoder(GenerationPage).decode


class Contestant:
    def __init__(self, flora: Flora) -> None:
        self._flora = flora

    async def retrieve(self, run_id: str) -> Run:
        return await self._flora.generations.retrieve(run_id)

    async def create(self, number: int, **fields: str) -> StartedRun:
        return await self._flora.generations.create(**order(number, **fields))

    async def history(self) -> int:
        items = 0
        async for _ in self._flora.generations.list(limit=100):
            items += 1
        return items

    async def wait(self, run: str | StartedRun) -> Run:
        return await self._flora.wait_for_run(run)

    async def await_run(self, number: int) -> object:
        return await self.wait(await self.create(number))


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    # The other clients compare no order with its model.
    async with Flora("sk_live_bench", base_url=base_url, check_params="off") as flora:
        yield Contestant(flora)
