"""A CSV of prompts into a CSV of results, within 5 USD: ``python prompts.py prompts.csv results.csv``."""

import asyncio
import csv
import sys
from pathlib import Path

from flora_async import Flora, Order
from flora_async.durable import Batch, Batches


async def show_progress(batch: Batch) -> None:
    """Draw a bar until it is cancelled."""
    while True:
        await asyncio.sleep(0.2)
        status = await batch.status()
        share = int(40 * status.completed / (status.total or 1))
        print(f"\r[{'#' * share:40}] {status.completed} of {status.total}", end="", file=sys.stderr)


async def main(source: Path, target: Path) -> None:
    """Order each prompt once, whatever ends the program, and join the results with the rows."""
    with source.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    orders = [Order(type="text", prompt=row["prompt"], workspace_id="ws_demo", project_id="prj_demo") for row in rows]
    async with Flora() as flora, Batches(flora, database="sqlite:///prompts.db", concurrency=50) as batches:
        batch = batches[source.stem]
        bar = asyncio.create_task(show_progress(batch))
        try:
            status = await batch.run(orders, max_cost=5.00, retry_failed=1)
        except asyncio.CancelledError:
            left = await batch.status()
            print(f"\n{left.running} runs go on at FLORA; start again to collect them", file=sys.stderr)
            raise
        finally:
            bar.cancel()
        with target.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([*rows[0], "run_id", "result"])
            async for outcome in batch.results():
                row = rows[outcome.index]
                result = outcome.run.outputs[0].url if outcome.run else outcome.error
                table.writerow([*row.values(), outcome.run_id, result])
    print(status.completed, "of", status.total, "for", status.cost, "USD")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
