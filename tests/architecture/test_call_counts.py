"""What a call costs, in Python's own calls above the floor's: a number that a busy machine does not change.

The difference is bounded, not the ratio: asyncio itself makes fewer calls from one Python to the next.
"""

import asyncio
import selectors
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks.clients import ORDER, floor
from benchmarks.clients import flora as ours
from flora_async import Model, ModelParam

pytestmark = pytest.mark.anyio

PAGES, ITEMS = 100, 100
LOOP = {module.__file__ for module in (asyncio.base_events, asyncio.events, asyncio.selector_events, selectors)}
"""The event loop's own files: how often it wakes depends on the machine's load."""
OF_A_RETRIEVE, OF_A_CREATE, OF_AN_ITEM, OF_A_CHECK = 21, 73, 1.4, 75


@pytest.fixture
def anyio_backend() -> str:
    """Count on asyncio's own loop, whatever the others run on: it is written in Python."""
    return "asyncio"


@pytest.fixture
def canned() -> Iterator[str]:
    """Give the base URL of the canned FLORA of the benchmarks, in a process of its own."""
    command, root = [sys.executable, "-m", "benchmarks.calls.server"], Path(floor.__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


@pytest.fixture
async def clients(canned: str) -> AsyncIterator[tuple[floor.Contestant, ours.Contestant]]:
    """Connect aiohttp by hand, and this client."""
    asyncio.get_running_loop().set_debug(False)  # which makes calls of its own
    async with floor.connect(canned) as by_hand, ours.connect(canned) as flora:
        yield by_hand, flora


async def calls(operation: Callable[[], Awaitable[object]], times: int) -> float:
    """Count the calls of Python functions that an operation makes once it is warm, aiohttp's included."""
    counted = 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event == "call" and frame.f_code.co_filename not in LOOP

    await operation()
    counts: list[int] = []
    for _ in range(times):
        counted = 0
        sys.setprofile(count)
        try:
            await operation()
        finally:
            sys.setprofile(None)
        counts.append(counted)
    return statistics.median(counts)


async def test_a_retrieve(clients: tuple[floor.Contestant, ours.Contestant]) -> None:
    """Not many more than aiohttp makes by itself."""
    by_hand, flora = clients
    base = await calls(lambda: by_hand.retrieve("run_bench"), 30)
    assert await calls(lambda: flora.retrieve("run_bench"), 30) - base <= OF_A_RETRIEVE


async def test_a_create(clients: tuple[floor.Contestant, ours.Contestant]) -> None:
    """With its checks, its key and what is remembered of it."""
    by_hand, flora = clients
    base = await calls(lambda: by_hand.create(1), 30)
    assert await calls(lambda: flora.create(1), 30) - base <= OF_A_CREATE


async def test_a_checked_create(clients: tuple[floor.Contestant, ours.Contestant]) -> None:
    """The comparison with a model of twelve parameters, whose declaration is there, adds a bounded number of calls."""
    _, flora = clients
    types = {str: "string", int: "int", float: "float", dict: "dict"}
    known = [ModelParam(name=name, type=types[type(value)]) for name, value in ORDER["params"].items()]
    more = [ModelParam(name=f"more_{number}", type="int", default=1) for number in range(12 - len(known))]
    model = Model(model_id=ORDER["model"], name="M", type=ORDER["type"], params=(*known, *more))
    flora._flora.models._catalog.store((model,))
    base = await calls(lambda: flora.create(1), 30)
    assert await calls(lambda: flora.create(1, check_params="refuse"), 30) - base <= OF_A_CHECK


async def test_an_item_of_the_history(clients: tuple[floor.Contestant, ours.Contestant]) -> None:
    """One call for each item above an iterator by hand, and some for each page."""
    by_hand, flora = clients
    base = await calls(by_hand.history, 2)
    assert await calls(flora.history, 2) - base <= PAGES * ITEMS * OF_AN_ITEM


async def test_the_count_sees_a_regression(clients: tuple[floor.Contestant, ours.Contestant]) -> None:
    """A layer that makes forty calls for each retrieve is found."""
    by_hand, flora = clients

    async def burdened() -> Any:
        for _ in range(40):
            len(str(object())), (lambda: None)()
        return await flora.retrieve("run_bench")

    base = await calls(lambda: by_hand.retrieve("run_bench"), 30)
    assert await calls(burdened, 30) - base > OF_A_RETRIEVE
