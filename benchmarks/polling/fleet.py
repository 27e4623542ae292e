"""Simulate many clients that share the rate limit of one workspace, and do not know each other.

Each client has a real rate limiter and a real poller. It keeps several images in flight: it creates a run, waits for
its end and creates the next. Together they ask for more than the limit allows, and each client asks for more than its
share: a client is measured by the number of its accepted requests. The first five minutes count separately.

    python -m benchmarks.polling.fleet --limits 10 --seeds 20 --write
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import platform
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.polling.simulation import Simulated, SimulatedFlora, run_virtually, started
from flora_async import RateLimitError
from flora_async._http.rate_limit import RateLimiter, RateLimitPolicy
from flora_async._http.retry import RetryPolicy
from flora_async._polling.poller import Poller

CREATE_SECONDS = 0.3
WARM_UP = 300.0
MEASURED = 900.0
CLIENTS = (2, 5, 20, 50, 100, 200)
RESULTS = Path(__file__).parents[1] / "results"
BOUNDS = {"use of the limit": min, "fairness": min, "least share": min, "429s for an accepted request": max}
"""Figures with a worst value, which is their lowest or highest."""


class Client:
    """One client of the fleet: its limiter, its poller and the number of its accepted requests."""

    def __init__(self, flora: SimulatedFlora, number: int) -> None:
        self.number = number
        self._flora = flora
        self.limiter = RateLimiter(RateLimitPolicy(), RetryPolicy())
        self._poller = Poller(flora.operations(limiter=self.limiter))
        self.lags: list[tuple[float, float]] = []
        self.created: list[tuple[float, int]] = []
        """Time and refusals of each create."""

    async def create(self, run_id: str, chance: random.Random) -> Simulated:
        """Create a run. A refused create is sent again in its turn."""
        loop, lane = asyncio.get_running_loop(), self.limiter.calls
        began, refusals = loop.time(), 0
        while True:
            sent = loop.time() if lane.try_acquire(loop.time()) else await lane.acquire(began)
            try:
                await self._flora.request(self.limiter, lane, sent, CREATE_SECONDS)
            except RateLimitError:
                refusals += 1
                continue
            self.created.append((loop.time(), refusals))
            run = Simulated(run_id, loop.time(), chance.expovariate(1), 10 * math.exp(0.5 * chance.gauss(0, 1)))
            self._flora.add(run)
            return run

    async def work(self, slot: int, chance: random.Random) -> None:
        """Create runs and wait for them, one after another."""
        loop, count = asyncio.get_running_loop(), 0
        while True:
            run = await self.create(f"run_{self.number}_{slot}_{count}", chance)
            estimate = (run.ends - run.began) * math.exp(0.3 * chance.gauss(0, 1))
            await self._poller.add_waiter(self._poller.track(started(run, estimate), None), deadline=math.inf)
            self.lags.append((loop.time(), loop.time() - run.ends))
            count += 1


def jain(counts: Sequence[float]) -> float:
    """Return Jain's index of fairness: 1 if all are equal."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


async def fleet(clients: int, limit: float, seed: int, measured: float = MEASURED) -> dict[str, float]:
    """Run one fleet. Return its figures after the warm-up."""
    flora = SimulatedFlora(limit=limit, seed=seed)
    members = [Client(flora, number) for number in range(clients)]
    chance = random.Random(seed)
    tasks = [
        asyncio.create_task(member.work(slot, random.Random(chance.random())))
        for member in members
        for slot in range(max(5, round(12 * limit / clients)))
    ]
    await asyncio.sleep(WARM_UP)
    early = flora.refused, sum(flora.accepted.values())
    before = [flora.accepted[member.limiter] for member in members]
    await asyncio.sleep(measured)
    counts = [flora.accepted[member.limiter] - was for member, was in zip(members, before, strict=True)]
    refused = flora.refused - early[0]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    lags = [lag for member in members for when, lag in member.lags if when > WARM_UP]
    refusals = [count for member in members for when, count in member.created if when > WARM_UP]
    return {
        "use of the limit": sum(counts) / measured / limit,
        "fairness": jain(counts),
        "least share": min(counts) / (sum(counts) / clients),
        "429s for an accepted request": refused / sum(counts),
        "429s in the first five minutes": early[0] / early[1],
        "creates refused three times": sum(count >= 3 for count in refusals) / len(refusals),
        "mean lag": statistics.fmean(lags) if lags else math.nan,
        "runs": len(lags),
    }


def write(rows: dict[str, Any]) -> None:
    """Save the measured fleets beside those of earlier commands, as data and as a table."""
    path = RESULTS / "fleet.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    saved = {name: saved[name] for name in saved if name not in rows} | rows
    path.write_text(json.dumps(saved, indent=1) + "\n")
    first = next(iter(saved.values()))
    lines = [
        "# Fleets",
        "",
        f"Python {first['python']}, {first['machine']}, virtual time: {MEASURED:g} seconds after {WARM_UP:g}.",
        "Medians over all seeds, in brackets the worst seed.",
        "",
        f"| clients, limit a second | seeds | {' | '.join(BOUNDS)} | 429s in the first five minutes | lag in seconds |",
        f"{'| --- ' * (len(BOUNDS) + 4)}|",
    ]
    for name in sorted(saved, key=lambda name: (saved[name]["limit"], saved[name]["clients"])):
        each, worst = saved[name]["seeds"], saved[name]["worst"]
        median = {figure: statistics.median(row[figure] for row in each) for figure in each[0]}
        cells = [f"{median[figure]:.3f} ({worst[figure]:.3f})" for figure in BOUNDS]
        early = f"{median['429s in the first five minutes']:.2f}"
        lines.append(f"| {name} | {len(each)} | {' | '.join(cells)} | {early} | {median['mean lag']:.1f} |")
    (RESULTS / "fleet.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Print a table: the median over all seeds, and the worst of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--limits", type=float, nargs="+", default=(10.0, 50.0), help="requests a second")
    parser.add_argument("--write", action="store_true", help="save each fleet in results/fleet.json and fleet.md")
    options = parser.parse_args()
    for limit in options.limits:
        for clients in options.clients:
            each = [run_virtually(fleet(clients, limit, seed)) for seed in range(options.seeds)]
            worst = {name: choose(row[name] for row in each) for name, choose in BOUNDS.items()}
            cells = (
                f"{name} {statistics.median(row[name] for row in each):.3f} ({worst[name]:.3f})" for name in BOUNDS
            )
            print(f"{clients} clients, {limit:g} a second: {', '.join(cells)}", flush=True)
            if options.write:
                row = {
                    "clients": clients,
                    "limit": limit,
                    "command": f"python -m benchmarks.polling.fleet {' '.join(sys.argv[1:])}",
                    "python": platform.python_version(),
                    "machine": f"{platform.machine()} {platform.system()}",
                    "worst": worst,
                    "seeds": each,
                }
                write({f"{clients}, {limit:g}": row})


if __name__ == "__main__":
    main()
