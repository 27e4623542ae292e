"""Nothing paid for is lost: many orders through a proxy that breaks a third of what passes it."""

import asyncio
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from chaos import Chaos, Verdict, judged

from flora_async import ActionOrder, AnyOrder, CreateOutcomeUnknownError, Flora, FloraError, Order, TechniqueOrder
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

log = logging.getLogger("chaos")

SCOPE: dict[str, Any] = {"type": "text", "workspace_id": "ws_1", "project_id": "prj_1"}
SHARE = 0.3


@pytest.fixture(autouse=True)
def quick(change_policies: Callable[..., None]) -> None:
    """Make pauses short, but longer than answers take."""
    change_policies(
        retry={"first_delay": 0.02, "resend_pause": 0.02, "resend_pause_after_timeout": 0.2},
        recovery={"pauses": (0.1, 0.1), "max_wait_for_others": 0.1},
    )


async def order_all(sandbox: Sandbox, chaos: Chaos, count: int) -> Verdict:
    """Order as a service does, 64 at a time."""
    runs: dict[str, str | None] = {}
    unknown: dict[str, CreateOutcomeUnknownError] = {}
    given_up: dict[str, float] = {}
    turns = asyncio.Semaphore(64)
    clock = asyncio.get_running_loop().time  # which the sandbox goes by, too
    unix_at_zero = time.time() - clock()
    async with Flora(sandbox.api_key, base_url=chaos.base_url, timeout=0.5) as flora:

        async def order(prompt: str) -> None:
            runs[prompt] = None
            async with turns:
                try:
                    runs[prompt] = (await flora.generations.create(prompt=prompt, **SCOPE)).run_id
                except CreateOutcomeUnknownError as error:
                    unknown[prompt], given_up[prompt] = error, unix_at_zero + clock()
                except FloraError:
                    pass

        async with asyncio.TaskGroup() as group:
            for index in range(count):
                group.create_task(order(f"order {index}"))
        # Nothing that was sent is still on its way to the sandbox when it is counted.
        await asyncio.sleep(0.5)
    became = {each.prompt: run_id for run_id, each in sandbox.orders.items()}
    created = {run_id: run.created for run_id, run in await history(sandbox)}
    for prompt, error in unknown.items():
        assert isinstance(error.order, Order)
        assert error.order.prompt == prompt
        # What the proxy holds back may arrive when nobody waits for it any more.
        if prompt in became and (at := created[became[prompt]].timestamp()) < given_up[prompt]:
            assert error.window[0] <= at <= error.window[1]
    return judged(sandbox.orders, runs, frozenset(unknown))


async def history(sandbox: Sandbox) -> list[tuple[str, Any]]:
    """Read what was made, past the proxy."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        return [(item.run_id, item) async for item in flora.generations.list(limit=100)]


@pytest.mark.parametrize("account", ["reject", "replay", "freed"])
@pytest.mark.parametrize(
    "count", [pytest.param(200, marks=pytest.mark.virtual_time), pytest.param(2000, marks=pytest.mark.proof)]
)
async def test_every_order_ends_as_one_run_or_as_one_error_that_names_it(count: int, account: Any) -> None:
    """By each account of what FLORA does with a used key; a key that a failed request frees cannot protect it."""
    freed = account == "freed"
    async with (
        Sandbox(time_scale=0.01, idempotency="reject" if freed else account) as sandbox,
        Chaos(sandbox.base_url, share=SHARE, seed=count, delay=0.4, frees_keys=freed) as chaos,
    ):
        verdict = await order_all(sandbox, chaos, count)
    log.info("used keys: %s; %s; %s", account, verdict, dict(chaos.met))
    assert (verdict.lost, verdict.anothers) == (0, 0)
    assert freed or verdict.billed_twice == 0
    assert verdict.known + verdict.unknown + verdict.refused == count
    assert verdict.known > 0  # how many depends on how busy the machine is


@pytest.mark.proof
async def test_the_same_through_the_official_client(official_client: Path) -> None:
    """For comparison: it is measured, not judged."""
    program = str(shutil.copy(Path(__file__).parents[1] / "e2e" / "orders.mjs", official_client))
    count = 2000
    async with (
        Sandbox(time_scale=0.01) as sandbox,
        Chaos(sandbox.base_url, share=SHARE, seed=count, delay=0.4) as chaos,
    ):
        process = await asyncio.create_subprocess_exec(
            *("node", program, str(count)),
            env={**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": chaos.base_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        await asyncio.sleep(0.5)
        verdict = judged(sandbox.orders, msgspec.json.decode(output, type=dict[str, str | None]))
    log.info("the official client: %s; %s", verdict, dict(chaos.met))
    assert verdict.orders == count


def technique_order(words: str) -> AnyOrder:
    """Return an order of the sandbox's technique."""
    return TechniqueOrder(technique_id="tech_poster", inputs={"subject": words}, workspace_id="ws_1")


def action_order(words: str) -> AnyOrder:
    """Return an order of the sandbox's action on texts."""
    inputs = [{"type": "text", "text": words}]
    return ActionOrder(action_id="concat-text", inputs=inputs, workspace_id="ws_1", project_id="prj_1")


def words_of(order: TechniqueOrder | ActionOrder) -> str:
    """Return the words by which an order is told from others."""
    return str(order.inputs["subject"] if isinstance(order, TechniqueOrder) else order.inputs[0]["text"])


async def judge_lost_responses(make: Callable[[str], AnyOrder], account: Any, count: int) -> Verdict:
    """Lose as many responses to creates as there are orders, and a tenth of the responses to reads."""
    async with Sandbox(time_scale=0.01, idempotency=account) as sandbox:
        path = "/runs/technique" if isinstance(make("x"), TechniqueOrder) else "/runs/action"
        sandbox.fail_next("lost_reply", times=count, method="POST", path=path)
        sandbox.fail_next("lost_reply", times=count // 10, method="GET", path="/technique-runs")
        runs: dict[str, str | None] = {}
        unknown: set[str] = set()
        turns = asyncio.Semaphore(64)
        async with Flora(sandbox.api_key, base_url=sandbox.base_url, timeout=5) as flora:

            async def order(words: str) -> None:
                runs[words] = None
                async with turns:
                    try:
                        runs[words] = (await flora.start_run(make(words))).run_id
                    except CreateOutcomeUnknownError as error:
                        assert error.order == make(words)
                        unknown.add(words)

            await asyncio.gather(*(order(f"order {number}") for number in range(count)))
        became = {
            run_id: Order(type="text", prompt=words_of(each), workspace_id="ws_1", project_id="prj_1")
            for run_id, each in sandbox.technique_and_action_orders.items()
        }
    return judged(became, runs, frozenset(unknown))


@pytest.mark.parametrize("account", ["reject", "replay"])
@pytest.mark.parametrize("make", [technique_order, action_order])
@pytest.mark.parametrize(
    "count", [pytest.param(40, marks=pytest.mark.virtual_time), pytest.param(500, marks=pytest.mark.proof)]
)
async def test_lost_responses_of_techniques_and_actions(
    make: Callable[[str], AnyOrder], account: Any, count: int
) -> None:
    """Each order ends as its one run, or as an error that names it: none is billed twice, none is lost."""
    verdict = await judge_lost_responses(make, account, count)
    log.info("%s, used keys: %s; %s", make.__name__, account, verdict)
    assert (verdict.billed_twice, verdict.lost, verdict.anothers) == (0, 0, 0)
    assert verdict.known + verdict.unknown == count
    # Where FLORA rejects used keys, orders of one technique that lose their responses at once cannot be told apart.
    assert verdict.known > 0 or account == "reject"
