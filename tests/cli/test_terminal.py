"""The command line: FLORA's own commands as its reference writes them, and what a terminal does to a command."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import complaints_of

from flora_async import errors
from flora_async.cli import main, output
from flora_async.cli.arguments import UsageError, parse_params
from flora_async.export._tables import COLUMNS
from flora_async.sandbox import Sandbox

CREATE = """flora generations create \\
  --api-key 'My API Key' \\
  --project-id prj_abc123 \\
  --prompt 'A cinematic product photo of a ceramic mug on a sunlit table' \\
  --type image \\
  --workspace-id ws_abc123"""
RETRIEVE = """flora generations retrieve \\
  --api-key 'My API Key' \\
  --run-id run_abc123"""
LIST = """flora generations list \\
  --api-key 'My API Key'"""

STARTED = {"charged_cost", "estimated_seconds", "run_id", "type"}
RUN = {"created_at", "progress", "run_id", "status"}
GENERATION = RUN | {"generation_id", "project_id", "workspace_id"}

COMMAND = (sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli")
ORDER = ("--project-id", "prj_1", "--workspace-id", "ws_1", "--type")


pytestmark = pytest.mark.flora_sandbox(any_key=True)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, change_policies: Callable[..., None], flora_sandbox: Sandbox) -> None:
    """Point the command at a sandbox, and poll it as fast as its runs go."""
    change_policies(poll={"min_delay": 0.05, "max_delay": 0.05, "not_found_grace": 0.2})
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", "sk_live_of_a_test")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line; give its code, its output as JSON, and what it told people."""

    def typed(line: str, code: int = 0) -> Any:
        assert main(shlex.split(line.replace("\\\n", " "))[1:]) == code
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        assert "sk_live" not in told.out + told.err
        typed.err = told.err  # type: ignore[attr-defined]
        return json.loads(told.out) if told.out.startswith(("{", "[")) and told.out.count("\n{") == 0 else told.out

    return typed


def test_the_commands_of_the_reference(run: Any) -> None:
    """The commands of FLORA's reference work unchanged and print its JSON."""
    started = run(CREATE)
    assert set(started) >= STARTED
    seen = run(RETRIEVE)
    assert set(seen) >= RUN
    assert seen["run_id"] == "run_abc123"
    page = run(LIST)
    assert set(page) == {"generations", "meta"}
    assert set(page["meta"]) >= {"next_cursor"} or page["meta"] == {}
    assert set(page["generations"][0]) >= GENERATION
    assert page["generations"][0]["run_id"] == started["run_id"]


def test_create_and_wait(run: Any, tmp_path: Path) -> None:
    """The finished run is printed with its progress on stderr; a repeated command keeps the saved outputs."""
    done = run(f"x generations create {' '.join(ORDER)} text --prompt 'a haiku' --params seed=7 --wait")
    assert done["status"] == "completed"
    assert f"{done['run_id']} completed 100 %" in run.err
    saved = run(f"x generations create {' '.join(ORDER)} image --prompt mug --download {tmp_path}")
    (path,) = tmp_path.iterdir()
    assert path.name == f"{saved['run_id']}_output_1.png"
    path.write_bytes(b"edited")
    assert run(f"x wait {saved['run_id']} --download {tmp_path}")["run_id"] == saved["run_id"]
    assert f"saved {path}" in run.err
    assert path.read_bytes() == b"edited"


def test_a_failed_run_is_one(run: Any) -> None:
    """A failed run exits with 1, reports its error, and its record has the advice."""
    failed = run(f"x generations create {' '.join(ORDER)} text --prompt 'a [fail:safety_blocked]' --wait", 1)
    assert "safety_blocked" in run.err
    assert "[advice: change_input]" in run.err
    assert failed["advice"] == "change_input"
    assert run(f"x wait {failed['run_id']}", 1)["advice"] == "change_input"


def test_too_late_is_four(run: Any) -> None:
    """A timeout exits with 4 and reports the run that continues."""
    run(f"x generations create {' '.join(ORDER)} text --prompt 'a [slow]' --wait --timeout 0.3", 4)
    assert "flora-async wait run_" in run.err


def test_refusals_are_three(run: Any, flora_sandbox: Sandbox) -> None:
    """An API error exits with 3 and reports its code and request id."""
    run("x generations retrieve --run-id run_none", 3)
    assert "not_found" in run.err
    assert "req_" in run.err
    flora_sandbox.fail_next(402)
    run(f"x generations create {' '.join(ORDER)} text --prompt a", 3)
    assert "insufficient_credits" in run.err


def test_no_connection_is_three(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there."""
    monkeypatch.setenv("FLORA_BASE_URL", "http://127.0.0.1:1")
    run("x workspaces", 3)
    assert "cannot connect" in run.err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("x generations retrieve --run-id nonsense", "--run-id must start with 'run_'"),
        (f"x generations create {' '.join(ORDER)} text --prompt a --params seed", "NAME=VALUE"),
        ("x generations list --limit 500", "1 to 100"),
        ("x generations list --limit 0", "1 to 100"),
    ],
)
def test_settings_are_two(run: Any, line: str, told: str) -> None:
    """One clear line."""
    run(line, 2)
    assert told in run.err


@pytest.mark.parametrize(
    "line",
    [
        "generations create --type image",
        "generations retrieve --run-id run_1 --api-kye sk_live_of_a_test",
        "generations list --status sk_live_of_a_test",
        "sk_live_of_a_test",
        "generations list --api-key",
    ],
)
def test_usage_is_two(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A usage error exits with 2 and never shows an API key."""
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(line))
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "usage: flora-async" in told
    assert "sk_live_of" not in told


def test_without_a_key(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says where to put it."""
    monkeypatch.delenv("FLORA_API_KEY")
    run("x models", 2)
    assert "FLORA_API_KEY" in run.err


def test_lists(run: Any) -> None:
    """Lists are printed as FLORA's JSON, JSON Lines, CSV and tables."""
    for number in range(5):
        run(f"x generations create {' '.join(ORDER)} text --prompt 'number {number}'")
    page = run("x generations list --limit 2")
    assert len(page["generations"]) == 2
    following = run(f"x generations list --limit 2 --cursor {page['meta']['next_cursor']}")
    assert len(following["generations"]) == 2
    everything = run("x generations list --all --limit 2 --format jsonl").splitlines()
    assert len({json.loads(line)["run_id"] for line in everything}) == 5
    rows = run("x generations list --all --format csv").splitlines()
    assert rows[0].startswith("run_id,status,progress,created")
    assert len(rows) == 6
    assert rows[0] == ",".join(COLUMNS)
    assert "charged_cost" in run("x generations list --format table --status pending --workspace-id ws_1")
    whole = run("x generations list --all --limit 2")
    assert len(whole["generations"]) == 5
    assert whole["meta"] == {"next_cursor": None}
    assert run("x generations list --all --project-id prj_none") == {"generations": [], "meta": {"next_cursor": None}}
    assert run("x generations list --format jsonl --limit 1 --project-id prj_1")["project_id"] == "prj_1"


def test_discovery(run: Any) -> None:
    """Nobody knows their ids."""
    assert run("x workspaces")["workspaces"][0]["workspace_id"] == "ws_demo"
    assert {one["project_id"] for one in run("x projects")["projects"]} == {"prj_demo", "prj_other"}
    assert [one["model_id"] for one in run("x models --type audio")["models"]] == ["sandbox-audio"]
    assert "workspace_id,name" in run("x projects --workspace-id ws_demo --format csv").replace("project_id,", "", 1)
    assert "sandbox-image" in run("x models --format table")
    assert json.loads(run("x models --format jsonl").splitlines()[0])["model_id"] == "sandbox-image"


def test_wait_and_watch(run: Any, tmp_path: Path) -> None:
    """Several at once; the worst outcome decides the code."""
    prompts = ("one", "two", "three [fail:provider_error]")
    ids = [run(f"x generations create {' '.join(ORDER)} text --prompt '{prompt}'")["run_id"] for prompt in prompts]
    lines = run(f"x wait {' '.join(ids)} --download {tmp_path}", 1).splitlines()
    assert {json.loads(line)["run_id"] for line in lines} == set(ids)
    assert len(list(tmp_path.iterdir())) == 2
    assert run(f"x wait {ids[0]}")["status"] == "completed"
    run(f"x wait {ids[0]} run_none", 3)
    assert "run_none" in run.err
    changes = run(f"x watch {ids[0]} {ids[2]}", 1).splitlines()
    assert [json.loads(line)["status"] for line in changes] == ["completed", "failed"]
    slow = run(f"x generations create {' '.join(ORDER)} text --prompt '[slow]'")["run_id"]
    run(f"x wait {slow} --timeout 0.2", 4)
    assert f"flora-async wait {slow}" in run.err


def test_parameters() -> None:
    """JSON, or names with values that are JSON or text."""
    assert parse_params(None) is None
    assert parse_params(['{"a": {"b": 1}}', "c=2", "d=true", "e=x y", 'f="2"', "c=[3]"]) == {
        "a": {"b": 1},
        "c": [3],
        "d": True,
        "e": "x y",
        "f": "2",
    }
    for wrong in ("{", "a", "=1"):
        with pytest.raises(UsageError):
            parse_params([wrong])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh", "powershell"])
def test_completion(run: Any, shell: str) -> None:
    """For the shells that people have."""
    assert "generations" in run(f"x completion {shell}")


def test_extras_that_lack(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence each, with what mends it."""
    for module, line in (("shtab", "x completion bash"), ("rich.table", "x models --format table")):
        with monkeypatch.context() as without:
            without.setitem(sys.modules, module, None)
            run(line, 2)
            assert "pip install 'flora-async[cli]'" in run.err


def begun(process: "subprocess.Popen[str]") -> str:
    """Wait until a command has told of its run; give the run's id."""
    assert process.stderr is not None
    told = process.stderr.readline()
    while told and not complaints_of(told):
        told = process.stderr.readline()
    assert "ordered" in told
    return next(word for word in told.split() if word.startswith("run_"))


def create(prompt: str) -> "subprocess.Popen[str]":
    """Begin to create and wait, as a shell does."""
    line = (*COMMAND, "generations", "create", *ORDER, "text", "--prompt", prompt, "--wait")
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, -signal.SIGTERM, "terminated")],
)
def test_interrupted_or_terminated(number: signal.Signals, code: int, word: str) -> None:
    """The code that shells know, the run that goes on, and nothing else."""
    with create("[slow]") as process:
        run_id = begun(process)
        process.send_signal(number)
        output, complaints = process.communicate(timeout=20)
    assert process.returncode == code
    assert output == ""
    assert complaints_of(complaints).splitlines() == [
        f"flora-async: {word}",
        f"flora-async: still at FLORA, wait for it again: flora-async wait {run_id}",
    ]


def test_killed() -> None:
    """SIGKILL ends the command at once; the run can be awaited again by the id reported at its start."""
    with create("a haiku") as process:
        run_id = begun(process)
        process.kill()
        output, complaints = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert output == complaints_of(complaints) == ""
    again = subprocess.run((*COMMAND, "wait", run_id), capture_output=True, text=True, timeout=30, check=True)
    assert json.loads(again.stdout)["status"] == "completed"


def test_interrupted_while_ordering(flora_sandbox: Sandbox) -> None:
    """Nobody knows yet whether the order was accepted: its key is told."""
    flora_sandbox.fail_next("hang")
    with create("a haiku") as process:
        while not flora_sandbox.requests["POST /generate"]:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=20)
    assert process.returncode == 130
    assert re.search(r"an order under idempotency key [0-9a-f-]{36} may have been accepted", complaints)


def test_piped_to_head(run: Any) -> None:
    """Nobody reads on: it ends, quietly."""
    for number in range(40):
        run(f"x generations create {' '.join(ORDER)} text --prompt 'number {number}'")
    line = (*COMMAND, "generations", "list", "--all", "--format", "jsonl", "--limit", "5")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        complaints = process.stderr.read()
        process.wait(timeout=20)
    assert process.returncode == 141
    assert complaints_of(complaints) == ""


def test_other_waits_end_without_a_word_if_nobody_reads_on(run: Any) -> None:
    """If the record of a run cannot be printed, the waits for the others are not reported as failures."""
    slow = run(f"x generations create {' '.join(ORDER)} text --prompt [slow]")["run_id"]
    line = (*COMMAND, "wait", "run_abc123", slow)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        complaints = process.stderr.read()
        process.wait(timeout=20)
    assert process.returncode == 141
    assert "client was closed" not in complaints


def test_a_word_that_is_no_id_is_not_awaited(run: Any) -> None:
    """A usage error of a wait does not advise to type the same again."""
    for command in ("wait", "watch"):
        run(f"x {command} run_abc123 nonsense", 2)
        assert "must start with 'run_'" in run.err
        assert "wait for it again" not in run.err


def test_an_address_that_shows_the_key(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the variable, and no argument of Python that the command does not have."""
    monkeypatch.setenv("FLORA_BASE_URL", "http://flora.example/api/v1")
    run("x models", 2)
    assert "FLORA_BASE_URL must be https" in run.err
    assert "allow_insecure" not in run.err


def test_narrow_encodings(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON is whole in any of them."""
    done = run(f"x generations create {' '.join(ORDER)} text --prompt 'a \N{OWL} at dawn' --wait")
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    line = (*COMMAND, "generations", "retrieve", "--run-id", done["run_id"])
    shown = subprocess.run(line, capture_output=True, timeout=30, check=True).stdout
    assert json.loads(shown)["outputs"] == done["outputs"]
    assert "\N{OWL}" in done["outputs"][0]["url"]


@pytest.mark.parametrize(("terminal", "live"), [("dumb", False), ("xterm-256color", True)])
def test_on_a_terminal(terminal: str, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dumb one gets lines, another a bar that moves."""
    monkeypatch.setenv("TERM", terminal)
    ours, theirs = pty.openpty()
    line = (*COMMAND, "generations", "create", *ORDER, "text", "--prompt", "a haiku", "--wait")
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                some = os.read(ours, 4096)
            except OSError:
                break
            if not some:
                break
            shown += some
        output, _ = process.communicate(timeout=20)
    os.close(ours)
    assert process.returncode == 0
    assert json.loads(output)["status"] == "completed"
    assert (b"\x1b[" in shown) is live
    assert b"completed" in shown
    assert b"Traceback" not in shown


MARKUP = "[bold]a[/bold] [/list] :warning: [link=https://x.example]y[/link]"


def test_nothing_of_others_is_markup(run: Any) -> None:
    """Brackets and colons of a text stay as they are in a table, and control characters steer no terminal."""
    run(f"x generations create {' '.join(ORDER)} text --prompt '{MARKUP}' --wait")
    assert MARKUP in run("x generations list --format table")
    assert "\x1b" not in "".join(output._one_line(f"a\x1b[31m\nb\u202e{MARKUP}"))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_ids_are_whole_at_any_width(width: int) -> None:
    """On a terminal a table fits its width, as long as the ids do; every id is whole."""
    widths = [24, 9, 16, 12, 8, 14, 8, 10, 200]
    shown, needed = output.fit_columns(output.TABLE_COLUMNS, widths, width)
    names = [output.TABLE_COLUMNS[number] for number in shown]
    assert {"run_id", "model_id", "project_id"} <= set(names)
    assert needed <= max(width, 24 + 14 + 8 + 3 * output.COLUMN_GAP)
    assert (width < 120) == (len(names) < 9)


def test_a_table_on_a_terminal_of_80_columns(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is longer than the terminal, each run's id is whole, and the columns left out are named."""
    ids = [
        run(f"x generations create {' '.join(ORDER)} text --prompt 'number {number} {MARKUP}' --wait")["run_id"]
        for number in range(3)
    ]
    ours, theirs = pty.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    line = (*COMMAND, "generations", "list", "--format", "table")
    with subprocess.Popen(line, stdout=theirs, stderr=subprocess.PIPE, text=True) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):
            while some := os.read(ours, 4096):
                shown += some
        _, said = process.communicate(timeout=20)
    os.close(ours)
    lines = shown.decode().splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert all(any(run_id in line for line in lines) for run_id in ids)
    assert "--format csv has all" in said


def test_csv_is_that_of_the_export(run: Any) -> None:
    """Texts that a spreadsheet would take for formulas are guarded, in the history and in lists."""
    run(f"x generations create {' '.join(ORDER)} text --model '=1+1' --prompt x --wait")
    rows = list(csv.DictReader(run("x generations list --format csv").splitlines()))
    assert rows[0]["model_id"] == "'=1+1"
    assert json.loads(rows[0]["outputs"])[0]["type"] == "text"
    assert (
        run("x projects --workspace-id ws_none --format csv")
        == "project_id,workspace_id,name,created_at,last_modified,origin\n"
    )


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf"])
def test_waits_that_cannot_be_are_refused_before_the_order(run: Any, flora_sandbox: Sandbox, timeout: str) -> None:
    """Nothing is ordered under a time-out that makes no sense."""
    run(f"x generations create {' '.join(ORDER)} text --prompt a --wait --timeout={timeout}", 2)
    assert run.err.startswith("flora-async: --timeout must be a number of seconds above 0")
    assert flora_sandbox.accepted == 0


def test_folders_that_cannot_be_are_refused_before_the_order(run: Any, flora_sandbox: Sandbox, tmp_path: Path) -> None:
    """Nothing is ordered, and no run is waited for, where no file could be saved."""
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null")):
        for line in (f"generations create {' '.join(ORDER)} text --prompt a", "wait run_abc123", "watch run_abc123"):
            run(f"x {line} --download {folder}", 2)
            assert "is not a folder" in run.err
    assert flora_sandbox.accepted == sum(flora_sandbox.requests.values()) == 0


def test_where_only_the_saving_fails(
    run: Any, flora_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was paid for: its JSON is printed, and the failure is told on stderr."""

    async def fails(*_args: object, **_settings: object) -> list[Path]:
        raise errors.DownloadError("cannot save run_1: the disk is full")

    monkeypatch.setattr("flora_async.Flora.download", fails)
    done = run(f"x generations create {' '.join(ORDER)} image --prompt a --download {tmp_path}", 3)
    assert done["status"] == "completed"
    assert "the disk is full" in run.err
    assert run(f"x wait {done['run_id']} --download {tmp_path}", 3) == run(f"x wait {done['run_id']}")
    both = run(f"x wait {done['run_id']} run_abc123 --download {tmp_path}", 3).splitlines()
    assert {json.loads(line)["run_id"] for line in both} == {done["run_id"], "run_abc123"}
    seen = run(f"x watch {done['run_id']} run_abc123 --download {tmp_path}", 3).splitlines()
    assert {json.loads(line)["run_id"] for line in seen if json.loads(line)["status"] == "completed"} == {
        done["run_id"],
        "run_abc123",
    }


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize("command", ["models", "models --format csv", "models --format table", "wait run_abc123"])
def test_streams_that_are_closed(closed: str, command: str) -> None:
    """A command whose stdout or stderr was closed before it began does its work, and says nothing."""
    done = subprocess.run(
        f"{shlex.join(COMMAND)} {command} {closed}", shell=True, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert ("run_id" in done.stdout or "model_id" in done.stdout) == (">&- " not in f" {closed} ".replace("2>&-", ""))


@pytest.mark.parametrize("command", ["models check -", "batch run - --out -", "assets upload - --workspace-id ws_1"])
@pytest.mark.parametrize("stream", [None, io.StringIO("{}")])
def test_a_stdin_that_cannot_be_read(run: Any, command: str, stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that reads a closed stdin, or one without bytes, says so in one sentence."""
    monkeypatch.setattr(sys, "stdin", stream)
    run(f"x {command}", 2)
    assert run.err == "flora-async: - is standard input, which is closed. Name a file\n"


@pytest.mark.parametrize(
    "command", ["models", "--help", "generations list --all --format csv", "models --format table"]
)
def test_a_stdout_that_is_full(command: str) -> None:
    """A full disk is one sentence and an exit code, and the interpreter adds nothing as it ends."""
    done = subprocess.run(
        f"{shlex.join(COMMAND)} {command} > /dev/full", shell=True, stderr=subprocess.PIPE, text=True, check=False
    )
    if command == "--help":
        assert complaints_of(done.stderr) == ""
    else:
        assert complaints_of(done.stderr) == "flora-async: cannot write to stdout: No space left on device\n"
        assert done.returncode == 2


def test_a_run_that_could_not_be_printed_is_told(flora_sandbox: Sandbox) -> None:
    """An order whose record no longer reaches stdout was paid for: its id goes to stderr."""
    line = f"{shlex.join(COMMAND)} generations create {shlex.join(ORDER)} text --prompt x > /dev/full"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert f"flora-async wait {next(iter(flora_sandbox.orders))}" in done.stderr


@pytest.mark.parametrize("stream", [None, io.StringIO, "closed"])
def test_called_by_a_program(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command writes to the stream that its caller has put in place of stdout, or to none."""
    given = stream() if callable(stream) else stream
    if stream == "closed":
        given = io.StringIO()
        given.close()
    monkeypatch.setattr(sys, "stdout", given)
    assert main(["models"]) == (2 if stream == "closed" else 0)
    if stream is io.StringIO:
        assert json.loads(given.getvalue())["models"]


def test_called_in_a_thread(run: Any) -> None:
    """Signals are the main thread's; the command works without them."""
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["models"])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize("form", ["csv", "table", "json", "jsonl"])
def test_encodings_that_lack_characters(run: Any, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A redirected Windows console is cp1252: what it lacks is escaped, and no row is lost."""
    for prompt in ("plain", "\N{OWL} коты", "last"):
        run(f"x generations create {' '.join(ORDER)} text --prompt '{prompt}' --wait")
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    line = (*COMMAND, "generations", "list", "--all", "--format", form)
    shown = subprocess.run(line, capture_output=True, timeout=30, check=True).stdout.decode("cp1252")
    assert shown.count("run_") >= 3
    assert "\\u043a" in shown


def test_saved_again(run: Any, tmp_path: Path) -> None:
    """A second run of a script goes on: what is saved is skipped, or refused or replaced where that is asked for."""
    line = f"x wait run_abc123 --download {tmp_path}"
    first = run(line)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"kept")
    assert run(line) == first
    assert path.read_bytes() == b"kept"
    assert run(f"{line} --on-existing error", 3) == first
    assert path.read_bytes() == b"kept"
    assert run(f"{line} --on-existing replace") == first
    assert path.read_bytes() != b"kept"
    assert list(tmp_path.iterdir()) == [path]


def test_assets(run: Any, tmp_path: Path) -> None:
    """Files are uploaded, listed and retrieved; progress stands on stderr, in steps."""
    small, large = tmp_path / "a.png", tmp_path / "b.mp4"
    small.write_bytes(b"\x89PNG\r\n\x1a\nsmall")
    large.write_bytes(b"\0\0\0\x18ftypisom" + bytes(4 * 2**20))
    one = run(f"x assets upload {small} --workspace-id ws_demo")
    assert (one["status"], one["uploaded_via"]) == ("ready", "direct")
    two = run(f"x assets upload {large} {small} --workspace-id ws_demo --project-id prj_demo --timeout 30")
    assert [json.loads(line)["status"] for line in two.splitlines()] == ["ready", "ready"]
    assert 5 <= run.err.count(f"{large} uploaded") <= 11
    listed = run("x assets list --workspace-id ws_demo --limit 2")["assets"]
    assert [each["name"] for each in listed] == ["a.png", "b.mp4"]
    assert run(f"x assets retrieve --asset-id {one['asset_id']}")["name"] == "a.png"
    run(f"x assets upload {tmp_path / 'none.png'} --workspace-id ws_demo", 2)
    assert "No such file" in run.err


def test_a_file_in_params(run: Any, tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """``@FILE`` is uploaded, ``@@`` stands for an ``@``, and a file that is not there is an error of usage."""
    photo = tmp_path / "a photo.png"
    photo.write_bytes(b"\x89PNG\r\n\x1a\nphoto")
    line = f"x generations create {' '.join(ORDER)} video --prompt 'it turns'"
    run(f"{line} --params 'image_url=@{photo}' --params name=@@me --params seed=7")
    (params,) = (order.params for order in flora_sandbox.orders.values())
    assert params is not None
    assert "/media/assets/asset_" in params["image_url"]
    assert (params["name"], params["seed"]) == ("@me", 7)
    run(f"{line} --params image_url=@none.png", 2)
    assert "there is no file 'none.png'" in run.err
