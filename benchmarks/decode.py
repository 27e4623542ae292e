"""How long it takes to read one page of the history, against decoding it without a schema.

Prints ratios within one run: each round measures all contestants, in shuffled order.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable

import msgspec

from flora_async import GenerationPage

ROUNDS = 21
CALLS = 50


def page(items: int = 100) -> bytes:
    """Give a page of the history, as FLORA sends it."""
    return json.dumps(
        {
            "generations": [
                {
                    "created_at": 1790000000000 + number,
                    "generation_id": f"run_{number:012}",
                    "progress": 100,
                    "project_id": "prj_abc123",
                    "run_id": f"run_{number:012}",
                    "status": "completed",
                    "workspace_id": "ws_abc123",
                    "charged_cost": 0.04,
                    "completed_at": 1790000012000 + number,
                    "model": {"model_id": "t2i-flux-2-pro"},
                    "outputs": [
                        {"output_id": "output_1", "type": "imageUrl", "url": f"https://media.flora.ai/{number}.png"}
                    ],
                    "poll_url": f"https://app.flora.ai/api/v1/runs/run_{number:012}",
                    "started_at": 1790000001000 + number,
                }
                for number in range(items)
            ],
            "meta": {"next_cursor": "eyJvZmZzZXQiOjEwMH0", "total_estimate": 10_000},
        }
    ).encode()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 5 if parser.parse_args().quick else ROUNDS
    body = page()
    contestants: dict[str, Callable[[bytes], object]] = {
        "flora-async (msgspec Structs)": msgspec.json.Decoder(GenerationPage).decode,
        "msgspec to dicts": msgspec.json.Decoder().decode,
        "json.loads to dicts": json.loads,
    }
    first = next(iter(contestants))
    ratios: dict[str, list[float]] = {name: [] for name in contestants}
    micros: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        spent: dict[str, float] = {}
        for name in random.sample(list(contestants), len(contestants)):
            decode = contestants[name]
            began = time.process_time()
            for _ in range(CALLS):
                decode(body)
            spent[name] = time.process_time() - began
        for name, seconds in spent.items():
            ratios[name].append(seconds / spent[first])
            micros[name].append(seconds / CALLS * 1e6)
    print(f"one page of 100 items, {len(body):,} bytes, {rounds} rounds: median [least .. most]")
    for name in contestants:
        low, middle, high = min(ratios[name]), statistics.median(ratios[name]), max(ratios[name])
        print(f"{name:30} {middle:5.2f} x [{low:.2f} .. {high:.2f}]   {statistics.median(micros[name]):7.0f} us CPU")


if __name__ == "__main__":
    main()
