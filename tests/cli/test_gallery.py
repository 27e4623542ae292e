"""The command ``gallery``: the history as a page, whole or not at all, of any length in little memory."""

import os
import shlex
import stat
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_cards import Read

from flora_async import (
    APIConnectionError,
    BrokenItem,
    Generation,
    GenerationList,
    GenerationPage,
    PageMeta,
    ResponseDecodeError,
)
from flora_async.cli import gallery, main
from flora_async.cli.arguments import UsageError
from flora_async.sandbox import Sandbox

Command = Callable[[str], str]

pytestmark = pytest.mark.flora_sandbox(any_key=True)


@pytest.fixture
def command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flora_sandbox: Sandbox,
    capsys: pytest.CaptureFixture[str],
    fast_polls: None,
) -> Command:
    """Run a command line in an empty folder, against a sandbox; give what it printed."""
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", "sk_live_of_a_test")
    monkeypatch.chdir(tmp_path)

    def run(line: str, code: int = 0) -> str:
        assert main(shlex.split(line)) == code
        told = capsys.readouterr()
        run.complaints = told.err  # type: ignore[attr-defined]
        return told.out

    return run


def order(command: Command, prompt: str, kind: str = "text") -> str:
    """Order something and wait for it; give the run's id."""
    line = f"generations create --type {kind} --prompt '{prompt}' --workspace-id ws_1 --project-id prj_1 --wait"
    given: dict[str, Any] = msgspec.json.decode(command(line))
    run_id: str = given["run_id"]
    return run_id


def read(path: Path) -> Read:
    """Read a gallery."""
    return Read(path.read_text(encoding="utf-8"))


def runs_of(path: Path) -> list[str | None]:
    """Say which runs a gallery shows."""
    return [item["data-run"] for item in read(path).all("li")]


def test_the_history_becomes_a_page(command: Command, tmp_path: Path) -> None:
    """Newest first; its path is printed, and nothing else is left in the folder."""
    ids = [order(command, "a mug"), order(command, "a haiku"), order(command, "a picture", "image")]
    assert command("gallery") == f"{tmp_path / 'gallery.html'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]
    assert runs_of(tmp_path / "gallery.html") == ids[::-1]
    (picture,) = read(tmp_path / "gallery.html").all("img")
    assert picture["src"] == f"{os.environ['FLORA_BASE_URL'].removesuffix('/api/v1')}/media/{ids[2]}/output_1.png"


def test_what_is_asked_for(command: Command, tmp_path: Path) -> None:
    """The gallery reads history pages with the limit and the filters of its options."""
    ids = [order(command, "one"), order(command, "two")]
    for selection, chosen in (
        ("--limit 1", ids[1:]),
        ("--project-id prj_1 --workspace-id ws_1 --status completed", ids[::-1]),
        ("--project-id prj_other", []),
        ("--status failed", []),
    ):
        command(f"gallery --out some.html {selection}")
        assert runs_of(tmp_path / "some.html") == chosen


def test_prompts_from_the_results_of_a_batch(tmp_path: Path) -> None:
    """Lines of completed and of failed runs name their prompts; an order without a run is passed over."""
    path = tmp_path / "results.jsonl"
    lines = [
        {"order": {"prompt": "a mug"}, "run": {"run_id": "run_1"}},
        {"order": {"prompt": "a lamp"}, "error": {"type": "RunFailedError", "run": {"run_id": "run_2"}}},
        {"order": {"prompt": "a jug"}, "error": {"type": "BadRequestError"}},
    ]
    path.write_bytes(b"\n".join(map(msgspec.json.encode, lines)))
    assert gallery.read_prompts(path) == {"run_1": "a mug", "run_2": "a lamp"}


def test_prompts(command: Command, tmp_path: Path) -> None:
    """From a file, where somebody has kept them; FLORA's history does not tell them."""
    ids = [order(command, "one"), order(command, "two")]
    lines = [{"run_id": ids[0], "prompt": "the first <one>", "more": 1}, {"run_id": "run_other", "prompt": "x"}]
    (tmp_path / "ordered.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(lines))
    command("gallery --prompts ordered.jsonl")
    text = read(tmp_path / "gallery.html").text
    assert "the first <one>" in text
    assert "Text by sandbox-text" in text  # the run whose prompt nobody knows


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("gallery --limit 0", "--limit must be at least 1"),
        ("gallery --limit -1", "--limit must be at least 1"),
        ("gallery --out .", "--out must be a file"),
        ("gallery --out nowhere/x.html", "nowhere"),
        ("gallery --prompts nowhere.jsonl", "nowhere.jsonl"),
        ("gallery --prompts wrong.jsonl", "wrong.jsonl, line 2: "),
        ("gallery --project-id nonsense", "prj_"),
    ],
)
def test_what_cannot_be(line: str, told: str, command: Any, tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """One clear line, before FLORA is asked."""
    (tmp_path / "wrong.jsonl").write_text('{"run_id": "run_1", "prompt": "x"}\n{"run_id": 2}\n')
    assert command(line, 2) == ""
    assert told in command.complaints
    assert command.complaints.count("\n") == 1
    assert flora_sandbox.requests["GET /generations"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.jsonl"]


@pytest.mark.parametrize("kind", ["link", "dead link", "device", "pipe", "input"])
def test_out_replaces_only_a_file_of_its_own(kind: str, command: Any, tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """A link, its target, a device and the command's own input are left as they are, and FLORA is not asked."""
    target, out = tmp_path / "target", tmp_path / "out"
    target.write_text('{"run_id": "run_1", "prompt": "x"}\n')
    if kind == "pipe":
        os.mkfifo(out)
    elif kind != "device":
        out.symlink_to(tmp_path / "nowhere" if kind == "dead link" else target)
    path = {"device": Path("/dev/null"), "input": target}.get(kind, out)
    command(f"gallery --out {path} --prompts {target}", 2)
    assert "--out" in command.complaints
    assert target.read_text().startswith('{"run_id"')
    assert kind in ("device", "input") or out.is_symlink() or out.is_fifo()
    assert flora_sandbox.requests["GET /generations"] == 0


def test_whole_or_not_at_all(command: Any, tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """When the history cannot be read to its end, what was there before is still there, and nothing beside it."""
    for number in range(3):
        order(command, f"number {number}")
    (tmp_path / "gallery.html").write_text("the one before")
    flora_sandbox.fail_next(403, path="/generations")
    command("gallery", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["gallery.html"]
    assert (tmp_path / "gallery.html").read_text() == "the one before"


def test_it_is_as_readable_as_other_files(command: Command, tmp_path: Path) -> None:
    """The page has the permissions of the user's umask."""
    before = os.umask(0o027)
    try:
        command("gallery")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "gallery.html").stat().st_mode) == 0o640


def test_open(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--open` opens the page in the installed browser."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    command("gallery --open --out 'a page.html'")
    assert (tmp_path / "opened").read_text() == f"{(tmp_path / 'a page.html').as_uri()}\n"


def test_open_without_a_browser(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a browser, `--open` reports it and the page exists."""
    monkeypatch.setattr("webbrowser._tryorder", [])
    assert command("gallery --open") == f"{tmp_path / 'gallery.html'}\n"
    assert "no browser" in command.complaints


def generation(number: int, text: str = "x") -> Generation:
    """Give a run of the history."""
    ids = {"run_id": f"run_{number}", "generation_id": f"run_{number}", "project_id": "prj_1", "workspace_id": "ws_1"}
    told = {"status": "completed", "progress": 100, "created_at": 1_790_000_000_000, "charged_cost": 0.04}
    made = {"outputs": [{"output_id": "output_1", "type": "text", "url": text}]}
    return msgspec.convert(ids | told | made, Generation)


def history(
    pages: int,
    *,
    text: str = "x",
    ends_in: Exception | None = None,
    broken: Sequence[BrokenItem] = (),
    meanwhile: Callable[[], object] = bool,
) -> GenerationList:
    """Give a history that nobody has in memory, and that may break off."""

    async def fetch(cursor: str | None) -> GenerationPage:
        number = int(cursor or 0)
        meanwhile()
        if number == pages - 1 and ends_in is not None:
            raise ends_in
        items = tuple(generation(100 * number + item, text) for item in range(100))
        following = None if number == pages - 1 else str(number + 1)
        return GenerationPage(generations=items, meta=PageMeta(next_cursor=following), broken=tuple(broken))

    return GenerationList(fetch, None)


@pytest.mark.anyio
async def test_a_long_history_takes_little_memory(tmp_path: Path) -> None:
    """The gallery of 5,000 runs with long texts holds only a few pages in memory."""
    tracemalloc.start()
    try:
        path = await gallery.write(history(50, text="x" * 10_000), tmp_path / "long.html", limit=None, prompts={})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 50_000_000
    assert peak < 12_000_000
    with path.open(encoding="utf-8") as lines:
        assert sum(line.startswith('<li class="card"') for line in lines) == 5000


@pytest.mark.anyio
async def test_the_limit_is_a_total(tmp_path: Path) -> None:
    """`--limit` is the total number of runs of all pages."""
    path = await gallery.write(history(9), tmp_path / "some.html", limit=250, prompts={})
    assert runs_of(path) == [f"run_{number}" for number in range(250)]


@pytest.mark.anyio
async def test_runs_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told of, and the others are shown."""
    broken = BrokenItem(
        field="$.generations[3].status", reason="Expected `str`", url="https://x", request_id=None, excerpt="{"
    )
    path = await gallery.write(history(3, broken=[broken]), tmp_path / "some.html", limit=None, prompts={})
    assert len(runs_of(path)) == 300
    assert "skipped an item that cannot be parsed" in capsys.readouterr().err


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        APIConnectionError("cut", sent="maybe_sent"),
        ResponseDecodeError("no JSON", field=None, url="https://x", status=200, request_id=None, excerpt="<"),
    ],
)
async def test_a_history_that_breaks_off(error: Exception, tmp_path: Path) -> None:
    """Nothing is left, and the error is told."""
    with pytest.raises(type(error)):
        await gallery.write(history(3, ends_in=error), tmp_path / "some.html", limit=None, prompts={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.anyio
async def test_a_page_that_cannot_be_put_in_its_place(tmp_path: Path) -> None:
    """Somebody has made a folder of that name meanwhile: it is left alone, and nothing is left beside it."""
    out = tmp_path / "some.html"
    with pytest.raises(IsADirectoryError):
        await gallery.write(history(1, meanwhile=out.mkdir), out, limit=None, prompts={})
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.anyio
async def test_a_folder_in_the_way(tmp_path: Path) -> None:
    """Is left alone."""
    with pytest.raises(UsageError, match="folder"):
        await gallery.write(history(1), tmp_path, limit=None, prompts={})
