"""Outputs to disk."""

import asyncio
import errno
import gc
import gzip
import os
import pickle
import re
import shutil
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import anyio
import msgspec
import pytest
from aiohttp import web
from raw import Raw, http, say
from scripted import Scripted, answer, generation, hang_up, run, silence

from flora_async import (
    APITimeoutError,
    ClientClosedError,
    ConfigurationError,
    DownloadError,
    Flora,
    Generation,
    Output,
    Run,
)

pytestmark = pytest.mark.anyio

PICTURE = b"\x89PNG\r\n" + bytes(range(256)) * 2000


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted, and a host of media."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted) -> AsyncIterator[Flora]:
    """Give a client of it."""
    async with Flora("sk_secret", base_url=server.base_url, timeout=5) as client:
        yield client


def finished(*outputs: tuple[str, str, str]) -> Run:
    """Give a completed run with these outputs: id, type, url."""
    listed = [{"output_id": output_id, "type": kind, "url": url} for output_id, kind, url in outputs]
    return msgspec.convert(run(outputs=listed), Run)


def media(content: bytes, kind: str | None = "image/png", **more: Any) -> Any:
    """Answer with an output."""
    return answer(content, headers={"Content-Type": kind} if kind else {}, **more)


async def test_all_outputs_of_a_run(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Named by run, output and content type, in a folder that is made; without our key."""
    server.on("GET", "/a", media(PICTURE)).on("GET", "/b", media(b"RIFF", "audio/wav; charset=x"))
    done = finished(
        ("output_1", "imageUrl", server.base_url + "/a?sig=x%2Fy"),
        ("output_2", "audioUrl", server.base_url + "/b"),
        ("output_3", "text", "a poem\nof two lines, für dich"),
    )
    folder = tmp_path / "made" / "deep"
    paths = await flora.download(done, folder)
    assert [path.name for path in paths] == [
        "run_abc123_output_1.png",
        "run_abc123_output_2.wav",
        "run_abc123_output_3.txt",
    ]
    assert paths[0].read_bytes() == PICTURE
    assert paths[2].read_text(encoding="utf-8") == "a poem\nof two lines, für dich"
    assert sorted(folder.iterdir()) == paths
    for asked in server.asked:
        assert not {"Authorization", "Cookie", "Idempotency-Key"} & set(asked.headers)
        assert asked.headers["Accept-Encoding"] == "identity"
    assert server.asked[0].query == {"sig": "x/y"}


async def test_a_lone_output_and_a_generation(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A lone output has a digest in place of its run; a generation is a run."""
    server.on("GET", "/a", media(b"x", "video/mp4"))
    output = Output(output_id="output_1", type="videoUrl", url=server.base_url + "/a")
    (path,) = await flora.download(output, str(tmp_path))
    assert re.fullmatch(r"output_1-[0-9a-f]{8}\.mp4", path.name)
    seen = msgspec.convert(generation("run_7"), Generation)
    assert [path.name for path in await flora.download(seen, tmp_path)] == ["run_7_output_1.txt"]


async def test_a_run_without_outputs(flora: Flora, tmp_path: Path) -> None:
    """There is nothing to save."""
    assert await flora.download(finished(), tmp_path / "new") == []


@pytest.mark.parametrize("source", ["run_1", None, 5, msgspec.convert(run("running"), Run)])
async def test_what_cannot_be_downloaded(flora: Flora, tmp_path: Path, source: Any) -> None:
    """Bare ids, and runs that have not finished."""
    with pytest.raises(ConfigurationError):
        await flora.download(source, tmp_path)


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("image/jpeg", "jpg"),
        ("IMAGE/WEBP", "webp"),
        ("application/x-strange", "bin"),
        ("text/html", "bin"),
        (None, "bin"),
    ],
)
async def test_the_extension_follows_the_content_type(
    flora: Flora, server: Scripted, tmp_path: Path, kind: str | None, extension: str
) -> None:
    """Of a known kind; never the URL or what the server calls the file."""
    headers = {
        "Content-Disposition": 'attachment; filename="../../evil.sh"',
        **({"Content-Type": kind} if kind else {}),
    }
    server.on("GET", "/evil.sh", answer(b"x", headers=headers))
    (path,) = await flora.download(finished(("1", "imageUrl", server.base_url + "/evil.sh")), tmp_path)
    assert path == tmp_path / f"run_abc123_1.{extension}"


@pytest.mark.parametrize(
    ("output_id", "name"),
    [
        ("../../etc/passwd", "_._.._etc_passwd"),
        (".hidden", "_hidden"),
        ("a b\x00ä", "a_b__"),
        ("x" * 300, "x" * 111),
        ("", "output"),
        ("..", "_."),
    ],
)
async def test_names_are_ours(flora: Flora, tmp_path: Path, output_id: str, name: str) -> None:
    """A lone output with any id is saved in the folder."""
    (path,) = await flora.download(Output(output_id=output_id, type="text", url="x"), tmp_path)
    assert path.parent == tmp_path
    assert re.fullmatch(re.escape(name) + r"-[0-9a-f]{8}\.txt", path.name)
    assert [*tmp_path.iterdir()] == [path]


async def test_nothing_is_overwritten(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A target that exists is an error before its content is asked for."""
    pulled: list[int] = []

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": str(len(PICTURE) * 50)})
        await response.prepare(request)
        for number in range(50):
            pulled.append(number)
            await response.write(PICTURE)
        return response

    server.on("GET", "/a", stream)
    (tmp_path / "run_abc123_1.png").write_bytes(b"mine")
    (tmp_path / "run_abc123_2.txt").symlink_to(tmp_path / "nowhere")
    for output in (("1", "imageUrl", server.base_url + "/a"), ("2", "text", "x")):
        with pytest.raises(DownloadError, match="exists") as caught:
            await flora.download(finished(output), tmp_path)
        assert caught.value.run_id == "run_abc123"
    assert (tmp_path / "run_abc123_1.png").read_bytes() == b"mine"
    assert len(pulled) < 50
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("fault", [answer(b"", 404), answer(b"", 403), answer(b"", 206), hang_up, answer(b"", 302)])
@pytest.mark.virtual_time
async def test_an_output_that_does_not_come(flora: Flora, server: Scripted, tmp_path: Path, fault: Any) -> None:
    """It leaves no file behind."""
    server.on("GET", "/a", fault)
    with pytest.raises(DownloadError):
        await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert not list(tmp_path.iterdir())


async def test_an_output_that_breaks_off(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A cut file is no file; the outputs before it stay."""

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "1000000"})
        await response.prepare(request)
        await response.write(PICTURE)
        assert request.transport is not None
        request.transport.abort()
        return response

    server.on("GET", "/a", cut)
    with pytest.raises(DownloadError, match="broke") as caught:
        await flora.download(
            finished(("1", "text", "x"), ("2", "imageUrl", server.base_url + "/a?sig=secret")), tmp_path
        )
    assert "secret" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["run_abc123_1.txt"]


@pytest.mark.virtual_time
async def test_an_output_that_stalls(server: Scripted, tmp_path: Path) -> None:
    """Each read has the client's timeout; the whole may take as long as it takes."""

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        await response.write(b"x")
        await request.content.read()
        await asyncio.sleep(30)
        return response

    server.on("GET", "/a", stall)
    async with Flora("sk_1", base_url=server.base_url, timeout=0.1) as flora:
        with pytest.raises(DownloadError, match="in time"):
            await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert not list(tmp_path.iterdir())


async def test_redirects_of_media_hosts(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A few are followed, each checked like the first."""
    server.on("GET", "/a", answer(b"", 302, {"Location": "b"})).on("GET", "/api/v1/b", media(b"x"))
    server.on("GET", "/b", media(b"x"))
    (path,) = await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert path.read_bytes() == b"x"
    server.on("GET", "/loop", answer(b"", 307, {"Location": server.base_url + "/loop"}))
    with pytest.raises(DownloadError, match="redirects"):
        await flora.download(finished(("2", "imageUrl", server.base_url + "/loop")), tmp_path)
    assert server.count("GET", "/loop") == 4
    server.on("GET", "/away", answer(b"", 302, {"Location": "http://media.flora.ai/x"}))
    with pytest.raises(DownloadError, match="not https"):
        await flora.download(finished(("3", "imageUrl", server.base_url + "/away")), tmp_path)


@pytest.mark.parametrize("location", ["http://[media", "//[media]/a", "http://\u2100.com/a"])
async def test_a_redirect_to_no_url(flora: Flora, server: Scripted, tmp_path: Path, location: str) -> None:
    """A redirect to a text that cannot be read as a URL is an error of the download, and leaves no file."""
    server.on("GET", "/a", answer(b"", 302, {"Location": location}))
    with pytest.raises(DownloadError, match="redirects to a URL that cannot be read") as caught:
        await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert caught.value.run_id
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["http://media.flora.ai/a.png", "file:///etc/passwd", "not a url", ""])
async def test_urls_that_are_not_fetched(flora: Flora, tmp_path: Path, url: str) -> None:
    """Https only."""
    with pytest.raises(DownloadError, match="url"):
        await flora.download(finished(("1", "imageUrl", url)), tmp_path)


async def test_this_machine_is_not_fetched_for_a_flora_elsewhere(server: Scripted, tmp_path: Path) -> None:
    """An output must not reach into the network that we are in."""
    async with Flora("sk_1", base_url="https://app.flora.ai/api/v1") as flora:
        with pytest.raises(DownloadError, match="this machine"):
            url = server.base_url.replace("http:", "https:") + "/a"
            await flora.download(finished(("1", "imageUrl", url)), tmp_path)
    assert not server.asked


async def test_an_output_that_is_too_large(server: Scripted, tmp_path: Path) -> None:
    """It is given up where it passes the limit."""
    server.on("GET", "/a", media(PICTURE))
    async with Flora("sk_1", base_url=server.base_url, max_download_bytes=1000) as flora:
        with pytest.raises(DownloadError, match="1000 bytes"):
            await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert not list(tmp_path.iterdir())


async def test_folders_that_cannot_be(flora: Flora, tmp_path: Path) -> None:
    """A file in the way, or a disk that refuses, is a DownloadError."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(DownloadError, match="folder"):
        await flora.download(finished(("1", "text", "x")), tmp_path / "file" / "below")


async def test_a_file_that_cannot_be_written(flora: Flora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk's own word is told."""

    def refuse(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DownloadError, match="No space left"):
        await flora.download(finished(("1", "text", "x")), tmp_path)
    assert not list(tmp_path.iterdir())


async def test_another_file_that_got_there_first(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A target that appears during the transfer is not replaced either."""
    target = tmp_path / "run_abc123_1.png"

    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png"})
        await response.prepare(request)
        await response.write(b"x")
        while not any(path.suffix == ".part" for path in tmp_path.iterdir()):
            await asyncio.sleep(0.001)
        target.write_bytes(b"mine")
        return response

    server.on("GET", "/a", slowly)
    with pytest.raises(DownloadError, match="exists"):
        await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


async def test_a_closed_client_downloads_nothing(tmp_path: Path) -> None:
    """It says that it is closed."""
    flora = Flora("sk_1", base_url="http://127.0.0.1:1")
    await flora.close()
    with pytest.raises(ClientClosedError):
        await flora.download(finished(("1", "imageUrl", "http://127.0.0.1:1/a")), tmp_path)


async def test_a_close_ends_a_download_also_when_it_is_cancelled(server: Scripted, tmp_path: Path) -> None:
    """The error is that of a closed client, whether the head or the content is on its way, and no part stays."""

    async def stall(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": "10"})
        await response.prepare(request)
        await response.write(b"part")
        await asyncio.Event().wait()
        return response

    server.on("GET", "/head", silence).on("GET", "/content", stall)
    for path in ("/head", "/content"):
        for steps in range(1, 6):
            flora = Flora("sk_1", base_url=server.base_url)
            server.asked.clear()
            download = asyncio.create_task(
                flora.download(finished(("1", "imageUrl", server.base_url + path)), tmp_path)
            )
            while not server.asked or (path == "/content" and not list(tmp_path.iterdir())):
                await asyncio.sleep(0.001)
            closing = asyncio.create_task(flora.close())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing, download], timeout=5)
            assert isinstance(download.exception(), ClientClosedError)
            assert list(tmp_path.iterdir()) == []


# -- what is there already


def three(server: Scripted) -> Run:
    """Build a run with a picture, a text and another picture."""
    return finished(
        ("1", "imageUrl", server.base_url + "/1"), ("2", "text", "a poem"), ("3", "imageUrl", server.base_url + "/3")
    )


async def test_a_failed_download_can_be_continued(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """The error has the saved paths; with ``skip`` the same call requests only the missing outputs."""
    server.on("GET", "/1", media(b"one")).on("GET", "/3", answer(b"", 451), media(b"three", "image/webp"))
    with pytest.raises(DownloadError, match="451") as caught:
        await flora.download(three(server), tmp_path)
    assert caught.value.saved == (tmp_path / "run_abc123_1.png", tmp_path / "run_abc123_2.txt")
    assert pickle.loads(pickle.dumps(caught.value)).saved == caught.value.saved
    (tmp_path / "run_abc123_2.txt").write_text("mine")
    paths = await flora.download(three(server), tmp_path, on_existing="skip")
    assert [path.name for path in paths] == ["run_abc123_1.png", "run_abc123_2.txt", "run_abc123_3.webp"]
    assert [path.read_bytes() for path in paths] == [b"one", b"mine", b"three"]
    assert [asked.path for asked in server.asked] == ["/1", "/3", "/3"]
    assert await flora.download(three(server), tmp_path, on_existing="skip") == paths
    assert len(server.asked) == 3


async def test_replacing(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """With ``replace`` a file is replaced when the new one is whole, and kept if that fails; a link's target stays."""
    server.on("GET", "/1", media(b"one"), answer(b"", 451), media(b"new")).on("GET", "/3", media(b"three"))
    await flora.download(three(server), tmp_path)
    with pytest.raises(DownloadError):
        await flora.download(three(server), tmp_path, on_existing="replace")
    first, _, third = sorted(tmp_path.iterdir())
    assert first.read_bytes() == b"one"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    third.unlink()
    third.symlink_to(elsewhere)
    paths = await flora.download(three(server), tmp_path, on_existing="replace")
    assert [path.read_bytes() for path in paths] == [b"new", b"a poem", b"three"]
    assert elsewhere.read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 4


async def test_lone_outputs_of_two_runs(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Outputs with the same id and of different runs are both saved, and skipped only for themselves."""
    server.on("GET", "/1", media(b"one")).on("GET", "/3", media(b"three"))
    outputs = [Output(output_id="o", type="imageUrl", url=f"{server.base_url}/{name}") for name in (1, 3)]
    for _ in range(2):
        paths = [(await flora.download(output, tmp_path, on_existing="skip"))[0] for output in outputs]
        assert [path.read_bytes() for path in paths] == [b"one", b"three"]
    assert len(server.asked) == 2


@pytest.mark.parametrize("on_existing", ["skip", "replace"])
async def test_no_folder_is_skipped_or_replaced(
    flora: Flora, server: Scripted, tmp_path: Path, on_existing: Literal["skip", "replace"]
) -> None:
    """A folder of an output's name is an error; an empty file, as an interrupted save can leave, is no output."""
    server.on("GET", "/1", media(b"one")).on("GET", "/3", media(b"three"))
    (tmp_path / "run_abc123_1.png").touch()
    (tmp_path / "run_abc123_3.png").mkdir()
    with pytest.raises(DownloadError, match=r"run_abc123_3\.png exists") as caught:
        await flora.download(three(server), tmp_path, on_existing=on_existing)
    assert [path.name for path in caught.value.saved] == ["run_abc123_1.png", "run_abc123_2.txt"]
    assert caught.value.saved[0].read_bytes() == b"one"
    assert len(list(tmp_path.iterdir())) == 3


async def test_two_downloads_of_one_output(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """Of two downloads at once one saves the file; the other raises, or returns it with ``skip``."""
    together = asyncio.Barrier(2)

    async def together_only(request: web.Request) -> web.Response:
        await together.wait()
        return web.Response(body=b"x", content_type="image/png")

    server.on("GET", "/a", together_only)
    output = finished(("1", "imageUrl", server.base_url + "/a"))
    skipped = await asyncio.gather(*(flora.download(output, tmp_path, on_existing="skip") for _ in range(2)))
    assert skipped[0] == skipped[1] == [tmp_path / "run_abc123_1.png"]
    skipped[0][0].unlink()
    ends = await asyncio.gather(*(flora.download(output, tmp_path) for _ in range(2)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["DownloadError", "list"]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("folder", "on_existing"), [(5, "error"), (b"out", "error"), ("a\0b", "error"), ("out", "overwrite"), ("out", None)]
)
async def test_bad_arguments(flora: Flora, folder: Any, on_existing: Any) -> None:
    """A folder that is no path, or an unknown word, is refused before anything is made."""
    with pytest.raises(ConfigurationError, match=r"folder|on_existing"):
        await flora.download(finished(("1", "text", "x")), folder, on_existing=on_existing)


# -- file systems


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, None])
def no_hard_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a file system, or a platform, without hard links."""

    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    if request.param is None:
        monkeypatch.delattr(os, "link")
    else:
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_hard_links")
async def test_a_file_system_without_hard_links(flora: Flora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs are saved, nothing is overwritten, and a failure leaves no empty file."""
    source = finished(("1", "text", "x"))
    (path,) = await flora.download(source, tmp_path)
    assert path.read_bytes() == b"x"
    path.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="exists"):
        await flora.download(source, tmp_path)
    assert path.read_bytes() == b"mine"
    assert await flora.download(source, tmp_path, on_existing="skip") == [path]
    await flora.download(source, tmp_path, on_existing="replace")
    assert path.read_bytes() == b"x"

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path.unlink()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(DownloadError, match="Input/output"):
        await flora.download(source, tmp_path)
    assert not list(tmp_path.iterdir())


async def test_a_disk_that_times_out(flora: Flora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk's ETIMEDOUT, which is a TimeoutError, is reported as the disk's error."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DownloadError, match=r"cannot write .*timed out"):
        await flora.download(finished(("1", "text", "x")), tmp_path)


@pytest.mark.parametrize("stage", ["mkdir", "open", "fsync", "link", "disk_usage"])
@pytest.mark.parametrize("native", [True, False])
async def test_a_cancelled_download_waits_for_the_disk(
    flora: Flora, server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, native: bool
) -> None:
    """A download that is cancelled while the disk works leaves neither a part file nor an open descriptor."""
    server.on("GET", "/a", media(PICTURE))
    folder = tmp_path / "out"
    inside, release = threading.Event(), threading.Event()
    where = {"mkdir": Path, "disk_usage": shutil}.get(stage, os)
    real = getattr(where, stage)

    def slow(*arguments: Any, **more: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not inside.is_set():
            inside.set()
            release.wait(10)
            time.sleep(0.01)
        return real(*arguments, **more)

    monkeypatch.setattr(where, stage, slow)
    scope = anyio.CancelScope()

    async def download() -> None:
        with scope:
            await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), folder)

    task = asyncio.create_task(download())
    while not inside.is_set():
        await asyncio.sleep(0.001)
    task.cancel() if native else scope.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    release.set()
    await asyncio.wait([task])
    assert task.cancelled() is native
    assert [path.suffix for path in folder.iterdir()] == ([".png"] if stage == "link" else [])
    gc.collect()  # an open file would warn here


# -- hosts


async def test_the_head_has_one_deadline(tmp_path: Path) -> None:
    """Informational answers without end, a head byte by byte, and slow redirects all end after the client's timeout."""

    async def early_hints(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def slow_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.05)

    async def slow_redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.2)
        writer.write(http(status="302 Found", headers="Location: /again\r\n"))
        await writer.drain()
        return True

    for step in (early_hints, slow_head, slow_redirect):
        async with Raw(step) as raw, Flora("sk_1", base_url=raw.base_url, timeout=0.3, max_retries=0) as flora:
            began = time.monotonic()
            with pytest.raises(DownloadError, match="in time") as caught:
                await flora.download(finished(("1", "imageUrl", raw.base_url + "/a")), tmp_path)
            assert isinstance(caught.value.__cause__, APITimeoutError)
            assert time.monotonic() - began < 2
    assert not list(tmp_path.iterdir())


QUERY = "X-Amz-Credential=AK%2F1&name=%22a%40b%22&Signature=a%2Bb%2F%7Ec%3D&x=(1)*!'~+"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/plain.png", "/plain.png"),
        ("/caf%C3%A9%2f.png", "/caf%C3%A9%2f.png"),
        ("/café.png", "/caf%C3%A9.png"),
        ("/my picture.png", "/my%20picture.png"),
        ("/a%20b c\u3000.png", "/a%20b%20c%E3%80%80.png"),
        ("/100%.png", "/100%.png"),
        ("/a//b/../c;d={1}|.png", "/a//b/../c;d={1}|.png"),
    ],
)
@pytest.mark.parametrize("redirected", [False, True])
async def test_signed_urls_reach_their_host_byte_for_byte(
    tmp_path: Path, path: str, sent: str, redirected: bool
) -> None:
    """Only spaces and characters beyond ASCII are encoded, in an output's URL and in a redirect's."""
    picture = http(b"x", headers="Content-Type: image/png\r\n")
    async with Raw(say(picture)) as raw, Flora("sk_1", base_url=raw.base_url) as flora:
        origin = raw.where
        target, url = f"{origin}{path}?{QUERY}", f"{origin}{path}?{QUERY}"
        if redirected:
            location = f"Location: {target}\r\n".encode()
            raw.steps = [say(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n" + location + b"\r\n"), say(picture)]
            url = f"{origin}/first"
        await flora.download(finished(("1", "imageUrl", url)), tmp_path)
        assert raw.asked[-1].path == f"{sent}?{QUERY}"


@pytest.mark.parametrize("encoding", ["", "identity", "Identity", "aws-chunked", "aws-chunked, identity"])
async def test_encodings_that_are_none(flora: Flora, server: Scripted, tmp_path: Path, encoding: str) -> None:
    """A Content-Encoding that does not change the bytes is no obstacle."""
    server.on("GET", "/a", answer(PICTURE, headers={"Content-Type": "image/png", "Content-Encoding": encoding}))
    (path,) = await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert path.read_bytes() == PICTURE


def zipped(*parts: bytes, encoding: str = "gzip") -> Any:
    """Answer with these bytes, said to be packed."""
    return answer(b"".join(parts), headers={"Content-Type": "image/svg+xml", "Content-Encoding": encoding})


async def test_gzip_is_undone(flora: Flora, server: Scripted, tmp_path: Path) -> None:
    """A gzip-encoded output, as object stores send what was uploaded so, is saved unpacked."""
    halves = gzip.compress(PICTURE[:1000]), gzip.compress(PICTURE[1000:])
    for number, packed in enumerate([zipped(*halves), zipped(gzip.compress(PICTURE), bytes(99), encoding="X-Gzip")]):
        server.on("GET", "/a", packed)
        (path,) = await flora.download(finished((f"{number}", "imageUrl", server.base_url + "/a")), tmp_path)
        assert path.suffix == ".svg"
        assert path.read_bytes() == PICTURE


@pytest.mark.parametrize(
    ("content", "encoding", "reason"),
    [
        (gzip.compress(PICTURE)[:-9], "gzip", "truncated"),
        (gzip.compress(PICTURE)[:-4] + b"none", "gzip", "corrupt"),
        (PICTURE, "gzip", "corrupt"),
        (b"", "gzip", "truncated"),
        (PICTURE, "br", "Content-Encoding br,"),
        (gzip.compress(gzip.compress(PICTURE)), "gzip, gzip", "Content-Encoding gzip, gzip,"),
        (gzip.compress(bytes(2**20 + 1)), "gzip", "larger than 1048576 bytes"),
        (gzip.compress(b"") * 120_000, "gzip", "larger than 1048576 bytes"),
    ],
)
async def test_encodings_that_cannot_be_undone(
    server: Scripted, tmp_path: Path, content: bytes, encoding: str, reason: str
) -> None:
    """A damaged, foreign or exploding encoding is an error, and no file."""
    server.on("GET", "/a", zipped(content, encoding=encoding))
    async with Flora("sk_1", base_url=server.base_url, max_retries=0, max_download_bytes=2**20) as flora:
        with pytest.raises(DownloadError, match=reason):
            await flora.download(finished(("1", "imageUrl", server.base_url + "/a")), tmp_path)
    assert not list(tmp_path.iterdir())
