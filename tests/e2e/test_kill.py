"""Batches that are killed: with SIGKILL at any moment, on SQLite and on PostgreSQL."""

import json
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killing import check_billing, read_lines, said, start, write_orders
from postgres import cluster

from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.proof

KILLS = 20


def killed_often(folder: Path, sandbox: Sandbox, seed: int) -> None:
    """Run 200 orders; kill the process at 20 random moments, and start it again each time."""
    dice = random.Random(seed)
    orders = write_orders(folder / "orders.jsonl", 200)
    first: tuple[str | Path, ...] = ("run", orders, "--out", "results.jsonl", "--batch", "mugs")
    words = first
    for _ in range(KILLS):
        enough = sandbox.accepted + dice.randint(0, 4)
        process = start(folder, sandbox, *words, "--concurrency", "5")
        wait_until(partial(has_accepted, sandbox, enough))
        time.sleep(dice.uniform(0, 1))
        process.kill()
        process.wait()
        words = ("resume",) if sandbox.accepted else first
    assert 0 < sandbox.accepted < 200, "the kills came too early or too late to prove anything"
    assert not (folder / "results.jsonl").exists()
    process = start(folder, sandbox, *words)
    assert process.wait(300) in (0, 1), said(folder)


def has_accepted(sandbox: Sandbox, enough: int) -> bool:
    """Say whether so many orders were accepted."""
    return sandbox.accepted >= enough


def wait_until(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.01)


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


def write_mixed_orders(path: Path, count: int) -> Path:
    """Write generations, techniques and actions by turns, as JSON Lines."""
    place: dict[str, Any] = {"workspace_id": "ws_1", "project_id": "prj_1"}
    lines: list[dict[str, Any]] = []
    for words in (f"mug {number}" for number in range(count)):
        makers: tuple[dict[str, Any], ...] = (
            {"type": "text", "prompt": words, **place},
            {"technique_id": "tech_poster", "inputs": {"subject": words}, "workspace_id": "ws_1"},
            {"action_id": "concat-text", "inputs": [{"type": "text", "text": words}], **place},
        )
        lines.append(makers[len(lines) % 3])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words_of(order: dict[str, Any]) -> str:
    """Return the words by which an order is told from others."""
    inputs = order.get("inputs")
    if inputs is None:
        return str(order["prompt"])
    return str(inputs[0]["text"] if isinstance(inputs, list) else inputs["subject"])


@pytest.mark.parametrize(
    "account",
    [
        pytest.param("replay", marks=pytest.mark.flora_sandbox(idempotency="replay", time_scale=0.02)),
        pytest.param("reject", marks=pytest.mark.flora_sandbox(idempotency="reject", time_scale=0.02)),
    ],
)
def test_a_batch_of_all_kinds_that_is_killed(tmp_path: Path, flora_sandbox: Sandbox, account: str) -> None:
    """300 generations, techniques and actions, ten kills: each ends once, with its own run, and is billed once."""
    dice = random.Random(3)
    orders = write_mixed_orders(tmp_path / "orders.jsonl", 300)
    first: tuple[str | Path, ...] = ("run", orders, "--out", "results.jsonl", "--batch", "mixed")
    words = first
    for _ in range(10):
        enough = flora_sandbox.accepted + dice.randint(1, 20)
        process = start(tmp_path, flora_sandbox, *words, "--concurrency", "10")
        wait_until(partial(has_accepted, flora_sandbox, enough))
        time.sleep(dice.uniform(0, 0.5))
        process.kill()
        process.wait()
        words = ("resume",)
    assert 0 < flora_sandbox.accepted < 300, "the kills came too early or too late to prove anything"
    process = start(tmp_path, flora_sandbox, *words)
    assert process.wait(300) in (0, 1), said(tmp_path)
    lines = read_lines(tmp_path / "results.jsonl")
    assert [line["index"] for line in lines] == list(range(300))
    billed = {run_id: order.to_dict() for run_id, order in flora_sandbox.orders.items()}
    billed |= {run_id: order.to_dict() for run_id, order in flora_sandbox.technique_and_action_orders.items()}
    assert sorted(map(words_of, billed.values())) == sorted(f"mug {number}" for number in range(300))
    assert flora_sandbox.accepted == 300
    states = {"completed"} if account == "replay" else {"completed", "unknown"}
    assert {line["state"] for line in lines} <= states
    for line in lines:
        if line["state"] == "completed":
            assert words_of(billed[line["run"]["run_id"]]) == words_of(line["order"])
        else:
            assert line["error"]["accepted"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """Give a PostgreSQL database."""
    with cluster() as url:
        yield url


@pytest.mark.parametrize(
    "account",
    [
        pytest.param("replay", marks=pytest.mark.flora_sandbox(idempotency="replay", time_scale=0.02)),
        pytest.param("reject", marks=pytest.mark.flora_sandbox(idempotency="reject", time_scale=0.02)),
    ],
)
def test_three_workers_of_which_one_is_lost(
    tmp_path: Path, flora_sandbox: Sandbox, database: str, account: str
) -> None:
    """1,000 runs on PostgreSQL; the lost worker's are taken over, and the other two finish all, billed once each."""
    name = f"mugs-{account}"
    where = ("--batch", name, "--database", database, "--concurrency", "60")
    orders = write_orders(tmp_path / "orders.jsonl", 1000)
    processes = [start(tmp_path, flora_sandbox, "run", orders, "--out", "results.jsonl", *where, "--executor", "one")]
    wait_until(lambda: flora_sandbox.accepted > 0)
    processes += [start(tmp_path, flora_sandbox, "worker", *where, "--executor", name) for name in ("two", "three")]
    wait_until(lambda: flora_sandbox.accepted > 400)
    lost = processes.pop()
    lost.kill()
    lost.wait()
    before = flora_sandbox.accepted
    for process in processes:
        assert process.wait(300) in (0, 1), said(tmp_path)
    assert before < 1000
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 1000)
    unknown = sum(line["state"] != "completed" for line in lines)
    assert unknown <= (0 if account == "replay" else 60)  # creates that were out as it was killed


@pytest.mark.flora_sandbox(time_scale=0.001)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_hundred_thousand_orders(
    tmp_path: Path, flora_sandbox: Sandbox, kind: str, request: pytest.FixtureRequest
) -> None:
    """The first goes out within 10 seconds, and never is more than 200 MB of memory used."""
    url = "sqlite:///many.db" if kind == "sqlite" else request.getfixturevalue("database")
    orders = write_orders(tmp_path / "orders.jsonl", 100_000)
    words = ("run", orders, "--out", "results.jsonl", "--database", url, "--batch", "many")
    began = time.monotonic()
    process = start(tmp_path, flora_sandbox, *words, dev=False)
    try:
        wait_until(lambda: flora_sandbox.accepted > 0)
        first = time.monotonic() - began
        wait_until(lambda: flora_sandbox.accepted > 3000)
        status = Path(f"/proc/{process.pid}/status").read_text()
    finally:
        process.kill()
        process.wait()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    assert first <= 10
    assert peak <= 200


@pytest.mark.flora_sandbox(time_scale=0.05, charge_delay=20, quote_factor=3.5, idempotency="replay")
def test_attempts_outlive_kills(tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """A batch whose runs fail is killed at random moments: each order has its four attempts, none lost or repeated."""
    dice = random.Random(5)
    line = '{"type":"text","prompt":"%d [fail:MODEL_TIMEOUT]","workspace_id":"ws_1","project_id":"prj_1"}\n'
    orders = tmp_path / "orders.jsonl"
    orders.write_text("".join(line % number for number in range(30)))
    first: tuple[str | Path, ...] = ("run", orders, "--out", "results.jsonl", "--batch", "mugs", "--retry-failed", "3")
    words = first
    kills = 0
    while flora_sandbox.accepted < 100 and kills < KILLS:
        enough = flora_sandbox.accepted + dice.randint(1, 12)
        process = start(tmp_path, flora_sandbox, *words, "--concurrency", "5")
        wait_until(partial(has_accepted, flora_sandbox, enough))
        process.kill()
        process.wait()
        words, kills = ("resume",), kills + 1
    assert kills > 5
    assert start(tmp_path, flora_sandbox, *words).wait(300) == 1, said(tmp_path)
    lines = read_lines(tmp_path / "results.jsonl")
    assert [(line["state"], len(line["attempts"])) for line in lines] == [("failed", 3)] * 30
    assert flora_sandbox.accepted == 120
    runs = {attempt["run_id"] for line in lines for attempt in (*line["attempts"], line["error"])}
    assert runs == set(flora_sandbox.orders)
