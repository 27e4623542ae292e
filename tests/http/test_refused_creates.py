"""Creates that FLORA refuses with a 429, while others are accepted or not."""

import asyncio
import secrets

import pytest
from aiohttp import web
from scripted import Scripted, started

from flora_async import Flora, Order, RateLimitError
from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time]

REFUSALS = 6


def order(prompt: str) -> Order:
    """Return an order of an image."""
    return Order(type="image", prompt=prompt, workspace_id="ws_1", project_id="prj_1")


async def test_an_order_is_not_given_up_while_others_are_accepted() -> None:
    """Between the refusals of one order, others are accepted. It is sent until its own turn comes."""
    refused, accepted = asyncio.Semaphore(0), asyncio.Semaphore(1)
    refusals = 0

    async def respond(request: web.Request) -> web.StreamResponse:
        nonlocal refusals
        prompt = (await request.json())["prompt"]
        if prompt == "late" and refusals < REFUSALS:
            await accepted.acquire()
            refusals += 1
            refused.release()
            headers = {"Retry-After": "1", "request-id": f"req_late_{refusals}"}
            return web.json_response({"error": {"code": "rate_limited"}}, status=429, headers=headers)
        headers = {"request-id": f"req_{secrets.token_hex(8)}"}
        return web.json_response(started(f"run_{prompt}"), status=201, headers=headers)

    async with (
        asyncio.timeout(600),
        Scripted() as scripted,
        Flora("sk_live_1", base_url=scripted.base_url) as flora,
    ):
        scripted.on("POST", "/generate", respond)
        late = asyncio.create_task(flora.generations.create(order("late")))
        for number in range(REFUSALS):
            await refused.acquire()
            other = await flora.generations.create(order(f"other_{number}"))
            assert other.run_id == f"run_other_{number}"
            accepted.release()
        assert (await late).run_id == "run_late"


@pytest.mark.parametrize(("max_retries", "posts"), [(0, 1), (2, 3)])
async def test_a_limit_that_lets_no_create_in_ends_the_retries(max_retries: int, posts: int) -> None:
    """A create is sent ``max_retries + 1`` times if no other was accepted for 30 seconds; polls do not count."""
    async with (
        Sandbox() as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=max_retries) as flora,
    ):
        waiting = asyncio.create_task(flora.generate(order("a mug [slow]")))
        while not sandbox.accepted:
            await asyncio.sleep(0.01)
        await asyncio.sleep(31)
        sandbox.fail_next(429, times=10, method="POST", retry_after=1)
        with pytest.raises(RateLimitError):
            await flora.generations.create(order("another mug"))
        await waiting
        assert sandbox.requests["POST /generate"] == 1 + posts
