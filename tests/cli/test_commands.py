"""The command."""

import argparse
import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from programs import complaints_of

from flora_async import Flora
from flora_async.cli import arguments, main
from flora_async.sandbox import _media

pytestmark = pytest.mark.anyio


def test_the_demo_leaves_media_that_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of each type for each prompt, and says what it did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_media, "VIDEO_FRAMES", 24)
    assert main(["demo", "a heron at dawn"]) == 0
    made = {path.suffix: path for path in (tmp_path / "flora-demo").iterdir()}
    assert set(made) == {".png", ".mp4", ".wav", ".txt"}
    with Image.open(made[".png"]) as image:
        image.load()
        assert min(image.size) > 100
    with av.open(made[".mp4"]) as video:
        assert sum(1 for _ in video.decode(video=0)) > 20
    with wave.open(str(made[".wav"])) as sound:
        assert sound.getnframes() > 10_000
    assert "a heron at dawn" in made[".txt"].read_text(encoding="utf-8")
    told = capsys.readouterr().out
    assert "asyncio.run(main())" in told
    assert str(Path("flora-demo") / made[".png"].name) in told
    assert told.count("completed") >= 4


def test_the_demo_where_its_folder_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One clear line, and a code of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flora-demo").write_text("in the way")
    assert main(["demo", "x"]) == 3
    assert "flora-async: " in capsys.readouterr().err


def test_the_demo_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without rich, the demo fails with the extra to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 2
    assert "pip install 'flora-async[demo]'" in capsys.readouterr().err


def test_the_sandbox_on_a_port_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers that make no sense get one sentence that names the flag."""
    for flag, number in (("--time-scale", "0"), ("--time-scale", "nan"), ("--port", "99999"), ("--port", "-1")):
        assert main(["sandbox", flag, number]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"flora-async: {flag} must be ")
        assert said.count("\n") == 1


def test_the_sandbox_on_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that another program listens on is named, with the flag that takes another one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["sandbox", "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"127.0.0.1:{port}" in said
    assert "port" in said


@pytest.mark.parametrize("arguments", [["generations"], ["paint"], ["sandbox", "--port", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: flora-async" in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "keys"), [((), ["any key"]), (("--api-key", "sk_mine"), ["sk_mine"])])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_the_sandbox_as_a_command(extra: tuple[str, ...], keys: list[str], end: signal.Signals) -> None:
    """The sandbox command prints a client's settings, serves until a signal, and exits without a traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli", "sandbox", "--port", "0", *extra),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    lines = [(await process.stdout.readline()).decode().split() for _ in range(3)]
    assert [words[0] for words in lines] == ["export"] * 3
    told = dict(words[1].split("=", 1) for words in lines)
    assert told["FLORA_WEBHOOK_SECRET"].startswith("whsec_")
    for key in (*keys, told["FLORA_API_KEY"]):
        async with Flora(key, base_url=told["FLORA_BASE_URL"]) as flora:
            assert (await flora.request("GET", "/models")).status == 200
    process.send_signal(end)
    _, complaints = await process.communicate()
    said = complaints_of(complaints).splitlines()
    assert all(line.startswith("flora-async: ") for line in said)
    assert "flora-async sandbox -- COMMAND" in "".join(said)
    assert process.returncode == 0


PROGRAM = """
import asyncio, sys
from flora_async import Flora

async def main():
    async with Flora() as flora:
        print((await flora.workspaces.list())[0].workspace_id)

asyncio.run(main())
sys.exit(7)
"""


def sandboxed(*program: str) -> "subprocess.CompletedProcess[str]":
    """Run a program against a sandbox of its own."""
    line = (sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli", "sandbox", "--", *program)
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_a_program_is_run_against_a_sandbox() -> None:
    """The program finds the sandbox by its environment, has stdout to itself, and its exit code is returned."""
    done = sandboxed(sys.executable, "-c", PROGRAM)
    assert (done.returncode, done.stdout, complaints_of(done.stderr)) == (7, "ws_demo\n", "")


def test_a_program_that_cannot_be_run() -> None:
    """A missing program, one that must not be executed and one that a signal ends have the codes that shells give."""
    for program, code in (
        (("no-such-program",), 127),
        ((str(Path(__file__)),), 126),
        (("sh", "-c", "kill -9 $$"), 137),
    ):
        assert sandboxed(*program).returncode == code
    nothing = sandboxed()
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert "there is no command after --" in nothing.stderr


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_a_program_beside_a_sandbox_is_terminated(end: signal.Signals) -> None:
    """SIGTERM goes on to the program; Ctrl-C is the program's own, which the terminal sends it."""
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('on', flush=True)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "flora_async.cli", "sandbox", "--", sys.executable, "-c", f"{code}; time.sleep(60)"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"on\n"
    process.send_signal(end)
    if end is signal.SIGINT:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.3)
        process.send_signal(signal.SIGTERM)
    assert await process.wait() == 9


def test_the_sandbox_where_loops_know_no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows loops handle no signals: Ctrl-C reaches the command as a KeyboardInterrupt, and ends it quietly."""
    code = """
import asyncio, sys
def add_signal_handler(self, *args): raise NotImplementedError
asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler
from flora_async.cli import main
sys.exit(main(["sandbox", "--port", "0"]))
"""
    with subprocess.Popen(
        (sys.executable, "-X", "dev", "-c", code), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("export FLORA_BASE_URL=")
        while "its runs" not in process.stderr.readline():
            pass
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, complaints_of(said)) == (0, "")


def test_every_help_text_has_an_example_that_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    """The examples are parsed by the command that shows them."""
    for words in arguments.EXAMPLES:
        with pytest.raises(SystemExit) as ended:
            main([*words.split(), "--help"])
        assert ended.value.code == 0
        shown = capsys.readouterr().out.split("example")[-1].splitlines()[1:]
        assert shown
        for line in shown:
            typed = shlex.split(line)
            assert typed[0] == "flora-async"
            if ">" in typed:
                typed = typed[: typed.index(">")]
            if typed[-1] != "--help":
                assert arguments.parse(typed[1:]).command == typed[1]


def test_every_command_has_an_example() -> None:
    """A new command is added to the examples."""

    def names(parser: Any) -> list[str]:
        below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        return [parser.prog, *(name for choices in below for each in choices.values() for name in names(each))]

    assert {" ".join(name.split()[1:]) for name in names(arguments.build_parser())} == set(arguments.EXAMPLES)
