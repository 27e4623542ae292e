"""``flora-async models check``, ``models stubs`` and ``--check-params``."""

import json
from pathlib import Path
from typing import Any

import pytest

from flora_async.cli import main
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.flora_sandbox(time_scale=0.005)

PLACE = {"workspace_id": "ws_1", "project_id": "prj_1"}
GOOD = {"type": "text", "prompt": "a word", "model": "sandbox-text", "params": {"seed": 1}, **PLACE}
BAD = {**GOOD, "params": {"sed": 1}}
FLAGS = ("--type", "image", "--prompt", "a mug", "--workspace-id", "ws_1", "--project-id", "prj_1")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """Point the command at a sandbox, from a folder of its own."""
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", flora_sandbox.api_key)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command; return its stdout and stderr, once its code is the expected one."""

    def typed(*words: str | Path, code: int = 0) -> tuple[str, str]:
        assert main([*map(str, words)]) == code, capsys.readouterr().err
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return told.out, told.err

    return typed


def write(path: Path, *orders: object) -> Path:
    """Write a file of orders."""
    path.write_text("".join(json.dumps(order) + "\n" for order in orders))
    return path


def test_a_file_is_checked_line_by_line(command: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """Each wrong line is named with its sentence; nothing is ordered, and places are not needed."""
    path = write(tmp_path / "orders.jsonl", GOOD, BAD, {"model": "sandbox-image", "params": {"style": "blod"}}, [1])
    told, _ = command("models", "check", path, "--type", "image", code=1)
    faults = json.loads(told)["faults"]
    assert [fault["line"] for fault in faults] == [2, 3, 4]
    assert "did you mean 'seed'" in faults[0]["message"]
    assert "did you mean 'bold'" in faults[1]["message"]
    assert flora_sandbox.accepted == 0
    assert json.loads(command("models", "check", write(tmp_path / "good.jsonl", GOOD))[0]) == {"faults": []}
    assert flora_sandbox.requests["GET /models"] == 2


@pytest.mark.parametrize("text", ["", '{"type": "text"}', "\n\n", "type,prompt\n,\n"])
def test_a_file_without_orders_is_not_right(command: Any, tmp_path: Path, text: str) -> None:
    """A file in which no order was found, like JSON Lines under the name of a CSV file, is a usage error."""
    (tmp_path / "orders.csv").write_text(text)
    assert "orders.csv: there are no orders" in command("models", "check", tmp_path / "orders.csv", code=2)[1]


def test_parameters_are_checked_for_a_model(command: Any) -> None:
    """The faults have the name of the parameter; an unknown model and missing arguments are usage errors."""
    told, _ = command("models", "check", "--model", "sandbox-image", "--params", "seed=-1", "--params", "x=1", code=1)
    assert [fault["field"] for fault in json.loads(told)["faults"]] == ["seed", "x"]
    told, _ = command("models", "check", "--model", "sandbox-image", "--type", "video", code=1)
    assert "makes image, not video" in json.loads(told)["faults"][0]["message"]
    assert "flora-async models" in command("models", "check", "--model", "sandbox-imaeg", code=2)[1]
    assert "name a file of orders, or --model" in command("models", "check", code=2)[1]


def test_stubs_are_printed(command: Any) -> None:
    """The module has a type for each model of the sandbox, and the list of models is printed as before."""
    told, _ = command("models", "stubs")
    assert "class SandboxImageParams(TypedDict):" in told
    compile(told, "flora_models.py", "exec")
    assert json.loads(command("models", "--type", "text")[0])["models"][0]["model_id"] == "sandbox-text"


def test_a_create_is_refused_unless_it_says_otherwise(command: Any, flora_sandbox: Sandbox) -> None:
    """The refusal is a usage error, of a dry run too; ``off`` and ``warn`` order it."""
    create = ("generations", "create", *FLAGS, "--model", "sandbox-image", "--params", "sede=7")
    assert "did you mean 'seed'" in command(*create, code=2)[1]
    assert flora_sandbox.accepted == 0
    assert "did you mean 'seed'" in command(*create, "--dry-run", code=2)[1]
    for mode in ("off", "warn"):
        command(*create, "--check-params", mode, "--dry-run")
    assert flora_sandbox.accepted == 0
    for mode in ("off", "warn"):
        command(*create, "--check-params", mode)
    assert flora_sandbox.accepted == 2


def test_a_batch_is_refused_by_its_lines(command: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """Wrong lines refuse the file before a batch exists; ``warn`` prints each sentence once and orders all."""
    path = write(tmp_path / "orders.jsonl", GOOD, BAD, {**BAD, "prompt": "another"})
    _, told = command("batch", "run", path, "--out", "results.jsonl", code=2)
    assert "line 2: params['sed'] (1 given)" in told
    assert "line 3: " in told
    assert flora_sandbox.accepted == 0
    assert not Path("flora-batch.db").exists()
    _, told = command("batch", "run", path, "--out", "results.jsonl", "--check-params", "warn")
    assert told.count("did you mean 'seed'") == 1
    assert flora_sandbox.accepted == 3


def test_a_list_that_cannot_be_read_refuses_no_batch(command: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """The command says that nothing is compared, and orders."""
    flora_sandbox.fail_next(403, times=2, path="/models")
    path = write(tmp_path / "orders.jsonl", BAD)
    _, told = command("batch", "run", path, "--out", "results.jsonl")
    assert "orders are not compared with their models" in told
    assert flora_sandbox.accepted == 1
