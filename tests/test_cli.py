"""The command."""

import asyncio
import os
import signal
import sys
import wave
from pathlib import Path

import av
import pytest
from PIL import Image
from programs import complaints_of

from flora_async import Flora
from flora_async.cli import main

pytestmark = pytest.mark.anyio


def test_the_demo_leaves_media_that_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of each type for each prompt, and says what it did."""
    monkeypatch.chdir(tmp_path)
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
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["demo"]) == 2
    assert "pip install 'flora-async[demo]'" in capsys.readouterr().err


def test_the_sandbox_on_a_port_that_cannot_be(capsys: pytest.CaptureFixture[str]) -> None:
    """One clear line."""
    assert main(["sandbox", "--time-scale", "0"]) == 2
    assert "time_scale" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["paint"], ["sandbox", "--port", "x"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Argparse says what is wrong."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: flora-async" in capsys.readouterr().err


@pytest.mark.parametrize(("extra", "keys"), [((), ["any key"]), (("--api-key", "sk_mine"), ["sk_mine"])])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_the_sandbox_as_a_command(extra: tuple[str, ...], keys: list[str], end: signal.Signals) -> None:
    """It prints what a client needs, serves until it is told to stop, and ends quietly."""
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
    assert complaints_of(complaints) == ""
    assert process.returncode == 0
