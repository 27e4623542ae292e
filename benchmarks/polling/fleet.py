"""Simulate many clients that share the rate limit of one workspace, and do not know each other.

Each client has a real rate limiter and a real poller. It keeps several images in flight: it creates a run, waits for
its end and creates the next. Together they ask for more than the limit allows. The first five minutes count separately.

    python -m benchmarks.polling.fleet --seeds 3
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
from collections.abc import Sequence

from benchmarks.polling.simulation import Simulated, SimulatedFlora, run_virtually, started
from flora_async import RateLimitError
from flora_async._http.rate_limit import RateLimiter, RateLimitPolicy
from flora_async._http.retry import RetryPolicy
from flora_async._polling.poller import Poller

CREATE_SECONDS = 0.3
WARM_UP = 300.0
MEASURED = 900.0
FLEETS = [(clients, limit) for limit in (10.0, 50.0) for clients in (2, 5, 20, 50, 100, 200)]


class Client:
    """One client of the fleet: its limiter, its poller and the number of its accepted requests."""

    def __init__(self, flora: SimulatedFlora, number: int) -> None:
        self.number = number
        self._flora = flora
        self.limiter = RateLimiter(RateLimitPolicy(), RetryPolicy())
        self._poller = Poller(flora.operations(limiter=self.limiter))
        self.lags: list[tuple[float, float]] = []

    async def create(self, run_id: str, chance: random.Random) -> Simulated:
        """Create a run. A refused create is sent again in its turn."""
        loop, lane = asyncio.get_running_loop(), self.limiter.calls
        began = loop.time()
        while True:
            sent = loop.time() if lane.try_acquire(loop.time()) else await lane.acquire(began)
            try:
                await self._flora.request(self.limiter, lane, sent, CREATE_SECONDS)
            except RateLimitError:
                continue
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
    return {
        "use of the limit": sum(counts) / measured / limit,
        "fairness": jain(counts),
        "least share": min(counts) / (sum(counts) / clients),
        "429s for an accepted request": refused / sum(counts),
        "429s in the first five minutes": early[0] / early[1],
        "mean lag": statistics.fmean(lags) if lags else math.nan,
        "runs": len(lags),
    }


def main() -> None:
    """Print a table: the mean over all seeds, and the worst fairness."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=MEASURED, help="virtual seconds after the warm-up")
    options = parser.parse_args()
    for clients, limit in FLEETS:
        rows = [run_virtually(fleet(clients, limit, seed, options.seconds)) for seed in range(options.seeds)]
        means = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
        worst = min(row["fairness"] for row in rows)
        cells = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        print(f"{clients} clients, {limit:g} a second: {cells}, worst fairness {worst:.3f}", flush=True)


if __name__ == "__main__":
    main()
