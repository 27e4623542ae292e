"""Money at scale: a budget with low quotes over twenty seeds, and the costs of a million runs (marker ``proof``)."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import backoff
import pytest
from aiohttp import web
from postgres import cluster

from flora_async import Budget, Flora, GenerationType, Order
from flora_async.durable import Batches
from flora_async.sandbox import Sandbox
from flora_async.sandbox._runs import USD

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

BUDGET, SHARE, FACTOR = 5.0, 1.5, 3.5


def orders(chance: random.Random, name: str) -> list[Order]:
    """Return a hundred orders of mixed types, of which some fail."""
    kinds: list[GenerationType] = ["text", "audio", "image", "image", "image", "video"]
    failures = ["", "", "", "", " [fail:SERVER_ERROR]", " [fail:SAFETY_BLOCKED]"]
    return [
        Order(
            type=chance.choice(kinds),
            prompt=f"{name} {number}{chance.choice(failures)}",
            workspace_id="ws_1",
            project_id="prj_1",
        )
        for number in range(100)
    ]


async def spend(seed: int, url: str) -> tuple[float, Budget, int]:
    """Spend a budget by three iterators and one durable batch. Return the charges by the sandbox's own count."""
    chance = random.Random(seed)
    async with Sandbox(time_scale=0.02, quote_factor=FACTOR, charge_delay=chance.uniform(0, 60)) as sandbox:
        budget = Budget(BUDGET)
        poll = lambda: backoff.expo(base=1, factor=0.05)  # noqa: E731
        async with (
            Flora(sandbox.api_key, base_url=sandbox.base_url, poll=poll) as flora,
            Batches(flora, database=url, poll=poll) as batches,
        ):

            async def read(name: str) -> None:
                wanted = flora.generate_many(orders(chance, name), budget=budget, concurrency=16, retry_failed=1)
                async for _ in wanted:
                    await asyncio.sleep(0.001)

            batch = batches[f"seed-{seed}"].run(
                orders(chance, "durable"), max_cost=SHARE, budget=budget, retry_failed=1
            )
            await asyncio.gather(*(read(f"iterator {n}") for n in range(3)), batch)
            while budget.unsettled:
                await asyncio.sleep(0.05)
        billed = sum(
            USD[order.type]
            for order in sandbox.orders.values()
            if isinstance(order, Order) and "[fail" not in order.prompt
        )
        return billed, budget, sandbox.accepted


async def test_a_budget_with_low_quotes(tmp_path: Path, change_worker_policy: Callable[..., None]) -> None:
    """Quotes are too low by 3.5 and charges late: no seed exceeds the budget by more than its dearest first order."""
    change_worker_policy(read_interval=0.02)
    charged: list[float] = []
    for seed in range(20):
        billed, budget, creates = await spend(seed, f"sqlite:///{tmp_path}/{seed}.db")
        charged.append(billed)
        assert budget.spent == pytest.approx(billed)
        line = f"seed {seed:2}: {creates:4} creates, {billed:.2f} USD of {BUDGET:.2f}, over by {billed - BUDGET:+.2f}"
        sys.stdout.write(f"\n{line}")
    worst = max(charged) - BUDGET
    sys.stdout.write(f"\nworst: {worst:+.2f} USD, least used: {min(charged):.2f} USD\n")
    assert worst <= USD["video"] + 1e-9  # the documented bound
    assert min(charged) > 0.8 * BUDGET


async def test_a_batch_on_postgresql() -> None:
    """Limits, shares, late charges and attempts are the same on PostgreSQL as on SQLite."""
    texts = [Order(type="text", prompt=f"mug {n}", workspace_id="ws_1", project_id="prj_1") for n in range(60)]
    failing = [
        Order(type="text", prompt=f"[fail:{code}] {n}", workspace_id="ws_1", project_id="prj_1")
        for code in ("MODEL_TIMEOUT", "SAFETY_BLOCKED")
        for n in range(5)
    ]
    with cluster() as url:
        async with (
            Sandbox(time_scale=0.005, quote_factor=FACTOR, charge_delay=20) as sandbox,
            Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
            Batches(flora, database=url, poll=lambda: backoff.expo(base=1, factor=0.02)) as batches,
        ):
            budget = Budget(1.0)
            batch = batches["mugs"]
            status = await batch.run([*texts, *failing], retry_failed=2, max_cost=0.3, budget=budget)
            assert (status.completed, status.stopped, sandbox.accepted) == (30, "max_cost", 30)
            assert budget.spent == budget.expected == pytest.approx(0.3)
            status = await batch.resume(max_cost=1.0)
            assert (status.completed, status.failed) == (60, 10)
            attempts = [len(outcome.attempts) async for outcome in batch.results()]
            assert attempts == [0] * 60 + [2] * 5 + [0] * 5
            assert sandbox.accepted == 60 + 15 + 5
            (history,) = (await batches.past_costs()).values()
            assert (history.runs, history.low, history.high) == (60, 0.01, 0.01)


ITEM = (
    '{"run_id":"run_%d","generation_id":"run_%d","status":"completed","progress":100,"created_at":%d,'
    '"started_at":1790000000000,"completed_at":1790000000000,"charged_cost":0.01,"project_id":"prj_%d",'
    '"workspace_id":"ws_1","model":{"model_id":"m_%d"},"outputs":[{"output_id":"output_1","type":"imageUrl",'
    '"url":"https://media.flora.ai/node-inputs/2026-11-25/anonymous/%d.png"}]}'
)

PROGRAM = """
import asyncio, sys
from pathlib import Path
from flora_async import Flora
async def main():
    async with Flora("sk_1", base_url=sys.argv[1]) as flora:
        table = await flora.costs(by="project")
    print(table.total.runs, round(table.total.charged, 2), len(table.rows),
          Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
async def test_the_costs_of_a_million_runs() -> None:
    """Ten thousand pages over HTTP, in a process of its own whose whole memory stays below 200 MB."""
    total = 1_000_000

    async def page(request: web.Request) -> web.Response:
        first = int(request.query.get("cursor", "0"))
        rows = ",".join(
            ITEM % (n, n, 1_790_000_000_000 - n, n % 50, n % 7, n) for n in range(first, min(total, first + 100))
        )
        cursor = f'"{first + 100}"' if first + 100 < total else "null"
        body = f'{{"generations":[{rows}],"meta":{{"next_cursor":{cursor}}}}}'
        return web.Response(text=body, content_type="application/json")

    app = web.Application()
    app.add_routes([web.get("/api/v1/generations", page)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/api/v1"
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PROGRAM, url, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    await runner.cleanup()
    runs, charged, rows, kib = map(float, output.split())
    sys.stdout.write(f"\n{runs:,.0f} runs in {time.monotonic() - began:.0f} s, {kib / 1024:.0f} MiB at most\n")
    assert (runs, charged, rows) == (total, 10_000, 50)
    assert kib * 1024 < 200e6
