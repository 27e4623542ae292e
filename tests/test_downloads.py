"""Outputs to disk."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from scripted import Scripted, answer, generation, hang_up, run

from flora_async import ClientClosedError, ConfigurationError, DownloadError, Flora, Generation, Output, Run

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
    """The one has no run in its name, the other is a run."""
    server.on("GET", "/a", media(b"x", "video/mp4"))
    output = Output(output_id="output_1", type="videoUrl", url=server.base_url + "/a")
    assert [path.name for path in await flora.download(output, str(tmp_path))] == ["output_1.mp4"]
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
        ("../../etc/passwd", "_._.._etc_passwd.txt"),
        (".hidden", "_hidden.txt"),
        ("a b\x00ä", "a_b__.txt"),
        ("x" * 300, "x" * 120 + ".txt"),
    ],
)
async def test_names_are_ours(flora: Flora, tmp_path: Path, output_id: str, name: str) -> None:
    """Whatever the ids are, the file lies in the folder."""
    (path,) = await flora.download(Output(output_id=output_id, type="text", url="x"), tmp_path)
    assert path.parent == tmp_path
    assert path.name == name.replace("_._.._", "_._.._")
    assert path.exists()


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
