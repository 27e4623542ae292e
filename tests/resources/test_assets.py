"""``flora.assets`` against a scripted FLORA: three ways of an upload, each error, and the steps one by one."""

import asyncio
import io
import os
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from scripted import RawResponse, Scripted, answer, error, hang_up, silence, tasks_of_ours
from stores import ASSET_ID, LARGE, PNG, URL, parts_of, pending, ready, requests_of, stored, taking

from flora_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    Asset,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    ConflictError,
    Flora,
    FloraError,
    InternalServerError,
    ListedAsset,
    NotFoundError,
    PaginationError,
    ResponseDecodeError,
    UploadError,
    UploadTimeoutError,
)
from flora_async._resources import assets
from flora_async._resources.upload_sources import open_source

pytestmark = pytest.mark.anyio

KEY = "sk_test_secret"


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Run a scripted FLORA."""
    async with Scripted() as scripted:
        yield scripted


@pytest.fixture
async def flora(server: Scripted, monkeypatch: pytest.MonkeyPatch, fast_retries: None) -> AsyncIterator[Flora]:
    """Open a client that waits for little."""
    monkeypatch.setattr(assets, "READY_DELAYS", (0.001,))
    async with Flora(KEY, base_url=server.base_url) as client:
        yield client


async def upload(flora: Flora, source: Any = LARGE, **more: Any) -> Asset:
    """Upload into a workspace."""
    return await flora.assets.upload(source, workspace_id="ws_1", **more)


# -- the three ways


async def test_a_small_file_is_one_request(server: Scripted, flora: Flora) -> None:
    """Up to 4 MiB go to FLORA as a form: the fields first, the file last, and no ``source``."""
    server.on("POST", "/assets", answer(ready(), 201))
    content = PNG + bytes(assets.DIRECT_BYTES - len(PNG))
    asset = await upload(flora, content, project_id="prj_1", folder="products", file_name='a "b"\r\nc.png')
    assert (asset.asset_id, asset.url, asset.ready) == (ASSET_ID, URL, True)
    (asked,) = server.asked
    assert parts_of(asked) == [
        ("workspace_id", None, b"ws_1"),
        ("project_id", None, b"prj_1"),
        ("folder", None, b"products"),
        ("file_name", None, b'a "b"\r\nc.png'),
        ("content_type", None, b"image/png"),
        ("file", "a %22b%22%0D%0Ac.png", content),
    ]
    assert asked.headers["authorization"] == f"Bearer {KEY}"


async def test_a_large_file_is_reserved_sent_to_the_store_and_completed(server: Scripted, flora: Flora) -> None:
    """One byte above 4 MiB: the store gets FLORA's fields as they are, then the file, and not the key."""
    taking(server)
    content = LARGE[: assets.DIRECT_BYTES + 1]
    asset = await upload(flora, content, file_name="big.png")
    assert (asset.asset_id, asset.url) == (ASSET_ID, URL)
    assert requests_of(server) == [
        "POST /assets",
        "POST /store",
        f"POST /assets/{ASSET_ID}/complete",
        f"GET /assets/{ASSET_ID}",
    ]
    reserve, store, complete, _ = server.asked
    assert reserve.body == (
        b'{"source":"signed-url","workspace_id":"ws_1","file_name":"big.png","content_type":"image/png"}'
    )
    assert complete.body == b"{}"
    assert parts_of(store) == [
        ("key", None, b"uploads/1"),
        ("policy", None, b"cG9saWN5"),
        ("x-goog-signature", None, b"5e"),
        ("file", "big.png", content),
    ]
    assert store.headers["content-length"] == str(len(store.body))
    assert "authorization" not in store.headers
    assert KEY not in str(dict(store.headers)) + store.body[:2000].decode(errors="replace")
    assert {"idempotency-key" in asked.headers for asked in (reserve, complete)} == {True}


async def test_an_https_url_is_fetched_by_flora(server: Scripted, flora: Flora) -> None:
    """The URL goes as ``source``, with the last part of its path as the name."""
    server.on("POST", "/assets", answer(ready(uploaded_via="url"), 201))
    asset = await upload(flora, "https://example.com/pictures/a%20mug.png?size=2")
    assert asset.uploaded_via == "url"
    (asked,) = server.asked
    assert asked.body == (
        b'{"source":"https://example.com/pictures/a%20mug.png?size=2","workspace_id":"ws_1","file_name":"a mug.png"}'
    )


@pytest.mark.parametrize(
    "url",
    ["http://example.com/a.png", "https://localhost/a", "https://10.0.0.1/a", "ftp://x/y", "https://u:p@x/y"],
)
async def test_other_urls_are_refused_at_once(url: str) -> None:
    """A source is https and on the public internet, as FLORA demands; nothing is sent."""
    async with Flora(KEY, base_url="https://app.flora.ai/api/v1") as flora:
        with pytest.raises(ConfigurationError, match="source"):
            await upload(flora, url)


# -- the sources


class Opaque:
    """A binary file that cannot be rewound, and returns few bytes at once."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        """Return at most a hundred thousand bytes."""
        return self._file.read(min(size, 100_000))


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    """Yield bytes in pieces."""
    for start in range(0, len(content), 70_000):
        yield content[start : start + 70_000]


@pytest.mark.parametrize("size", [1000, assets.DIRECT_BYTES + 1000])
@pytest.mark.parametrize("kind", ["path", "str", "bytes", "bytearray", "memoryview", "file", "raw", "pipe", "stream"])
async def test_sources(server: Scripted, flora: Flora, tmp_path: Path, kind: str, size: int) -> None:
    """A path, bytes, a file from its position on, a pipe and a stream all arrive whole, small and large."""
    taking(server)
    if size < assets.DIRECT_BYTES:
        server.on("POST", "/assets", answer(ready(), 201))
    content = PNG + os.urandom(size)
    path = tmp_path / "mug.png"
    path.write_bytes(content)
    raw = path.open("rb", buffering=0)
    file = io.BytesIO(b"before" + content)
    file.seek(6)
    sources: dict[str, Any] = {
        "path": path,
        "str": str(path),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "file": file,
        "raw": raw,
        "pipe": Opaque(content),
        "stream": pieces(content),
    }
    try:
        await upload(flora, sources[kind])
    finally:
        raw.close()
    *_, sent = next(parts_of(asked) for asked in server.asked if b'name="file"' in asked.body)
    assert sent == ("file", "mug.png" if kind in ("path", "str", "raw") else "upload.png", content)
    assert not file.closed


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "it is empty"),
        (io.StringIO("text"), "Open it in binary mode"),
        (3, "not int"),
        ("no_such_file.png", "No such file"),
        (Path(), "it is a folder"),
        (b"plain text", "does not accept its type"),
        (b"BM" + bytes(100), "does not accept image/bmp"),
        (io.BytesIO(b"\x1a\x45\xdf\xa3" + b"matroska"), "does not accept video/x-matroska"),
    ],
)
async def test_unusable_sources_send_nothing(server: Scripted, flora: Flora, source: Any, message: str) -> None:
    """A source that cannot be uploaded is refused with its reason, before any request."""
    with pytest.raises(ConfigurationError, match=message):
        await upload(flora, source)
    assert not server.asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"content_type": "image/png\r\nX: y"}, "content_type must be like"),
        ({"content_type": "text/plain"}, "does not accept text/plain"),
        ({"file_name": ""}, "file_name must not be empty"),
        ({"workspace_id": "prj_1"}, "workspace_id must start"),
        ({"project_id": "ws_1"}, "project_id must start"),
        ({"timeout": 0}, "timeout must be"),
        ({"on_progress": 3}, "on_progress must be"),
    ],
)
async def test_unusable_arguments_send_nothing(
    server: Scripted, flora: Flora, arguments: dict[str, Any], message: str
) -> None:
    """Each argument is checked before anything is sent."""
    with pytest.raises(ConfigurationError, match=message):
        await flora.assets.upload(PNG, **{"workspace_id": "ws_1", **arguments})
    assert not server.asked


async def test_a_data_url_is_refused_with_the_fix(flora: Flora) -> None:
    """Its text is not taken for the name of a file."""
    with pytest.raises(ConfigurationError, match="b64decode"):
        await upload(flora, "data:image/png;base64," + "A" * 5000)


@pytest.mark.virtual_time
async def test_the_timeout_includes_the_copy_of_a_stream(server: Scripted, flora: Flora) -> None:
    """A stream that stands still ends the upload in time, and is closed; nothing is sent."""
    closed = False

    async def endless() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield PNG
            await asyncio.Event().wait()
        finally:
            closed = True

    stream = endless()
    with pytest.raises(UploadTimeoutError, match="the file was not uploaded"):
        await upload(flora, stream, timeout=3)
    assert closed
    assert not server.asked


@pytest.mark.parametrize("in_memory", [False, True])
async def test_an_open_file_in_several_uploads(flora: Flora, tmp_path: Path, in_memory: bool) -> None:
    """Uploads of one open file, at the same time or one after the other, do not move it under each other."""
    content = os.urandom(3 * 2**20)
    (tmp_path / "clip").write_bytes(content)
    with io.BytesIO(content) if in_memory else (tmp_path / "clip").open("rb") as file:
        file.seek(10)

        async def read() -> bytes:
            async with open_source(file) as source:
                return b"".join(
                    [await source.read(at, min(2**16, source.size - at)) for at in range(0, source.size, 2**16)]
                )

        assert all(each == content[10:] for each in await asyncio.gather(*(read() for _ in range(8))))
        assert await read() == content[10:]
        assert file.tell() == 10


async def test_a_pipe_in_the_file_system_does_not_block(flora: Flora, tmp_path: Path) -> None:
    """A named pipe, which blocks until it has a writer, is refused."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigurationError, match="no regular file"):
        await upload(flora, tmp_path / "pipe")


async def test_a_stream_that_fails_or_yields_text(server: Scripted, flora: Flora) -> None:
    """The caller's own exception leaves as it is; text is refused; nothing is sent."""

    async def broken() -> AsyncIterator[Any]:
        yield b"x"
        raise LookupError

    async def text() -> AsyncIterator[Any]:
        yield "x"

    with pytest.raises(LookupError):
        await upload(flora, broken())
    with pytest.raises(ConfigurationError, match="yielded str, not bytes"):
        await upload(flora, text())
    assert not server.asked


# -- again from the first byte


@pytest.mark.parametrize(
    ("first", "renewed"),
    [
        (hang_up, 0),
        (stored(500), 0),
        (stored(503), 0),
        (stored(429), 0),
        (stored(403, b"<Error><Code>AccessDenied</Code></Error>"), 1),
        (stored(400), 1),
    ],
)
async def test_a_cut_or_expired_upload_is_sent_again(
    server: Scripted, flora: Flora, first: RawResponse, renewed: int
) -> None:
    """After a cut or a 5xx the same form is used, after a 400 or 403 a fresh one; each time from the first byte."""
    taking(server, first, first, stored(201))
    seen: list[tuple[int, int]] = []
    asset = await upload(flora, on_progress=lambda sent, total: seen.append((sent, total)))
    assert asset.ready
    assert server.count("POST", "/store") == 3
    assert server.count("POST", f"/assets/{ASSET_ID}/retry") == 2 * renewed
    assert server.count("POST", "/assets") == 1
    last = [asked for asked in server.asked if asked.path == "/store"][-1]
    assert parts_of(last)[-1][2] == LARGE
    assert [sent for sent, _ in seen].count(0) == 3
    assert seen[-1] == (len(LARGE), len(LARGE))


async def test_a_reservation_that_flora_does_not_renew_is_replaced(server: Scripted, flora: Flora) -> None:
    """A conflict of ``retry`` leads to another asset."""
    taking(server, stored(403), stored(204))
    server.on("POST", "/assets", answer(pending(server), 201), answer(pending(server, "asset_2"), 201))
    server.on("POST", f"/assets/{ASSET_ID}/retry", error(409, "conflict"))
    server.on("POST", "/assets/asset_2/complete", answer(ready("asset_2")))
    assert (await upload(flora)).asset_id == "asset_2"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((stored(403),), "the store refused the file with 403"),
        ((stored(400, b"<Code>EntityTooLarge</Code>"),), "the store refused the file with 400 EntityTooLarge"),
        ((stored(302, headers={"location": "https://evil.example/"}),), "refused the file with 302"),
        ((stored(405),), "refused the file with 405"),
        ((hang_up,), "the connection broke"),
    ],
)
async def test_a_store_that_refuses(
    server: Scripted, flora: Flora, answers: tuple[RawResponse, ...], message: str
) -> None:
    """The error names the asset and the reason; a redirect is not followed."""
    taking(server, *answers)
    with pytest.raises((UploadError, APIConnectionError), match=message) as caught:
        await upload(flora)
    assert caught.value.asset_id == ASSET_ID
    assert ASSET_ID in str(caught.value)
    assert "secret" not in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).asset_id == ASSET_ID
    assert server.count("POST", "/store") == (3 if "403" in message or "broke" in message else 1)


async def test_a_lost_response_to_a_small_upload(server: Scripted, flora: Flora) -> None:
    """A repeated key proves an asset whose id was lost: the file goes out under another key."""
    server.on("POST", "/assets", hang_up, error(409, "idempotency_duplicate"), answer(ready("asset_2"), 201))
    assert (await upload(flora, PNG)).asset_id == "asset_2"
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert keys[0] == keys[1] != keys[2]


async def test_a_lost_response_to_complete(server: Scripted, flora: Flora) -> None:
    """A conflict of ``complete`` after a cut means that it was executed."""
    taking(server).on("POST", f"/assets/{ASSET_ID}/complete", hang_up, error(409, "conflict"))
    assert (await upload(flora)).ready


async def test_a_file_that_becomes_shorter(server: Scripted, flora: Flora, tmp_path: Path) -> None:
    """It is no fault of the network: the upload is not repeated."""
    path = tmp_path / "mug.png"
    path.write_bytes(LARGE)

    async def reserve(request: web.Request) -> web.StreamResponse:
        os.truncate(path, 1000)
        return await answer(pending(server), 201)(request)

    taking(server, stored(204)).on("POST", "/assets", reserve)
    with pytest.raises(UploadError, match="became shorter") as caught:
        await upload(flora, path)
    assert caught.value.asset_id == ASSET_ID
    assert server.count("POST", "/assets") == 1


async def test_an_exception_of_on_progress_ends_the_upload(server: Scripted, flora: Flora) -> None:
    """It leaves as it is, with a note of the asset that stays incomplete."""
    taking(server)

    def refuse(sent: int, total: int) -> None:
        if sent > 10**6:
            raise LookupError(total)

    with pytest.raises(LookupError) as caught:
        await upload(flora, on_progress=refuse)
    assert caught.value.__notes__ == [f"the upload of {ASSET_ID} is incomplete"]
    assert server.count("POST", f"/assets/{ASSET_ID}/complete") == 0


# -- ready, late or never


@pytest.mark.virtual_time
async def test_an_asset_that_takes_a_minute(server: Scripted) -> None:
    """It is looked at often at first, then every 5 seconds."""
    loop = asyncio.get_running_loop()
    ready_at = loop.time() + 60

    async def state(request: web.Request) -> web.StreamResponse:
        return await answer(ready() if loop.time() >= ready_at else pending(name=None, width=None, news=[1]))(request)

    taking(server).on("GET", f"/assets/{ASSET_ID}", state)
    async with Flora(KEY, base_url=server.base_url) as flora:
        assert (await upload(flora)).ready
    assert 60 <= loop.time() - ready_at + 60 < 66
    assert 10 < server.count("GET", f"/assets/{ASSET_ID}") < 22


@pytest.mark.virtual_time
@pytest.mark.parametrize(("given", "seconds"), [(None, 120 + len(LARGE) / 125_000), (7.0, 7.0)])
async def test_an_asset_that_is_never_ready(server: Scripted, given: float | None, seconds: float) -> None:
    """The upload ends within its timeout, which grows with the file by default, and names the asset."""
    loop = asyncio.get_running_loop()
    taking(server).on("GET", f"/assets/{ASSET_ID}", answer(pending()))
    async with Flora(KEY, base_url=server.base_url) as flora:
        began = loop.time()
        with pytest.raises(UploadTimeoutError, match="not ready, within") as caught:
            await upload(flora, timeout=given)
        assert seconds - 0.001 < loop.time() - began < seconds + 1
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.asset_id == ASSET_ID


@pytest.mark.virtual_time
async def test_a_store_that_stands_still(server: Scripted) -> None:
    """A store without a sign of life for the client's timeout gets the file again."""
    taking(server, silence, stored(204))
    async with Flora(KEY, base_url=server.base_url, timeout=20) as flora:
        assert (await upload(flora)).ready
        taking(server, silence)
        with pytest.raises(APITimeoutError, match="accepted no byte for 20 s") as caught:
            await upload(flora)
    assert caught.value.asset_id == ASSET_ID


@pytest.mark.parametrize("path", ["/assets", f"/assets/{ASSET_ID}"])
async def test_an_asset_that_has_failed(server: Scripted, flora: Flora, path: str) -> None:
    """FLORA's reason is in the error, with the id."""
    failed = pending(status="failed", failure_message="151 megapixels", url=None)
    server.on("POST", "/assets", answer(failed if path == "/assets" else pending(), 201))
    server.on("GET", f"/assets/{ASSET_ID}", answer(failed))
    with pytest.raises(UploadError, match=f"151 megapixels .{ASSET_ID}") as caught:
        await upload(flora, PNG)
    assert caught.value.asset_id == ASSET_ID


async def test_a_new_asset_may_be_missing_for_a_moment(server: Scripted, flora: Flora) -> None:
    """Three 404 in a row are waited out, a fourth one is raised."""
    missing = error(404, "not_found")
    taking(server).on("GET", f"/assets/{ASSET_ID}", *[missing] * 3, answer(pending()), *[missing] * 3, answer(ready()))
    assert (await upload(flora)).ready
    taking(server).on("GET", f"/assets/{ASSET_ID}", missing)
    with pytest.raises(NotFoundError) as caught:
        await upload(flora)
    assert caught.value.asset_id == ASSET_ID


# -- errors, cancellation, forms


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, APIError), (401, AuthenticationError), (402, APIError), (403, APIError), (500, InternalServerError)],
)
@pytest.mark.parametrize("step", ["create", "complete", "retrieve"])
async def test_each_documented_error(
    server: Scripted, flora: Flora, status: int, kind: type[FloraError], step: str
) -> None:
    """FLORA's error keeps its class at each step, and has the asset's id once there is one."""
    taking(server)
    paths = {
        "create": ("POST", "/assets"),
        "complete": ("POST", f"/assets/{ASSET_ID}/complete"),
        "retrieve": ("GET", f"/assets/{ASSET_ID}"),
    }
    server.on(*paths[step], error(status))
    if (status, step) == (500, "retrieve"):
        with pytest.raises(UploadTimeoutError):
            await upload(flora, timeout=0.2)
        return
    with pytest.raises(kind) as caught:
        await upload(flora)
    assert caught.value.asset_id == (None if step == "create" else ASSET_ID)


async def test_an_undecodable_response_names_its_asset(server: Scripted, flora: Flora) -> None:
    """A record with a wrong type is no riddle: the id is in the error."""
    server.on("POST", "/assets", answer({"asset_id": ASSET_ID, "status": "ready", "url": 3}, 201))
    with pytest.raises(ResponseDecodeError) as caught:
        await upload(flora, PNG)
    assert caught.value.asset_id == ASSET_ID
    server.on("POST", "/assets", answer({"asset_id": "../x", "status": "ready"}, 201))
    with pytest.raises(ResponseDecodeError, match="asset_id"):
        await upload(flora, PNG)


@pytest.mark.parametrize("where", ["/assets", "/store", f"/assets/{ASSET_ID}"])
async def test_a_cancelled_upload_leaves_nothing_behind(
    server: Scripted, flora: Flora, tmp_path: Path, where: str
) -> None:
    """Cancelled at any step, it ends at once, closes its file and leaves no task."""
    reached = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        reached.set()
        return await silence(request)

    taking(server).on("GET" if "_" in where else "POST", where, hang)
    path = tmp_path / "mug.png"
    path.write_bytes(LARGE)
    before = tasks_of_ours()
    upload_task = asyncio.create_task(upload(flora, path))
    await reached.wait()
    upload_task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await upload_task
    notes = getattr(caught.value, "__notes__", [])
    assert (f"the upload of {ASSET_ID} is incomplete" in notes) == (where != "/assets")
    assert tasks_of_ours() - before <= {upload_task}


async def test_a_client_that_is_closed_during_an_upload(server: Scripted, flora: Flora) -> None:
    """The upload ends with ClientClosedError, and names its asset."""
    reached = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        reached.set()
        return await silence(request)

    taking(server, hang)
    upload_task = asyncio.create_task(upload(flora))
    await reached.wait()
    await flora.close()
    with pytest.raises(ClientClosedError) as caught:
        await upload_task
    assert caught.value.asset_id == ASSET_ID


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"form_fields": {"file": "x"}}, "beside the file"),
        ({"form_fields": {"FILE": "x"}}, "beside the file"),
        ({"form_fields": {'a"\r\nX-Injected: 1': "x"}}, "which cannot be sent"),
        ({"form_fields": {"": "x"}}, "which cannot be sent"),
        ({"form_fields": {"a": 1}}, "no text in its field"),
        ({"form_fields": {"a": None}}, "no text in its field"),
        ({"form_fields": {str(number): "x" for number in range(10_000)}}, "has 10000 fields"),
        ({"form_fields": {"a": "x" * 2**21}}, "At most 1048576"),
        ({"file_field": 'x"\r\n\r\ny'}, "which cannot be sent"),
        ({"method": "DELETE"}, "neither POST nor PUT"),
        ({"url": None}, "named no address"),
    ],
)
async def test_a_hostile_form_is_refused(server: Scripted, flora: Flora, form: dict[str, object], message: str) -> None:
    """A form that a store could read in another way than FLORA is not sent: one clear error, with the asset's id."""
    taking(server)
    reserved = pending(server)
    upload_form: Any = reserved["upload"]
    server.on("POST", "/assets", answer({**reserved, "upload": {**upload_form, **form}}, 201))
    with pytest.raises(UploadError, match=message) as caught:
        await upload(flora)
    assert caught.value.asset_id == ASSET_ID
    assert server.count("POST", "/store") == 0


async def test_line_breaks_in_values_stay_in_their_part(server: Scripted, flora: Flora) -> None:
    """A value with the bytes of a boundary or of headers is text: another parser reads it back as it was."""
    value = '\r\n--flora-\r\nContent-Disposition: form-data; name="file"\r\n\r\nX'
    taking(server)
    reserved = pending(server)
    upload_form: Any = reserved["upload"]
    server.on("POST", "/assets", answer({**reserved, "upload": {**upload_form, "form_fields": {"a": value}}}, 201))
    await upload(flora)
    store = next(asked for asked in server.asked if asked.path == "/store")
    assert [(name, content) for name, _, content in parts_of(store)] == [("a", value.encode()), ("file", LARGE)]


@pytest.mark.parametrize("nothing", [None, {}])
async def test_both_readings_of_upload_url(server: Scripted, flora: Flora, nothing: object) -> None:
    """Without ``upload``, ``upload_url`` is JSON text of a form, or an address for a PUT."""
    taking(server)
    store = f"{server.base_url.removesuffix('/api/v1')}/store"
    form = f'{{"url": "{store}", "fields": {{"key": "a"}}}}'
    server.on("POST", "/assets", answer(pending(upload=nothing, upload_url=form), 201))
    await upload(flora)
    assert [name for name, _, _ in parts_of(server.asked[1])] == ["key", "file"]
    server.on("POST", "/assets", answer(pending(upload=nothing, upload_url=store), 201)).on(
        "PUT", "/store", stored(200)
    )
    await upload(flora)
    put = next(asked for asked in server.asked if asked.method == "PUT")
    assert (put.body, put.headers["content-type"]) == (LARGE, "image/png")
    assert "authorization" not in put.headers


# -- the steps one by one


async def test_the_steps_one_by_one(server: Scripted, flora: Flora) -> None:
    """Create, retry, complete and retrieve send what FLORA documents, and return its records."""
    taking(server)
    reserved = await flora.assets.create(workspace_id="ws_1", content_type="image/tiff", file_name="x.tiff")
    assert reserved.upload is not None
    assert reserved.upload.form_fields == {"key": "uploads/1", "policy": "cG9saWN5", "x-goog-signature": "5e"}
    assert "policy" not in repr(reserved)
    assert (await flora.assets.retry(ASSET_ID)).upload is not None
    assert not (await flora.assets.complete(ASSET_ID)).ready
    server.on(
        "GET",
        f"/assets/{ASSET_ID}",
        answer(ready(created_at="2026-11-25T10:00:00Z", size_bytes=None, description=None, mystery={"a": 1})),
    )
    asset = await flora.assets.retrieve(ASSET_ID)
    assert asset.created is not None
    assert asset.created.isoformat() == "2026-11-25T10:00:00+00:00"
    server.on("POST", f"/assets/{ASSET_ID}/complete", error(409, "conflict"))
    with pytest.raises(ConflictError):
        await flora.assets.complete(ASSET_ID)
    with pytest.raises(ConfigurationError):
        await flora.assets.retrieve("run_1")


@pytest.mark.parametrize("created_at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "yesterday"])
def test_a_time_that_no_datetime_has_is_unknown(created_at: str) -> None:
    """The record is read, and its raw value kept."""
    asset = ListedAsset(asset_id=ASSET_ID, created_at=created_at)
    assert asset.created is None
    assert asset.created_at == created_at


async def test_list(server: Scripted, flora: Flora) -> None:
    """It walks the pages, with nulls where FLORA has them, and stops at a repeated cursor."""
    item = {"asset_id": None, "status": "ready", "uploaded_via": "canvas", "content_type": "image/png", "node_id": "n1"}
    server.on(
        "GET",
        "/assets",
        answer({"assets": [ready(created_at=1_790_000_000_000)], "meta": {"next_cursor": "c1"}}),
        answer({"assets": [item], "meta": {"next_cursor": None, "total_estimate": None}}),
    )
    found = [asset async for asset in flora.assets.list(workspace_id="ws_1", project_id="prj_1", query="mug", limit=1)]
    assert [asset.asset_id for asset in found] == [ASSET_ID, None]
    assert found[0].created is not None
    assert found[0].created.year == 2026
    first, second = (asked.query for asked in server.asked)
    assert first == {"workspace_id": "ws_1", "project_id": "prj_1", "query": "mug", "limit": "1"}
    assert second == {**first, "cursor": "c1"}
    server.on("GET", "/assets", answer({"assets": [], "meta": {"next_cursor": "c1"}}))
    server.asked.clear()
    with pytest.raises(PaginationError):
        _ = [asset async for asset in flora.assets.list()]
    assert server.asked[0].query == {"limit": "100"}
    with pytest.raises(ConfigurationError):
        flora.assets.list(limit=0)


async def test_the_list_of_assets_behaves_like_other_lists(server: Scripted, flora: Flora) -> None:
    """Tasks share its iterator, an odd item hides no other, ``await`` is answered with the right way, and it closes."""
    odd = {"asset_id": "asset_odd", "status": "ready", "created_at": 1, "size_bytes": "12"}
    items = [ready(f"asset_{number}", created_at=1) for number in range(4)]
    server.on(
        "GET",
        "/assets",
        answer({"assets": [items[0], odd, items[1]], "meta": {"next_cursor": "c1"}}),
        answer({"assets": items[1:], "meta": {"next_cursor": None}}),
    )
    listed = flora.assets.list(timeout=5)
    iterator = aiter(listed)
    found = [await one for one in asyncio.as_completed([anext(iterator) for _ in range(4)])]
    assert sorted(str(asset.asset_id) for asset in found) == ["asset_0", "asset_1", "asset_2", "asset_3"]
    with pytest.raises(ResponseDecodeError, match="size_bytes"):
        await anext(iterator)
    with pytest.raises(ConfigurationError, match="Use async for asset in"):
        await listed  # type: ignore[misc]
    async with flora.assets.list() as again:
        assert len([asset async for asset in again.pages()]) == 1
