"""The history since the last night, in SQLite; it can be killed at any moment: ``python nightly.py history.db``."""

import asyncio
import json
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

from flora_async import Flora

MARGIN = timedelta(days=2)
"""Runs that had not finished on the last night are read again."""


async def main(file: str) -> None:
    """Store each run under its id. The new starting point is stored when all pages are."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE IF NOT EXISTS runs (run_id TEXT PRIMARY KEY, status TEXT, record TEXT)")
        database.execute("CREATE TABLE IF NOT EXISTS nights (began TEXT)")
        (last,) = database.execute("SELECT max(began) FROM nights").fetchone()
        began = datetime.now(UTC)
        since = None if last is None else datetime.fromisoformat(last) - MARGIN
        async with Flora() as flora:
            async for page in flora.generations.list(since=since).pages():
                rows = [(run.run_id, run.status, json.dumps(run.to_dict())) for run in page.generations]
                with database:
                    database.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
        with database:
            database.execute("INSERT INTO nights VALUES (?)", [began.isoformat()])
        (number,) = database.execute("SELECT count(*) FROM runs").fetchone()
        print(number, "runs")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
