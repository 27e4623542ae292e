"""openai: the Stainless runtime, and a waiter that polls every second unless the server asks otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openai import AsyncOpenAI

from benchmarks.clients import order, stainless

IMPORTS = "openai"
API = "openai"

RUNTIME = stainless.Runtime("openai")
decode_page = RUNTIME.decode_page


class Contestant(stainless.Contestant):
    async def await_run(self, number: int) -> object:
        return await self.client.videos.create_and_poll(model="sora-2", prompt=order(number)["prompt"], seconds="4")


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    async with AsyncOpenAI(api_key="bench", base_url=base_url) as client:
        yield Contestant(client, RUNTIME)
