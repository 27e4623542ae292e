"""Uploads to the sandbox: FLORA's contract, and runs whose inputs are checked and shown."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from flora_async import (
    APIError,
    BadRequestError,
    ConflictError,
    Flora,
    NotFoundError,
    Order,
    RunFailedError,
    UploadError,
)
from flora_async.sandbox import Sandbox, _media

pytestmark = pytest.mark.anyio

PLACE: dict[str, Any] = {"workspace_id": "ws_demo", "project_id": "prj_demo"}
LARGE = b"\x89PNG\r\n\x1a\n" + bytes(4 * 2**20)


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Run a sandbox."""
    async with Sandbox(time_scale=0.001) as running:
        yield running


@pytest.fixture
async def flora(sandbox: Sandbox) -> AsyncIterator[Flora]:
    """Open a client."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as client:
        yield client


def red_picture() -> bytes:
    """Return a red PNG."""
    file = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 20, 20)).save(file, "PNG")
    return file.getvalue()


async def test_three_ways(sandbox: Sandbox, flora: Flora) -> None:
    """A small file, a large one and a URL become assets; the bytes are served without a key."""
    small = await flora.assets.upload(red_picture(), workspace_id="ws_demo", file_name="red.png")
    large = await flora.assets.upload(LARGE, workspace_id="ws_demo", project_id="prj_demo")
    by_url = await flora.assets.upload("https://example.com/blue.png", workspace_id="ws_demo")
    assert [asset.uploaded_via for asset in (small, large, by_url)] == ["direct", "signed_url", "url"]
    assert by_url.url == "https://example.com/blue.png"
    async with aiohttp.ClientSession() as session:
        for asset, content in ((small, red_picture()), (large, LARGE)):
            assert asset.url is not None
            async with session.get(asset.url) as response:
                assert (await response.read(), response.content_type) == (content, "image/png")
    listed = [asset async for asset in flora.assets.list(limit=1)]
    assert [asset.asset_id for asset in listed] == [by_url.asset_id, large.asset_id, small.asset_id]
    found = [asset async for asset in flora.assets.list(query="RED", workspace_id="ws_demo")]
    assert [(asset.name, asset.size_bytes) for asset in found] == [("red.png", len(red_picture()))]
    assert [asset.asset_id async for asset in flora.assets.list(project_id="prj_demo")] == [large.asset_id]
    assert sandbox._assets.refused_keys == 0


async def test_the_store_refuses_a_key(sandbox: Sandbox, flora: Flora) -> None:
    """A form with the API key or a cookie is refused; so is one without its signature, or after its time."""
    reserved = await flora.assets.create(workspace_id="ws_demo", content_type="image/png")
    form = reserved.upload
    assert form is not None
    assert form.url is not None
    assert form.url.split("/")[2] != sandbox.base_url.split("/")[2]

    async def post(fields: dict[str, Any], **headers: str) -> tuple[int, str]:
        data = aiohttp.FormData({**fields, "file": io.BytesIO(b"x")})
        async with aiohttp.ClientSession() as session, session.post(str(form.url), data=data, headers=headers) as said:
            return said.status, await said.text()

    fields = form.form_fields or {}
    assert (await post(fields, Authorization=f"Bearer {sandbox.api_key}"))[0] == 400
    assert (await post(fields, Cookie="session=1"))[0] == 400
    assert sandbox._assets.refused_keys == 2
    assert "SignatureDoesNotMatch" in (await post({**fields, "x-goog-signature": "0"}))[1]
    with pytest.raises(ConflictError):
        await flora.assets.complete(reserved.asset_id)
    assert (await post(fields))[0] == 204
    await flora.assets.complete(reserved.asset_id)
    with pytest.raises(ConflictError):
        await flora.assets.complete(reserved.asset_id)
    with pytest.raises(ConflictError):
        await flora.assets.retry(reserved.asset_id)


@pytest.mark.virtual_time
async def test_a_reservation_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 15 minutes the store refuses the form, and ``retry`` gives another."""
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url, timeout=2000) as flora:
        store = flora._transport.upload

        async def late(*arguments: Any) -> Any:
            if sandbox.requests["POST /assets"] == 1:
                await asyncio.sleep(901)
            return await store(*arguments)

        monkeypatch.setattr(flora._transport, "upload", late)
        asset = await flora.assets.upload(LARGE, workspace_id="ws_demo", timeout=2000)
        assert asset.ready
        assert sandbox.requests["POST /assets"] == 3  # create, retry, complete


@pytest.mark.virtual_time
async def test_names_request_outcomes() -> None:
    """A slow asset is awaited, a broken one is an error."""
    loop = asyncio.get_running_loop()
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        began = loop.time()
        await flora.assets.upload(LARGE, workspace_id="ws_demo", file_name="[slow].png")
        assert 60 <= loop.time() - began < 70
        with pytest.raises(UploadError, match="cannot be processed"):
            await flora.assets.upload(LARGE, workspace_id="ws_demo", file_name="[fail].png")


async def test_faults_at_the_store(sandbox: Sandbox, flora: Flora) -> None:
    """An upload that is cut twice by the store arrives."""
    sandbox.fail_next("reset", times=2, path="/bucket")
    assert (await flora.assets.upload(LARGE, workspace_id="ws_demo")).ready
    sandbox.fail_next(403, path="/bucket")
    with pytest.raises(APIError):  # the sandbox does not renew what has not expired, and a second asset works
        await flora.request("POST", "/assets/asset_none/retry")
    assert (await flora.assets.upload(LARGE, workspace_id="ws_demo")).ready


@pytest.mark.virtual_time
async def test_uploads_through_faults() -> None:
    """Lost, cut and refused responses at FLORA and at the store: each file arrives whole."""
    faults: dict[Any, float] = {"lost_reply": 0.12, "reset": 0.1, 503: 0.05, "half_reply": 0.05}
    async with (
        Sandbox(faults=faults, seed=5) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, max_retries=8) as flora,
    ):
        contents = [b"\x89PNG\r\n\x1a\n" + bytes([number]) * size for number in range(8) for size in (99, 5 * 2**20)]
        uploads = [flora.assets.upload(content, workspace_id="ws_demo", timeout=600) for content in contents]
        uploaded = await asyncio.gather(*uploads)
        for asset, content in zip(uploaded, contents, strict=True):
            assert asset.ready
            assert sandbox._assets._assets[asset.asset_id].read() == content


async def test_refusals(flora: Flora) -> None:
    """Each invalid field is named, as FLORA does."""
    with pytest.raises(BadRequestError) as caught:
        await flora.request(
            "POST", "/assets", json={"source": "signed-url", "project_id": "x", "content_type": "text/plain"}
        )
    assert {error.field for error in caught.value.fields} == {"workspace_id", "project_id", "content_type"}
    with pytest.raises(BadRequestError):
        await flora.request("POST", "/assets", json={"source": "http://example.com/a.png", "workspace_id": "ws_1"})
    with pytest.raises(NotFoundError):
        await flora.assets.retrieve("asset_unknown")
    with pytest.raises(BadRequestError):
        await flora.request("GET", "/assets/unknown")


async def test_a_small_form_that_is_too_large(sandbox: Sandbox) -> None:
    """More than 4 MiB at once are refused, and so is a form without a file."""
    headers = {"Authorization": f"Bearer {sandbox.api_key}"}
    async with aiohttp.ClientSession() as session:
        for fields, name in (({"file": io.BytesIO(LARGE)}, "file"), ({"workspace_id": "ws_1"}, "file")):
            data = aiohttp.FormData(fields, default_to_multipart=True)
            async with session.post(f"{sandbox.base_url}/assets", data=data, headers=headers) as response:
                assert response.status == 400
                assert [error["field"] for error in json.loads(await response.read())["error"]["fields"]] == [name]


# -- runs


@pytest.mark.parametrize(
    ("params", "code"),
    [
        (None, "GENERATION_INPUT_VALIDATION"),
        ({"image_url": "https://example.com/a.png"}, "GENERATION_INVALID_URL"),
        ({"image_url": "https://media.flora.ai.example.com/a.png"}, "GENERATION_INVALID_URL"),
        ({"image_url": "not a url"}, "GENERATION_INVALID_URL"),
        ({"image_url": "https://media.flora.ai/a.png"}, None),
        ({"image_url": "https://bucket.s3.amazonaws.com/a.png"}, None),
    ],
)
@pytest.mark.virtual_time
async def test_inputs_are_checked_when_a_run_begins(flora: Flora, params: dict[str, Any] | None, code: str) -> None:
    """A missing input, and one on a foreign host, fail the run; FLORA's own and listed hosts do not."""
    order = Order(type="video", prompt="it turns", model="sandbox-video-from-image", params=params, **PLACE)
    started = await flora.generations.create(order, check_params="off")
    if code is None:
        assert (await flora.wait_for_run(started)).succeeded
        return
    with pytest.raises(RunFailedError) as caught:
        await flora.wait_for_run(started)
    assert (caught.value.code, caught.value.advice) == (code, "change_input")


@pytest.mark.virtual_time
async def test_an_unready_asset_fails_the_run(flora: Flora) -> None:
    """The URL of an asset that was only reserved cannot be fetched."""
    reserved = await flora.assets.create(workspace_id="ws_demo", content_type="image/png")
    with pytest.raises(RunFailedError, match="GENERATION_INPUT_VALIDATION"):
        await flora.generate(type="video", prompt="it turns", params={"image_url": reserved.url}, **PLACE)


@pytest.mark.virtual_time
async def test_a_video_shows_the_uploaded_picture(flora: Flora, tmp_path: Path) -> None:
    """A photo in a file becomes a video of it, in one call."""
    photo = tmp_path / "red.png"
    photo.write_bytes(red_picture())
    run = await flora.generate(
        type="video", prompt="it turns", model="sandbox-video-from-image", params={"image_url": photo}, **PLACE
    )
    (path,) = await flora.download(run, tmp_path)
    with _media.av.open(path) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    for frame in (frames[0], frames[-1]):
        red, green, blue = frame.getpixel((frame.width // 2, frame.height // 3))
        assert red > 150
        assert max(green, blue) < 70
