"""elevenlabs: ``create_and_wait``, which polls every 3 seconds and up to 20 % later, or as the server asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from elevenlabs import AsyncElevenLabs
from elevenlabs.types import ImageGenerationRequest_BytedanceSeedream5Lite

from benchmarks.clients import order

IMPORTS = "elevenlabs"
API = "elevenlabs"


class Contestant:
    def __init__(self, client: AsyncElevenLabs) -> None:
        self._client = client

    async def await_run(self, number: int) -> object:
        request = ImageGenerationRequest_BytedanceSeedream5Lite(prompt=order(number)["prompt"], seed=number)
        return await self._client.flows.image.create_and_wait(request=request)


@asynccontextmanager
async def connect(base_url: str) -> AsyncIterator[Contestant]:
    yield Contestant(AsyncElevenLabs(api_key="bench", base_url=base_url))
