"""The key reaches no store, whatever URL FLORA names for the bytes of a file, and wherever a redirect leads."""

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from scripted import Scripted, answer
from secrets_of import KEY
from stores import ASSET_ID, LARGE, pending, ready, stored
from test_foreign_hosts import TRICKS

from flora_async import APIError, DownloadError, Flora, FloraError, UploadError
from flora_async._http.urls import media_url, parse_base_url

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries")]

PUBLIC = parse_base_url("https://app.flora.ai/api/v1")


@pytest.fixture
async def hosts() -> AsyncIterator[tuple[Scripted, Scripted]]:
    """Run FLORA and another host, which takes everything."""
    async with Scripted() as ours, Scripted() as evil:
        yield ours, evil


def show(server: Scripted) -> str:
    """Return all that a server was sent, but for the bytes of files."""
    return repr([(asked.path, asked.query, dict(asked.headers), asked.body[:2000]) for asked in server.asked])


async def upload(ours: Scripted, target: Any) -> None:
    """Upload a large file to the *target* that FLORA names."""
    server = ours.on("POST", "/assets", answer(pending(upload={"url": target, "form_fields": {"a": "b"}}), 201))
    server.on("POST", f"/assets/{ASSET_ID}/complete", answer(ready()))
    async with Flora(KEY, base_url=ours.base_url, timeout=5) as flora:
        with suppress(FloraError):
            await flora.assets.upload(LARGE, workspace_id="ws_1", timeout=3)


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_url_leads_the_key_to_a_store(hosts: tuple[Scripted, Scripted], trick: str) -> None:
    """Only FLORA's own operations carry the key: no other request does, to whatever host it goes."""
    ours, evil = hosts
    address = evil.base_url.split("/")[2]
    names = {"evil": address, "ours": ours.base_url.split("/")[2], "port": address.split(":")[1]}
    await upload(ours, trick.format(**names))
    assert KEY not in show(evil)
    for asked in ours.asked:
        assert ("authorization" in asked.headers) == asked.path.startswith("/assets"), asked


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["store", "flora"])
async def test_no_redirect_leads_the_key_or_the_file_away(
    hosts: tuple[Scripted, Scripted], status: int, where: str
) -> None:
    """Neither FLORA's redirect nor that of a store is followed."""
    ours, evil = hosts
    origin = evil.base_url.removesuffix("/api/v1")
    away = stored(status, headers={"location": f"{origin}/elsewhere"})
    evil.on("POST", "/store", away)
    if where == "store":
        await upload(ours, f"{origin}/store")
        assert [asked.path for asked in evil.asked] == ["/store"]
    else:
        ours.on("POST", "/assets", away)
        async with Flora(KEY, base_url=ours.base_url) as flora:
            for content in (LARGE, LARGE[:100]):
                with pytest.raises(FloraError):
                    await flora.assets.upload(content, workspace_id="ws_1")
        assert not evil.asked
    assert KEY not in show(evil)


@pytest.mark.parametrize(
    "url",
    [
        "http://storage.googleapis.com/b",
        "https://127.0.0.1/b",
        "https://localhost/b",
        "https://10.1.2.3/b",
        "https://192.168.1.1/b",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/b",
        "https://[::ffff:10.0.0.1]/b",
        "https://[fd00::1]/b",
        "https://2130706433/b",
        "https://0x7f.1/b",
        "https://storage.googleapis.com:8443/b",
        "https://user:pass@storage.googleapis.com/b",
        "file:///etc/passwd",
        "ftp://storage.googleapis.com/b",
        "https://",
        "",
    ],
)
def test_stores_are_public_https_hosts(url: str) -> None:
    """Uploads have the rules of downloads: https, its usual port, no private address; each error has its own class."""
    with pytest.raises(UploadError, match="the address of the upload"):
        media_url(PUBLIC, url, label="the address of the upload", error=UploadError)
    with pytest.raises(DownloadError, match="the output's url"):
        media_url(PUBLIC, url)


async def test_a_store_that_echoes_its_request(hosts: tuple[Scripted, Scripted]) -> None:
    """The error of a store holds neither the query nor the fields of its form."""
    ours, evil = hosts
    origin = evil.base_url.removesuffix("/api/v1")
    evil.on("POST", "/store", stored(418, b"signature=secret policy"))
    form = {"url": f"{origin}/store?signature=secret", "form_fields": {"policy": "credential"}}
    ours.on("POST", "/assets", answer(pending(upload=form), 201))
    async with Flora(KEY, base_url=ours.base_url) as flora:
        with pytest.raises(UploadError) as caught:
            await flora.assets.upload(LARGE, workspace_id="ws_1")
    assert not isinstance(caught.value, APIError)
    assert not any(word in str(caught.value) for word in ("secret", "credential", KEY))
