"""An hour of chat, in virtual time."""

import asyncio
from pathlib import Path

import pytest
from bot import Bot

from flora_async import Flora
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.flora_sandbox(time_scale=20)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return a photo that a user has posted."""
    path = tmp_path / "fox.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    return path


async def test_a_user_leaves_and_comes_back(flora: Flora, flora_sandbox: Sandbox, photo: Path) -> None:
    """The run goes on while nobody waits."""
    bot = Bot(flora)
    assert "USD" in await bot.start("ada", photo, "the fox runs")
    waiting = asyncio.create_task(bot.wait("ada"))
    await asyncio.sleep(60)
    waiting.cancel()
    await asyncio.sleep(1800)
    assert (await bot.wait("ada")).startswith("http")
    assert flora_sandbox.accepted == 1


async def test_many_users_for_an_hour(flora: Flora, flora_sandbox: Sandbox, photo: Path) -> None:
    """Each gets a video."""
    bot = Bot(flora)
    for number in range(12):
        await bot.start(f"user {number}", photo, "the fox runs")
        await asyncio.sleep(300)
    answers = await asyncio.gather(*(bot.wait(user) for user in bot.videos))
    assert all(answer.startswith("http") for answer in answers)
    assert flora_sandbox.accepted == 12
