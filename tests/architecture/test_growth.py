"""The measurements of growth, at their smallest sizes."""

from pathlib import Path

import pytest

from benchmarks.growth import batches, history, run, waits
from benchmarks.growth.server import serving


@pytest.mark.parametrize("collect", [True, False])
@pytest.mark.parametrize("end", waits.ENDS)
def test_waits_are_measured(end: str, collect: bool) -> None:
    """Each wait ends, and each figure of the table is there."""
    row = run.completed(waits.measure(20, end, collect))
    assert (row["mean lag, s"] is not None) is (end == "end")
    assert row["objects a wait"] > 1
    assert {name for name in run.COLUMNS["waits"] if name not in row} == ({"wait: pass, ms"} if end == "end" else set())


@pytest.mark.anyio
async def test_a_history_is_measured() -> None:
    """A walk reads all items of the server once."""
    with serving(history=1200) as base_url:
        rows = await history.walk(base_url, 1200)
    assert [row["items"] for row in rows] == [1000, 1200]
    assert set(run.COLUMNS["history"]) <= set(rows[0])


@pytest.mark.anyio
async def test_a_batch_is_measured(tmp_path: Path) -> None:
    """A batch is stored, ordered in part, and resumed."""
    database = f"sqlite:///{tmp_path}/batch.db"
    with serving() as base_url:
        row = await batches.order(base_url, database, 30, 10, seconds=20.0)
        row |= {"database": "SQLite", "orders": 30, **await batches.resume(base_url, database)}
    assert row["ordered"] >= 10
    optional = {"open, resume and first order, seconds"}
    assert set(run.COLUMNS["batches"]) - optional <= set(row)
    tables = run.report({"machine": "here", "versions": {}, "batches": {"date": "now", "rows": [row]}})
    assert "| SQLite | 30 |" in tables
