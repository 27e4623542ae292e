"""Batches that are killed: with SIGKILL at any moment, on SQLite and on PostgreSQL."""

import random
import time
from pathlib import Path

import pytest
from killing import check_billing, read_lines, said, start, write_orders

from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.proof

KILLS = 20


def killed_often(folder: Path, sandbox: Sandbox, seed: int) -> None:
    """Run 200 orders; kill the process at 20 random moments, and start it again each time."""
    dice = random.Random(seed)
    orders = write_orders(folder / "orders.jsonl", 200)
    first = ("run", orders, "--out", "results.jsonl", "--batch", "mugs", "--concurrency", "20")
    words: tuple[str | Path, ...] = first
    for _ in range(KILLS):
        process = start(folder, sandbox, *words)
        time.sleep(dice.uniform(0.8, 3.5))
        process.kill()
        process.wait()
        words = ("resume", "--concurrency", "20") if sandbox.accepted else first
    assert 0 < sandbox.accepted < 200, "the kills came too early or too late to prove anything"
    assert not (folder / "results.jsonl").exists()
    process = start(folder, sandbox, *words)
    assert process.wait(300) in (0, 1), said(folder)


@pytest.mark.flora_sandbox(idempotency="replay", time_scale=0.02)
def test_killed_twenty_times_where_flora_replays(tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """All 200 finish, billed once each, and stand in the results once each."""
    killed_often(tmp_path, flora_sandbox, 1)
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 200)
    assert {line["state"] for line in lines} == {"completed"}


@pytest.mark.flora_sandbox(idempotency="reject", time_scale=0.02)
def test_killed_twenty_times_where_flora_rejects(tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """Billed once each; each ends as its own run, or as unknown with its key and the runs that it could be."""
    killed_often(tmp_path, flora_sandbox, 2)
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 200)
    assert {line["state"] for line in lines} <= {"completed", "unknown"}
    for line in lines:
        if line["state"] == "unknown":
            assert line["key"].startswith("mugs.")
            assert line["error"]["accepted"]
            assert any(
                flora_sandbox.orders[run].prompt == line["order"]["prompt"] for run in line["error"]["candidates"]
            )
