"""``flora-async batch``: a file of orders in, a file of what became of them out, and what a terminal does to it."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from killing import check_billing, read_lines, said, start, write_orders
from programs import complaints_of

from flora_async.cli import main
from flora_async.sandbox import Sandbox, _media

pytestmark = pytest.mark.flora_sandbox(time_scale=0.005)


@pytest.fixture(autouse=True)
def environment(
    monkeypatch: pytest.MonkeyPatch,
    change_policies: Callable[..., None],
    change_worker_policy: Callable[..., None],
    flora_sandbox: Sandbox,
    tmp_path: Path,
) -> None:
    """Point the command at a sandbox, from a folder of its own, and have it look often."""
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", flora_sandbox.api_key)
    monkeypatch.chdir(tmp_path)
    change_policies(retry={"first_delay": 0.01}, poll={"min_delay": 0.02})
    change_worker_policy(read_interval=0.05)


@pytest.fixture
def batch(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; give what it said, once its code is the one that was expected."""

    def typed(*words: str | Path, code: int = 0) -> str:
        assert main(["batch", *map(str, words)]) == code, capsys.readouterr().err
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.out + told.err

    return typed


def test_a_file_of_orders(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """Each line of the results stands for itself, in the order of the orders; the status counts them."""
    told = batch("run", write_orders(tmp_path / "orders.jsonl", 12), "--out", "results.jsonl", "--batch", "mugs")
    assert "12 orders: 12 text: cost unknown until the first run is charged" in told
    assert "mugs: 12 of 12 done, 0 running, 0 failed, 0.12 USD" in told
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 12)
    assert lines[3]["columns"] == {"number": 3}
    assert lines[3]["run"]["outputs"][0]["type"] == "text"
    assert json.loads(batch("status"))["completed"] == 12
    assert not list(tmp_path.glob("*.part"))


def test_csv_and_what_holds_for_all_lines(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """A product list is enough."""
    (tmp_path / "products.csv").write_text("name\nmug\nlamp\n")
    flags = ("--type", "text", "--prompt", "a word on a {name}", "--workspace-id", "ws_1", "--project-id", "prj_1")
    batch("run", "products.csv", "--out", "results.jsonl", "--as-finished", *flags)
    assert {order.prompt for order in flora_sandbox.orders.values()} == {"a word on a mug", "a word on a lamp"}
    assert json.loads(batch("status"))["batch"].startswith("products-")


def test_a_dry_run_orders_nothing(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """It says what it would cost: by earlier runs, by a model's credits, or that nobody knows."""
    orders = write_orders(tmp_path / "orders.jsonl", 3)
    batch("run", orders, "--out", "results.jsonl")
    with orders.open("a") as more:
        line = {"prompt": "x", "workspace_id": "ws_1", "project_id": "prj_1"}
        more.write(json.dumps({**line, "type": "image", "model": "sandbox-image"}) + "\n")
        more.write(json.dumps({**line, "type": "video"}) + "\n")
    told = batch("run", orders, "--out", "other.jsonl", "--dry-run")
    assert "5 orders, about 0.07 USD" in told
    assert "3 text: about 0.03 USD, as 3 earlier runs here" in told
    assert "1 image by sandbox-image: about 0.04 USD, by the catalogue, 0.04 to 0.16" in told
    assert "1 video: cost unknown until the first run is charged" in told
    assert flora_sandbox.accepted == 3
    assert not (tmp_path / "other.jsonl").exists()


def test_bad_lines_are_told_before_anything_is_paid(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """With their numbers; the first twenty of them."""
    orders = write_orders(tmp_path / "orders.jsonl", 2)
    with orders.open("a") as more:
        more.write("nonsense\n" * 25)
    told = batch("run", orders, "--out", "results.jsonl", code=2)
    assert "orders.jsonl: nothing was ordered" in told
    assert "line 3: the line is no JSON" in told
    assert "and 5 more" in told
    assert flora_sandbox.accepted == 0


def test_the_same_command_again(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """An unfinished batch of the same orders is gone on with, not ordered twice by mistake."""
    words = ("run", write_orders(tmp_path / "orders.jsonl", 3), "--out", "results.jsonl")
    flora_sandbox.fail_next(402, times=3, method="POST")
    told = batch(*words, code=3)
    assert "stopped with 3 orders left: 402" in told
    assert "has these orders, and is not finished: `flora-async batch resume" in batch(*words, code=2)
    flora_sandbox._planned.clear()
    batch("resume")
    check_billing(flora_sandbox, read_lines(tmp_path / "results.jsonl"), 3)


def test_what_it_may_cost(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """It stops in time, with what there is in the results, and goes on when it may cost more."""
    orders = write_orders(tmp_path / "orders.jsonl", 10)
    told = batch("run", orders, "--out", "results.jsonl", "--max-cost", "0.045", code=1)
    assert "stopped with 6 orders left: the next order could cost more than --max-cost" in told
    first = [line["index"] for line in read_lines(tmp_path / "results.jsonl.part")]
    assert not (tmp_path / "results.jsonl").exists()
    assert first == sorted(first)
    assert (len(first), flora_sandbox.accepted) == (4, 4)
    batch("resume", "--max-cost", "1")
    check_billing(flora_sandbox, read_lines(tmp_path / "results.jsonl"), 10)


def test_what_failed_is_ordered_anew(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """A failed order is told with its error, and can be ordered again."""
    orders = write_orders(tmp_path / "orders.jsonl", 3)
    flora_sandbox.fail_next(400, method="POST")
    told = batch("run", orders, "--out", "results.jsonl", code=1)
    assert "3 of 3 done, 0 running, 1 failed" in told
    (refused,) = [line for line in read_lines(tmp_path / "results.jsonl") if "error" in line]
    assert (refused["state"], refused["error"]["type"], refused["error"]["status"]) == (
        "refused",
        "BadRequestError",
        400,
    )
    assert "1 orders of" in batch("retry-failed")
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 3)
    assert lines[refused["index"]]["key"] != refused["key"]


def test_outputs_are_saved_once(batch: Any, tmp_path: Path) -> None:
    """And each line says where."""
    (tmp_path / "o.csv").write_text("type,prompt,workspace_id,project_id\nimage,mug,ws_1,prj_1\ntext,mug,ws_1,prj_1\n")
    batch("run", "o.csv", "--out", "results.jsonl", "--download", "saved")
    lines = read_lines(tmp_path / "results.jsonl")
    assert sorted(Path(file) for line in lines for file in line["files"]) == sorted((tmp_path / "saved").iterdir())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "saved").iterdir()}
    assert sorted(path.suffix for path in before) == [".png", ".txt"]
    batch("resume")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "saved").iterdir()} == before
    assert read_lines(tmp_path / "results.jsonl") == lines


def test_which_batch(batch: Any, tmp_path: Path) -> None:
    """Where there are several it must be said; where there is none that is told."""
    assert "there is no batch in sqlite:///flora-batch.db" in batch("status", code=2)
    for name in ("one", "two"):
        batch("run", write_orders(tmp_path / f"{name}.jsonl", 1), "--out", f"{name}.out", "--batch", name)
    assert [status["batch"] for status in json.loads(batch("status"))["batches"]] == ["one", "two"]
    assert json.loads(batch("status", "--batch", "two"))["batch"] == "two"
    assert "which batch? --batch ID; there are: one, two" in batch("resume", code=2)
    assert "there is no batch 'three'" in batch("status", "--batch", "three", code=2)
    assert "there is no batch 'three'" in batch("resume", "--batch", "three", code=2)


def test_a_worker_joins(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """It ends with the batch; whoever writes the results finds all of them."""
    flora_sandbox.fail_next(402, times=3, method="POST")
    batch("run", write_orders(tmp_path / "orders.jsonl", 3), "--out", "results.jsonl", code=3)
    assert "stopped with 3 orders left" in batch("worker", "--executor", "two", code=3)
    flora_sandbox._planned.clear()
    batch("resume", "--executor", "one")
    assert "3 of 3 done" in batch("worker", "--executor", "two")
    check_billing(flora_sandbox, read_lines(tmp_path / "results.jsonl"), 3)
    for name in ("reassign", "adopt"):
        assert "0 orders of one are left" in batch(name, "--executor", "one")


def test_the_orders_of_a_lost_executor_are_taken_over(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """It is named, and no command is needed."""
    flora_sandbox.fail_next(402, times=3, method="POST")
    batch("run", write_orders(tmp_path / "orders.jsonl", 3), "--out", "results.jsonl", code=3)
    with closing(sqlite3.connect(tmp_path / "flora-batch.db")) as database, database:
        database.execute("UPDATE flora_orders SET state = 'sending', sent = unixepoch(), owner = 'dead/1'")
    flora_sandbox._planned.clear()
    told = batch("resume")
    assert "dead is gone; its orders are taken over within seconds" in told
    assert "3 of 3 done" in told


def test_life_with_batches(batch: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """List, cancel, skip, continue, delete."""
    flora_sandbox.fail_next(402, times=9, method="POST")
    batch("run", write_orders(tmp_path / "orders.jsonl", 3), "--out", "results.jsonl", "--batch", "mugs", code=3)
    flora_sandbox._planned.clear()
    assert "no more orders are sent" in batch("cancel")
    assert json.loads(batch("list"))["batches"][0]["stopped"] == "cancelled"
    assert "mugs: 2 of 2 orders are skipped" in batch("skip", "0", "2")
    assert "3 of 3 done, 0 running, 0 failed, 2 skipped" in batch("resume")
    assert [line["state"] for line in read_lines(tmp_path / "results.jsonl")] == ["skipped", "completed", "skipped"]
    assert "mugs is deleted" in batch("delete")
    assert json.loads(batch("list")) == {"batches": []}


def test_results_on_stdout(batch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dash is standard output; nothing else is printed there."""
    orders = write_orders(tmp_path / "orders.jsonl", 2)
    assert main(["batch", "run", str(orders), "--out", "-"]) == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [0, 1]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("orders.jsonl", "would replace orders.jsonl"),
        ("link.jsonl", "is a link"),
        ("folder", "is a folder"),
        ("/dev/null", "is a device"),
        ("no/such/x.jsonl", "there is no folder"),
        ("flora-batch.db", "would replace flora-batch.db"),
    ],
)
def test_an_output_that_would_destroy_something(
    batch: Any, flora_sandbox: Sandbox, tmp_path: Path, out: str, words: str
) -> None:
    """It is refused before anything is stored or ordered."""
    text = write_orders(tmp_path / "orders.jsonl", 2).read_text()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "target")
    assert words in batch("run", "orders.jsonl", "--out", out, code=2)
    assert (tmp_path / "orders.jsonl").read_text() == text
    assert flora_sandbox.accepted == 0
    assert not (tmp_path / "flora-batch.db").exists()


def test_outputs_that_cannot_be_saved(batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says why, and the exit code is not 0; a folder that cannot be one is refused before."""
    orders = write_orders(tmp_path / "orders.jsonl", 1)
    folder = "orders.jsonl is not a folder"
    orders.write_text('{"type":"image","prompt":"x","workspace_id":"ws_1","project_id":"prj_1"}')
    assert folder in batch("run", orders, "--out", "r", "--download", "orders.jsonl", code=2)
    with monkeypatch.context() as patch:
        patch.setattr(_media, "render", None)  # the host of the outputs answers 500
        assert "were not saved" in batch("run", orders, "--out", "r", "--download", "saved", code=1)
    assert "500" in read_lines(tmp_path / "r")[0]["download_error"]
    batch("resume")
    (line,) = read_lines(tmp_path / "r")
    assert Path(line["files"][0]).exists()
    assert "download_error" not in line


def test_files_of_runs_with_similar_ids(batch: Any, tmp_path: Path) -> None:
    """Files are known by their recorded paths: another run's are neither taken nor deleted."""
    (tmp_path / "saved").mkdir()
    foreign = tmp_path / "saved" / "run_a_b.png"
    foreign.write_text("not ours")
    (tmp_path / "o.csv").write_text("type,prompt,workspace_id,project_id\nimage,mug,ws_1,prj_1\n")
    batch("run", "o.csv", "--out", "r", "--download", "saved")
    assert foreign.read_text() == "not ours"
    assert read_lines(tmp_path / "r")[0]["files"] != [str(foreign)]


def test_ctrl_c(flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """It tells how to go on, with nothing lost."""
    orders = write_orders(tmp_path / "orders.jsonl", 40)
    process = start(tmp_path, flora_sandbox, "run", orders, "--out", "r.jsonl", "--concurrency", "5", "--batch", "mugs")
    deadline = time.monotonic() + 60
    while flora_sandbox.accepted < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    told = said(tmp_path)
    assert "flora-async batch resume --database sqlite:///flora-batch.db --batch mugs" in told
    assert "may have been accepted" not in told, "the database knows each key"
    assert "Traceback" not in told
    assert not (tmp_path / "r.jsonl").exists()


@pytest.mark.proof
@pytest.mark.parametrize(
    "account", [pytest.param("replay", marks=pytest.mark.flora_sandbox(idempotency="replay")), "reject"]
)
def test_killed_between_acceptance_and_record(
    batch: Any, flora_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account: str
) -> None:
    """The sandbox kills whoever has ordered the second run, before it answers: that run is found, not ordered again."""
    orders = write_orders(tmp_path / "orders.jsonl", 3)
    words = ("run", orders, "--out", "results.jsonl", "--batch", "mugs", "--concurrency", "1")
    runs = flora_sandbox._runs
    add = runs.add

    def kill(run: Any) -> None:
        add(run)
        if len(runs) == 2:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    monkeypatch.setattr(runs, "add", kill)
    process = start(tmp_path, flora_sandbox, *words)
    assert process.wait(60) == -signal.SIGKILL
    batch("resume", "--concurrency", "1")
    lines = read_lines(tmp_path / "results.jsonl")
    check_billing(flora_sandbox, lines, 3)
    assert {line["state"] for line in lines} == {"completed"}


def test_without_the_extra() -> None:
    """One sentence that mends it."""
    blocked = "import sys; sys.modules['sqlalchemy'] = None; "
    program = f"{blocked}from flora_async.cli import main; sys.exit(main(['batch', 'status']))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 2
    said = "flora-async: durable batches need SQLAlchemy: pip install 'flora-async[durable]'\n"
    assert complaints_of(ended.stderr) == said
