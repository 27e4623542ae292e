"""Keep the history of a key in a folder of Parquet files, one more each night, and show what it cost by model.

Run it by cron, with ``pip install 'flora-async[export]' polars``: ``python nightly_parquet.py history/``. Each night
takes what was created since two days before the newest run of the nights before, so that runs which had not finished
are told again. A night that was interrupted is gone on with, since its file has the next number until it is whole.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from pathlib import Path

import polars

from flora_async import Flora
from flora_async.export import ExportResult, to_parquet

AGAIN = timedelta(days=2)


def nights(folder: Path) -> list[Path]:
    """List the files, newest first."""
    return sorted(folder.glob("*.parquet"), reverse=True)


def history(folder: Path) -> polars.LazyFrame:
    """Give every run once, as it was last told."""
    files = polars.concat([polars.scan_parquet(path) for path in nights(folder)])
    return files.unique("run_id", keep="first", maintain_order=True)


async def sync(folder: Path) -> ExportResult:
    """Add a file with what is new."""
    done = nights(folder)
    newest = history(folder).select(polars.max("created")).collect().item() if done else None
    async with Flora() as flora:
        return await to_parquet(
            flora.generations.list(limit=100),
            folder / f"{len(done):06}.parquet",
            since=newest - AGAIN if newest else None,
        )


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "history")
    where.mkdir(parents=True, exist_ok=True)
    exported = asyncio.run(sync(where))
    print(exported.path, exported.rows, "runs,", exported.broken, "unreadable")
    costs = history(where).group_by("model_id").agg(polars.len().alias("runs"), polars.sum("charged_cost"))
    print(costs.sort("model_id").collect())
