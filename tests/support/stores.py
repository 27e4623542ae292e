"""A scripted FLORA that takes files: its answers to the operations of assets, and the store beside it."""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP

from aiohttp import web
from scripted import Asked, RawResponse, Scripted, answer

PNG = b"\x89PNG\r\n\x1a\n"
ASSET_ID = "asset_1"
URL = "https://media.flora.ai/node-inputs/x.png"
LARGE = PNG + bytes(4 * 2**20)
"""A file that is too large for one request."""


def pending(server: Scripted | None = None, asset_id: str = ASSET_ID, **more: object) -> dict[str, object]:
    """Return a reserved asset, with the form for the store at ``/store`` of a server."""
    form = {
        "url": f"{server.base_url.removesuffix('/api/v1')}/store?signature=secret" if server else None,
        "method": "POST",
        "content_type": "multipart/form-data",
        "file_field": "file",
        "form_fields": {"key": "uploads/1", "policy": "cG9saWN5", "x-goog-signature": "5e"},
    }
    return {
        "asset_id": asset_id,
        "status": "pending_upload",
        "uploaded_via": "signed_url",
        "url": "",
        "visibility": "workspace",
        "workspace_id": "ws_1",
        "expires_at": "2026-11-25T21:00:00.000Z",
        **({"upload": form} if server else {}),
        **more,
    }


def ready(asset_id: str = ASSET_ID, **more: object) -> dict[str, object]:
    """Return an asset that can be used."""
    return {**pending(asset_id=asset_id), "status": "ready", "url": URL, **more}


def taking(server: Scripted, *at_store: RawResponse) -> Scripted:
    """Write the answers of a reserved upload, with those of its store, into a scripted FLORA."""
    ways = {
        ("POST", "/assets"): answer(pending(server), 201),
        ("POST", f"/assets/{ASSET_ID}/complete"): answer(pending()),
        ("POST", f"/assets/{ASSET_ID}/retry"): answer(pending(server)),
        ("GET", f"/assets/{ASSET_ID}"): answer(ready()),
    }
    for (method, path), said in ways.items():
        server.on(method, path, said)
    return server.on("POST", "/store", *(at_store or (stored(204),)))


def stored(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> RawResponse:
    """Answer as a store does."""

    async def say(_request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, headers=headers)

    return say


def parts_of(asked: Asked) -> list[tuple[str, str | None, bytes]]:
    """Return the parts of a form as another parser reads them: name, file name and bytes."""
    head = f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode()
    whole = BytesParser(policy=HTTP).parsebytes(head + asked.body)
    parts: list[tuple[str, str | None, bytes]] = []
    for part in whole.iter_parts():
        assert isinstance(part, Message)
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name = part.get_param("name", header="content-disposition")
        parts.append((str(name), part.get_filename(), content))
    return parts


def requests_of(server: Scripted) -> list[str]:
    """Return the requests that a server was sent, in order."""
    return [f"{asked.method} {asked.path}" for asked in server.asked]
