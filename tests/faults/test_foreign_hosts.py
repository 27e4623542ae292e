"""The key goes to exactly our origin: a host beside it listens, and hears nothing that it should not."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from scripted import RUN_ID, Scripted, answer, generation, run, started
from secrets_of import KEY

from flora_async import Flora, FloraError, Run

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries", "fast_polls")]

ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}

TRICKS = [
    "http://{evil}/api/v1/runs/run_abc123",
    "http://{evil}",
    "//{evil}/api/v1/runs/run_abc123",
    "/\\{evil}/api/v1/runs/run_abc123",
    "\\\\{evil}\\api\\v1\\runs\\run_abc123",
    "http:{evil}/api/v1",
    "http:/{evil}/api/v1",
    "http:///{evil}/api/v1",
    "http:\\\\{evil}/api/v1",
    "HTTP://{evil}/api/v1/runs/run_abc123",
    "hTTp://{evil}/",
    " http://{evil}/",
    "\thttp://{evil}/",
    "http://{evil}\n/",
    "http://{ours}@{evil}/api/v1/runs/run_abc123",
    "http://{ours}:x@{evil}/api/v1/runs/run_abc123",
    "http://{evil}#@{ours}/api/v1/runs/run_abc123",
    "http://{evil}?@{ours}/api/v1/runs/run_abc123",
    "http://{evil}/@{ours}/api/v1/runs/run_abc123",
    "http://{evil}\\@{ours}/api/v1/runs/run_abc123",
    "http://{ours}\\@{evil}/api/v1/runs/run_abc123",
    "http://{ours}%40{evil}/api/v1/runs/run_abc123",
    "http://{ours}%2f@{evil}/api/v1/runs/run_abc123",
    "http://{ours};@{evil}/api/v1/runs/run_abc123",
    "http://{ours}/api/v1/../../../{evil}/",
    "http://{ours}/api/v1//{evil}/",
    "http://{ours}/api/v1/runs/run_abc123?next=http://{evil}/",
    "http://{ours}/redirect?to=http://{evil}/",
    "http://localhost:{port}/api/v1/runs/run_abc123",
    "http://127.1:{port}/api/v1/runs/run_abc123",
    "http://2130706433:{port}/api/v1/runs/run_abc123",
    "http://0x7f.1:{port}/api/v1/runs/run_abc123",
    "http://0177.0.0.1:{port}/api/v1/runs/run_abc123",
    "http://[::ffff:127.0.0.1]:{port}/api/v1/runs/run_abc123",
    "http://127.0.0.1:{port}/api/v1/runs/run_abc123",
    "http://127.0.0.1:0{port}/api/v1/runs/run_abc123",
    "http://127。0。0。1:{port}/api/v1/runs/run_abc123",
    "http://127.0.0.1.:{port}/api/v1/runs/run_abc123",
    "http://0.0.0.0:{port}/api/v1/runs/run_abc123",
    "https://{evil}/api/v1/runs/run_abc123",
    "ws://{evil}/api/v1/runs/run_abc123",
    "ftp://{evil}/",
    "{evil}/api/v1/runs/run_abc123",
]


class Heard(msgspec.Struct):
    """What a stranger has heard."""

    where: str
    port: int
    bytes: bytearray


@pytest.fixture
async def stranger() -> AsyncIterator[Heard]:
    """Listen on every address of this machine, and write down all that comes."""
    heard = Heard("", 0, bytearray())

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.bytes += await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(listen, "0.0.0.0", 0)
    heard.port = server.sockets[0].getsockname()[1]
    heard.where = f"127.0.0.1:{heard.port}"
    async with server:
        yield heard


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_stranger_never_hears_the_key(trick: str, stranger: Heard, tmp_path: Path) -> None:
    """As a poll_url, a redirect, a cursor and an output; whatever any parser makes of the URL."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url, max_retries=0, timeout=2) as flora:
        ours = server.base_url.removeprefix("http://").removesuffix("/api/v1")
        url = trick.format(evil=stranger.where, ours=ours, port=stranger.port)
        server.on("POST", "/generate", answer(started(poll_url=url), 201))
        server.on("GET", f"/runs/{RUN_ID}", answer(run("running", poll_url=url)), answer(run(poll_url=url)))
        begun = await flora.generations.create(**ORDER)
        with suppress(FloraError):
            await flora.wait_for_run(begun, timeout=5)
        listed = {"generations": [generation("run_1", poll_url=url)], "meta": {"next_cursor": url}}
        server.on("GET", "/generations", answer(listed))
        with suppress(FloraError):
            async for _ in flora.generations.list():
                pass
        # The stranger hears of an output that is said to be with him; but not the key.
        done = run(outputs=[{"output_id": "1", "type": "imageUrl", "url": url}])
        with suppress(FloraError):
            await flora.download(msgspec.convert(done, Run), tmp_path)
        assert KEY.encode() not in stranger.bytes
        heard_before = len(stranger.bytes)
        if url.isprintable() and url.isascii():
            away = answer(b"", 307, {"Location": url})
            server.on("POST", "/generate", away).on("GET", f"/runs/{RUN_ID}", away)
            for call in (flora.generations.create(**ORDER), flora.generations.retrieve(RUN_ID)):
                with suppress(FloraError):
                    await call
        assert len(stranger.bytes) == heard_before
        assert server.count("GET", f"/runs/{RUN_ID}") >= 1


async def test_a_proxy_of_a_strangers(stranger: Heard) -> None:
    """To an https API it is told where, and nothing else; to a plain one it is not used."""
    proxy = f"http://{stranger.where}"
    async with Flora(KEY, base_url="https://app.flora.ai/api/v1", proxy=proxy, max_retries=0, timeout=2) as flora:
        with suppress(FloraError):
            await flora.generations.retrieve(RUN_ID)
    assert stranger.bytes.startswith(b"CONNECT app.flora.ai:443")
    assert KEY.encode() not in stranger.bytes


def test_there_are_enough_tricks() -> None:
    """Thirty at least."""
    assert len(set(TRICKS)) >= 30
    assert socket.gethostbyname("localhost") == "127.0.0.1"
