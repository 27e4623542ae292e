"""Measure requests and lag of waiting with the real poller, other schedules and the offline optimum.

Everything runs in virtual time against a simulated FLORA (``simulation.py``): durations, estimates, progress bars and
limits are assumptions, the same for all contestants. Prints tables; writes both files ``results/polling.*``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray

from benchmarks.polling.simulation import POLL_SECONDS, Simulated, SimulatedFlora, run_virtually, started
from flora_async._polling.poller import Poller

REQUEST_WORTH = 0.25
"""Seconds of lag that one request is worth."""
TYPICAL = {"text": 3.0, "audio": 6.0, "image": 10.0, "video": 110.0}
USUAL = {"text": 3.0, "audio": 6.0, "image": 8.0, "video": 60.0}
"""Default durations of the client, in seconds."""
SCENARIOS = [
    (kind, estimate, bar)
    for kind in ("image", "video")
    for estimate, bar in (
        *(("accurate", "none"), ("accurate", "linear"), ("typical", "none"), ("typical", "step")),
        *(("typical", "fake"), ("typical", "linear"), ("low2x", "none"), ("high2x", "none")),
        *(("null", "none"), ("null", "linear"), ("adversarial", "none"), ("adversarial", "stuck99")),
    )
]

Delays = Callable[[], Iterator[float]]


def durations(kind: str, chance: random.Random) -> tuple[float, float]:
    """Return random queue and work times of a run, in seconds."""
    normal = chance.gauss(0, 1)
    if kind == "mixed":
        kind = chance.choices(("image", "video", "audio", "text"), (60, 25, 10, 5))[0]
    if kind == "video":
        works = 110 * math.exp(0.6 * normal) * (3 if chance.random() < 0.05 else 1)
        return (20 * math.exp(0.8 * chance.gauss(0, 1)) if chance.random() < 0.15 else chance.expovariate(0.5)), works
    median, spread, queue = {"text": (3, 0.6, 0.3), "audio": (6, 0.5, 0.5), "image": (10, 0.5, 1.0)}[kind]
    return chance.expovariate(1 / queue), median * math.exp(spread * normal)


def estimated(model: str, kind: str, works: float, chance: random.Random) -> float | None:
    """Return the simulated estimate for a work time."""
    spread = works * chance.uniform(0.8, 1.2)
    guesses: dict[str, float | None] = {
        "accurate": spread,
        "low2x": spread / 2,
        "high2x": spread * 2,
        "typical": TYPICAL[kind],
        "null": None,
        "adversarial": chance.choice((0.0, 1.0, 3600.0, works * 10, works / 10)),
    }
    return guesses[model]


# -- one run at a time


async def _one(run: Simulated, estimate: float | None) -> tuple[float, float]:
    flora = SimulatedFlora()
    flora.add(run)
    poller = Poller(flora.operations())
    await poller.add_waiter(poller.track(started(run, estimate), None), deadline=math.inf)
    return flora.requests, asyncio.get_running_loop().time() - run.ends


def ours(kind: str, estimate: str, bar: str, count: int) -> list[tuple[float, float]]:
    """Wait for *count* runs separately with the real poller. Return requests and lag of each."""

    async def main() -> list[tuple[float, float]]:
        chance = random.Random(f"{kind} {estimate}")
        waits = []
        for number in range(count):
            queues, works = durations(kind, chance)
            guess = estimated(estimate, kind, works, chance)
            run = Simulated(f"run_{number}", 0.0, queues, works, bar=bar, estimate=guess)
            waits.append(_one(run, guess or USUAL[kind]))
        return await asyncio.gather(*waits)

    return run_virtually(main())


def others(kind: str, delays: Delays, count: int) -> list[tuple[float, float]]:
    """Wait for the same runs with a schedule that ignores estimates and progress."""
    chance = random.Random(f"{kind} typical")
    seen: list[tuple[float, float]] = []
    for _ in range(count):
        queues, works = durations(kind, chance)
        estimated("typical", kind, works, chance)
        now, requests = 0.0, 0
        for delay in delays():
            now += delay
            requests += 1
            done = now + POLL_SECONDS / 2 >= queues + works
            now += POLL_SECONDS
            if done:
                break
        seen.append((requests, now - queues - works))
    return seen


def every(seconds: float) -> Delays:
    """Return delays of a fixed interval."""

    def delays() -> Iterator[float]:
        while True:
            yield seconds

    return delays


def around(seconds: float, spread: float) -> Delays:
    """Return delays of an interval with jitter."""

    def delays() -> Iterator[float]:
        while True:
            yield random.uniform(seconds - spread, seconds + spread)

    return delays


def growing(first: float, cap: float) -> Delays:
    """Return delays that double up to a cap, with full jitter."""

    def delays() -> Iterator[float]:
        delay = first
        while True:
            yield random.uniform(0, delay)
            delay = min(cap, 2 * delay)

    return delays


OTHERS: dict[str, Delays] = {
    "every 0.1 s (fal)": every(0.1),
    "every 0.5 s (replicate)": every(0.5),
    "every 1 s (openai)": every(1.0),
    "every 2 s": every(2.0),
    "every 5 s": every(5.0),
    "6 s +- 1.5 (runway)": around(6.0, 1.5),
    "1 to 30 s, doubling, full jitter": growing(1.0, 30.0),
}


def optimum(kind: str, estimate: str) -> float:
    """Return the lowest cost of a schedule that knows the distribution of durations, but sees no progress."""
    chance = random.Random(f"law of {kind} {estimate}")
    drawn: list[tuple[float, float, float]] = []
    for _ in range(6000):
        queues, works = durations(kind, chance)
        drawn.append((estimated(estimate, kind, works, chance) or 0.0, queues, works))
    if estimate in ("accurate", "low2x", "high2x"):
        drawn.sort()
        bins = [drawn[at : at + 500] for at in range(0, 6000, 500)]
    else:
        bins = [drawn]
    total = 0.0
    for each in bins:
        middle = statistics.median(guess for guess, _, _ in each)
        scaled = len(bins) > 1
        ends = sorted(queues + works * (middle / guess if scaled else 1) for guess, queues, works in each)
        total += _least_cost(np.array(ends)) * len(each)
    return total / len(drawn)


def _least_cost(ends: NDArray[np.float64]) -> float:
    """Return the lowest cost of polls on a grid of times, by dynamic programming from the last end."""
    count = len(ends)
    grid = np.unique(np.concatenate([[0.0], np.quantile(ends, np.linspace(0, 1, 320)), np.linspace(0, ends[-1], 200)]))
    below = np.searchsorted(ends, grid, side="right")
    sums = np.concatenate([[0.0], np.cumsum(ends)])[below]
    cost = np.zeros(len(grid))
    for at in range(len(grid) - 2, -1, -1):
        later = slice(at + 1, None)
        lag = grid[later] * (below[later] - below[at]) - (sums[later] - sums[at])
        cost[at] = np.min(REQUEST_WORTH * (count - below[at]) + lag + cost[later])
    return float(cost[0] / count + POLL_SECONDS / 2)


def singles(count: int) -> dict[str, Any]:
    """Compare the poller with the other schedules over the scenarios."""
    best = {pair: optimum(*pair) for pair in {(kind, estimate) for kind, estimate, _ in SCENARIOS}}

    def score(results: dict[tuple[str, str, str], list[tuple[float, float]]]) -> tuple[float, float]:
        ratios = [
            statistics.fmean(lag + REQUEST_WORTH * requests for requests, lag in seen) / best[kind, estimate]
            for (kind, estimate, _), seen in results.items()
        ]
        return statistics.geometric_mean(ratios), max(ratios)

    table: dict[str, Any] = {}
    real = {scenario: ours(*scenario, count) for scenario in SCENARIOS}
    table["flora-async"] = {
        "score": score(real),
        "points": _points({kind: real[kind, "typical", "none"] for kind in TYPES}),
    }
    table["flora-async, progress seen"] = {"points": _points({kind: real[kind, "typical", "linear"] for kind in TYPES})}
    for name, delays in OTHERS.items():
        seen = {kind: others(kind, delays, count) for kind in TYPES}
        results = {scenario: seen[scenario[0]] for scenario in SCENARIOS}
        table[name] = {"score": score(results), "points": _points(seen)}
    print(f"\none run at a time, {count} runs a scenario: lag + {REQUEST_WORTH} s x requests, relative to the optimum")
    print(f"{'':34} {'mean':>6} {'worst':>6} {'image: requests @ lag (p99)':>29} {'video: requests @ lag (p99)':>29}")
    for name, row in table.items():
        mean, worst = row.get("score", (math.nan, math.nan))
        points = [row["points"][kind] for kind in TYPES]
        cells = "".join(f"{requests:14.1f} @ {lag:5.2f} ({late:5.2f})" for requests, lag, late in points)
        print(f"{name:34} {mean:6.2f} {worst:6.2f} {cells}")
    costs = ", ".join(f"{best[kind, 'typical']:.2f} s for {kind}s" for kind in TYPES)
    print(f"the optimum itself, the estimate being the model's average: {costs}")
    return table


TYPES = ("image", "video")


def _points(seen: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[float, float, float]]:
    """Return mean requests, mean lag and p99 lag by type."""
    return {
        kind: (
            statistics.fmean(requests for requests, _ in each),
            statistics.fmean(lag for _, lag in each),
            sorted(lag for _, lag in each)[int(0.99 * (len(each) - 1))],
        )
        for kind, each in seen.items()
    }


# -- many runs


async def crowd(
    count: int, kind: str, over: float, limit: float | None, foreign: int, *, pages: bool, trial: int = 0
) -> dict[str, Any]:
    """Wait for many runs started within *over* seconds, with *foreign* other runs between two of them."""
    chance = random.Random(f"{count} {kind} {trial}")
    flora = SimulatedFlora(limit=limit)
    poller = Poller(flora.operations(pages=pages))
    loop = asyncio.get_running_loop()
    lags: list[float] = []

    async def one(run: Simulated, estimate: float) -> None:
        seen = await poller.add_waiter(poller.track(started(run, estimate), None), deadline=math.inf)
        assert seen is not None
        assert seen.run_id == run.run_id
        lags.append(loop.time() - run.ends)

    waiting = []
    for number, begins in enumerate(sorted(chance.uniform(0, over) for _ in range(count))):
        await asyncio.sleep(begins - loop.time())
        queues, works = durations(kind, chance)
        run = Simulated(f"run_{number}", loop.time(), queues, works)
        flora.add(run)
        waiting.append(asyncio.create_task(one(run, works * math.exp(0.3 * chance.gauss(0, 1)))))
        for other in range(foreign):
            flora.add(Simulated(f"run_{number}_{other}", loop.time(), 0.0, 10.0))
    await asyncio.gather(*waiting)
    lags.sort()
    seconds: dict[int, int] = {}
    for when in flora.times:
        seconds[int(when)] = seconds.get(int(when), 0) + 1
    return {
        "requests per run": flora.requests / count,
        "mean lag": statistics.fmean(lags),
        "p99 lag": lags[int(0.99 * (count - 1))],
        "429s": flora.refused,
        "peak per second": max(seconds.values()),
        "lost": count - len(lags),
    }


CROWDS: list[tuple[str, int, str, float, float | None, int]] = [
    ("1 image", 1, "image", 1.0, None, 0),
    ("2 images", 2, "image", 1.0, None, 0),
    ("10 mixed", 10, "mixed", 120.0, None, 0),
    ("100 images, burst", 100, "image", 5.0, None, 0),
    ("100 images, burst, 4 foreign each", 100, "image", 5.0, None, 4),
    ("1,000 images, burst", 1000, "image", 5.0, None, 0),
    ("1,000 images, burst, limit 10/s", 1000, "image", 5.0, 10.0, 0),
    ("1,000 images, burst, limit 10/s, 4 foreign", 1000, "image", 5.0, 10.0, 4),
    ("1,000 mixed, limit 10/s", 1000, "mixed", 120.0, 10.0, 0),
    ("10,000 images, burst, limit 10/s", 10_000, "image", 5.0, 10.0, 0),
    ("10,000 mixed, limit 10/s", 10_000, "mixed", 120.0, 10.0, 0),
]


def crowds(*, quick: bool) -> dict[str, Any]:
    """Compare reading pages with asking for each run."""
    table: dict[str, Any] = {}
    print(
        f"\nmany runs{'':37} {'requests/run':>12} {'mean lag':>9} {'p99 lag':>8} {'429s':>5} {'peak/s':>6} {'lost':>4}"
    )
    for name, count, kind, over, limit, foreign in CROWDS:
        for pages in (True, False):
            if (quick and count > 1000) or (not pages and count > 1000):
                continue
            label = name if pages else f"  {name}, run by run"
            trials = 1 if count > 10 else 40 if quick else 200
            each = [
                run_virtually(crowd(count, kind, over, limit, foreign, pages=pages, trial=trial))
                for trial in range(trials)
            ]
            row = table[label] = {what: statistics.fmean(one[what] for one in each) for what in each[0]}
            print(
                f"{label:48} {row['requests per run']:10.2f} {row['mean lag']:9.2f} {row['p99 lag']:8.2f}"
                f" {row['429s']:5.0f} {row['peak per second']:6.0f} {row['lost']:4.0f}",
                flush=True,
            )
    return table


def draw(table: dict[str, Any], path: Path) -> None:
    """Draw requests against lag."""
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True)
    for axis, kind in zip(axes, TYPES, strict=True):
        for name, row in table.items():
            requests, lag, _ = row["points"][kind]
            mine = name.startswith("flora-async")
            axis.scatter([requests], [lag], s=90 if mine else 40, color="#c2185b" if mine else "#607d8b", zorder=3)
            below = name in ("every 5 s", "flora-async, progress seen")
            place = (6, -13) if below else (6, 6)
            axis.annotate(name, (requests, lag), xytext=place, textcoords="offset points", fontsize=8)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_title(f"one {kind}, FLORA's estimate being the model's average")
        axis.set_xlabel("requests a run")
        axis.set_ylabel("seconds from the end of the run until it is known")
        axis.grid(alpha=0.25, which="both")
        axis.margins(0.2)
        for each in (axis.xaxis, axis.yaxis):
            each.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            each.set_major_formatter(ticker.FormatStrFormatter("%g"))
            each.set_minor_formatter(ticker.NullFormatter())
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    quick = parser.parse_args().quick
    results = Path(__file__).parents[1] / "results"
    single = singles(80 if quick else 400)
    many = crowds(quick=quick)
    if not quick:
        draw(single, results / "polling.png")
        (results / "polling.json").write_text(json.dumps({"single": single, "many": many}, indent=1) + "\n")


if __name__ == "__main__":
    main()
