"""runwayml: the Stainless runtime, and a waiter that polls every 6 seconds, give or take 1.5."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runwayml import AsyncRunwayML

from benchmarks.clients import order, stainless

IMPORTS = "runwayml"
API = "runway"

RUNTIME = stainless.Runtime("runwayml")
decode_page = RUNTIME.decode_page


class Contestant(stainless.Contestant):
    async def await_run(self, number: int) -> object:
        prompt = order(number)["prompt"]
        create = self.client.text_to_image.create
        task = await create(model="gen4_image", prompt_text=prompt, ratio="1920:1080", seed=number)
        return await task.wait_for_task_output()


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    async with AsyncRunwayML(api_key="bench", base_url=base_url) as client:
        yield Contestant(client, RUNTIME)
