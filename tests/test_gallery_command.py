"""The command ``flora-async gallery``: one page of the history, in its place when it is whole."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted import Scripted, answer, error, generation, page

from flora_async import AuthenticationError, Flora, ResponseDecodeError
from flora_async.cli import gallery, main
from flora_async.sandbox import Sandbox

ORDER = ("--project-id", "prj_1", "--workspace-id", "ws_1", "--type")


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch, flora_sandbox: Sandbox) -> None:
    """Point the command at a sandbox."""
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", flora_sandbox.api_key)


def order(prompt: str) -> None:
    """Order a text."""
    assert main(["generations", "create", *ORDER, "text", "--prompt", prompt]) == 0


@pytest.mark.usefixtures("key")
def test_it_writes_a_page_and_prints_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else on stdout."""
    for number in range(3):
        order(f"number {number}")
    out = tmp_path / "mine.html"
    capsys.readouterr()
    assert main(["gallery", "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert (told.out, told.err) == (f"{out}\n", "flora-async: 3 runs\n")
    assert out.read_text(encoding="utf-8").count("<article") == 3
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("key")
def test_by_default_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As gallery.html, which an empty history is worth, too."""
    monkeypatch.chdir(tmp_path)
    assert main(["gallery", "--status", "failed"]) == 0
    assert capsys.readouterr().out == "gallery.html\n"
    assert (tmp_path / "gallery.html").read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.usefixtures("key")
def test_how_many_and_which(tmp_path: Path) -> None:
    """The newest ones, of a project, of a workspace, of a status."""
    for number in range(3):
        order(f"number {number} [slow]")
    out = tmp_path / "page.html"
    for options, count in (
        (["--limit", "2"], 2),
        (["--project-id", "prj_1"], 3),
        (["--project-id", "prj_2"], 0),
        (["--workspace-id", "ws_2"], 0),
        (["--status", "completed"], 0),
        (["--status", "pending", "--limit", "1"], 1),
    ):
        assert main(["gallery", "--out", str(out), *options]) == 0
        assert out.read_text(encoding="utf-8").count("<article") == count, options


@pytest.mark.usefixtures("key")
def test_it_opens_in_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that the environment names, at the page's own address."""
    browser, told, out = tmp_path / "browser", tmp_path / "told", tmp_path / "a page.html"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" >{told}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    command = (sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli", "gallery", "--open", "--out", out)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (f"{out}\n", "flora-async: 0 runs\n")
    assert told.read_text() == out.as_uri()


@pytest.mark.usefixtures("key")
def test_where_there_is_no_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is there all the same, and it is told."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BROWSER", "nonesuch %s")
    out = tmp_path / "page.html"
    command = (sys.executable, "-m", "flora_async.cli", "gallery", "--open", "--out", out)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{out}\n"
    assert "no browser could be opened" in done.stderr


@pytest.mark.usefixtures("key")
def test_a_place_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, before anything is asked."""
    assert main(["gallery", "--out", str(tmp_path / "nowhere" / "page.html")]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_that_is_none(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage."""
    with pytest.raises(SystemExit) as ended:
        main(["gallery", "--limit", limit])
    assert ended.value.code == 2
    assert "--limit" in capsys.readouterr().err


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


@pytest.mark.anyio
async def test_all_pages_of_the_history(server: Scripted, tmp_path: Path) -> None:
    """Each run once."""
    server.on("GET", "/generations", page("run_1", "run_2", cursor="next"), page("run_2", "run_3"))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        assert await gallery.write(flora.generations.list(), tmp_path / "page.html", None) == 3
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<article") == 3


@pytest.mark.anyio
async def test_what_was_there_stays_until_the_page_is_whole(server: Scripted, tmp_path: Path) -> None:
    """Half a page is nobody's."""
    out = tmp_path / "page.html"
    out.write_text("yesterday's", encoding="utf-8")
    server.on("GET", "/generations", page("run_1", cursor="next"), error(401))
    async with Flora("sk_1", base_url=server.base_url) as flora:
        with pytest.raises(AuthenticationError):
            await gallery.write(flora.generations.list(), out, None)
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text(encoding="utf-8") == "yesterday's"


@pytest.mark.anyio
async def test_what_cannot_be_read_is_left_out_and_told(server: Scripted, tmp_path: Path) -> None:
    """One odd item does not cost the others their place."""
    odd = {**generation("run_2"), "status": 7}
    rows = [generation("run_1"), odd, generation("run_3")]
    server.on("GET", "/generations", answer({"generations": rows, "meta": {"next_cursor": None}}))
    out = tmp_path / "page.html"
    async with Flora("sk_1", base_url=server.base_url) as flora:
        with pytest.raises(ResponseDecodeError, match="status"):
            await gallery.write(flora.generations.list(), out, None)
    assert out.read_text(encoding="utf-8").count("<article") == 2
