"""The sandbox's assets: three ways to upload, and a store at a port of its own that refuses an API key."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeGuard
from urllib.parse import urlsplit

import msgspec
from aiohttp import BodyPartReader, web
from aiohttp.typedefs import Middleware
from msgspec import Struct

from flora_async._aio import run_in_thread
from flora_async._media_types import SIGNATURE_BYTES, UPLOAD_TYPES, content_type_of_file
from flora_async.sandbox._contract import RefusalError, parse_history_query, refusal
from flora_async.sandbox._runs import encode_cursor

STORE_PATH = "/bucket"
DIRECT_BYTES = 4 * 2**20
RESERVATION_SECONDS = 900.0
"""Seconds after which a reservation expires. One user measured about 15 minutes."""
PROCESSING_SECONDS = 0.5
"""Seconds between the completion of a reserved upload and its readiness, at time scale 1."""
SLOW_SECONDS = 60.0
KEY_SECONDS = 7200.0
MEDIA_HOSTS = ("media.flora.ai", "ik.imagekit.io", "storage.googleapis.com", "amazonaws.com", "oaiusercontent.com")
"""Hosts from which runs fetch their inputs: FLORA's own, and some listed ones."""
_SPOOL_BYTES = 2**22
_CHUNK_BYTES = 2**18
_SHOWN_BYTES = 2**26
"""Largest asset that is served. Larger ones are stored only."""
_MAX_FIELD_BYTES = 2**16


class SandboxAsset(Struct):
    """An asset and its bytes."""

    asset_id: str
    workspace_id: str
    project_id: str | None
    name: str
    content_type: str
    uploaded_via: str
    created: float
    """Seconds, by the sandbox's clock."""
    url: str
    token: str = ""
    """Signature of the form that may store the bytes."""
    expires: float = 0.0
    file: tempfile.SpooledTemporaryFile[bytes] | None = None
    size: int = 0
    ready_at: float | None = None
    """When it is ready, by the sandbox's clock; ``None`` before its completion."""
    failure: str | None = None

    def status(self, now: float) -> str:
        """Return FLORA's word for its state."""
        if self.ready_at is None or now < self.ready_at:
            return "pending_upload"
        return "failed" if self.failure else "ready"

    def read(self) -> bytes:
        """Return its bytes. Blocks: call it in a thread."""
        if self.file is None:
            return b""
        self.file.seek(0)
        return self.file.read()


class AssetStore:
    """The assets, FLORA's operations on them, and the store for the bytes of large files."""

    def __init__(self, *, time_scale: float) -> None:
        self._time_scale = time_scale
        self._assets: dict[str, SandboxAsset] = {}
        self._used_keys: dict[tuple[str, str], float] = {}
        self._runner: web.AppRunner | None = None
        self._clock: Callable[[], float] = lambda: 0.0
        self._unix_at_zero = 0.0
        self._origin = self._store_url = ""
        self.refused_keys = 0
        """Number of requests that brought an API key to the store."""

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of FLORA's operations."""
        return [
            web.post("/api/v1/assets", self._create),
            web.get("/api/v1/assets", self._list),
            web.get("/api/v1/assets/{asset_id}", self._retrieve),
            web.post("/api/v1/assets/{asset_id}/complete", self._complete),
            web.post("/api/v1/assets/{asset_id}/retry", self._retry),
            web.get("/media/assets/{name}", self._show),
        ]

    async def start(
        self, host: str, origin: str, clock: Callable[[], float], unix_at_zero: float, middleware: Middleware
    ) -> None:
        """Open the store at any free port of *host*. *middleware* injects faults."""
        self._clock, self._unix_at_zero, self._origin = clock, unix_at_zero, origin
        app = web.Application(middlewares=[middleware])
        app.add_routes([web.post(STORE_PATH, self._store)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, 0).start()
        port = self._runner.addresses[0][1]
        self._store_url = f"{origin.rpartition(':')[0]}:{port}{STORE_PATH}"

    async def close(self) -> None:
        """Close the store, and delete the temporary files."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for asset in self._assets.values():
            if asset.file is not None:
                asset.file.close()

    # -- for runs

    def input_failure(self, params: Mapping[str, object] | None) -> str | None:
        """Return the code with which a run fails that begins with these inputs; ``None``: all can be fetched."""
        for url in _input_urls(params or {}):
            host = urlsplit(url).hostname or ""
            asset = self._find(url)
            if asset is not None:
                if asset.status(self._clock()) != "ready":
                    return "GENERATION_INPUT_VALIDATION"
            elif url.startswith(f"{self._origin}/media/assets/") or (
                not url.startswith(self._origin) and not any(f".{host}".endswith(f".{each}") for each in MEDIA_HOSTS)
            ):
                return "GENERATION_INVALID_URL"
        return None

    async def picture_of(self, params: Mapping[str, object] | None) -> bytes | None:
        """Return the first uploaded picture among the inputs of a run."""
        for url in _input_urls(params or {}):
            asset = self._find(url)
            if asset is not None and asset.content_type.startswith("image/"):
                return await run_in_thread(asset.read)
        return None

    def _find(self, url: str) -> SandboxAsset | None:
        return next((asset for asset in self._assets.values() if asset.url == url), None)

    # -- FLORA's operations

    async def _create(self, request: web.Request) -> web.Response:
        key = (request.headers["Authorization"], request.headers.get("Idempotency-Key", ""))
        now = self._clock()
        if key[1] and now - self._used_keys.get(key, -KEY_SECONDS) < KEY_SECONDS:
            raise refusal(409, code="idempotency_duplicate", message="This idempotency key was used before.")
        if request.content_type == "multipart/form-data":
            asset = await self._receive(request)
        else:
            asset = self._create_from(await _read_json(request))
        if key[1]:
            self._used_keys[key] = now
        self._assets[asset.asset_id] = asset
        return _json(self._record(asset, created=True), 201)

    def _create_from(self, given: Mapping[str, object]) -> SandboxAsset:
        source = given.get("source")
        fields = {name: str(value) for name, value in given.items() if value is not None}
        if source == "signed-url":
            asset = self._new(fields, "signed_url", fields.get("content_type") or _type_by_name(fields))
            self._reserve(asset)
            return asset
        if not isinstance(source, str) or not source.startswith("https://"):
            raise _invalid({"source": "Must be signed-url or a public https URL"})
        asset = self._new(fields, "url", fields.get("content_type") or _type_by_name(fields) or "image/png")
        asset.url, asset.ready_at = source, self._clock()
        return asset

    async def _receive(self, request: web.Request) -> SandboxAsset:
        fields: dict[str, str] = {}
        content: bytes | None = None
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                fields.setdefault("file_name", part.filename or "upload")
                content = await _read_part(part, DIRECT_BYTES, "file", "Must have at most 4 MiB: reserve an upload")
            else:
                text = await _read_part(part, _MAX_FIELD_BYTES, part.name or "", "Is too long")
                fields[part.name or ""] = text.decode(errors="replace")
        if not content:
            raise _invalid({"file": "Required"})
        kind = fields.get("content_type") or content_type_of_file(content[:SIGNATURE_BYTES], fields["file_name"])
        asset = self._new(fields, "direct", kind)
        file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - closed with the sandbox
        file.write(content)
        asset.file, asset.size, asset.ready_at = file, len(content), self._clock()
        return asset

    def _new(self, fields: Mapping[str, str], via: str, content_type: str | None) -> SandboxAsset:
        wrong: dict[str, str] = {}
        for name, prefix in (("workspace_id", "ws_"), ("project_id", "prj_")):
            value = fields.get(name)
            if value is None and name == "workspace_id":
                wrong[name] = "Required"
            elif value is not None and not (value.startswith(prefix) and len(value) > len(prefix)):
                wrong[name] = f"Must start with {prefix}"
        if content_type not in UPLOAD_TYPES:
            wrong["content_type"] = f"Must be one of {', '.join(UPLOAD_TYPES)}"
        if wrong or content_type is None:
            raise _invalid(wrong)
        asset_id = f"asset_{secrets.token_hex(8)}"
        name = fields.get("file_name") or "upload"
        return SandboxAsset(
            asset_id=asset_id,
            workspace_id=fields["workspace_id"],
            project_id=fields.get("project_id"),
            name=name,
            content_type=content_type,
            uploaded_via=via,
            created=self._clock(),
            url=f"{self._origin}/media/assets/{asset_id}.{content_type.rpartition('/')[2]}",
            failure="The file cannot be processed." if "[fail]" in name else None,
        )

    def _reserve(self, asset: SandboxAsset) -> None:
        asset.token, asset.ready_at = secrets.token_hex(16), None
        asset.expires = self._clock() + RESERVATION_SECONDS

    async def _complete(self, request: web.Request) -> web.Response:
        asset = await self._existing(request)
        if asset.ready_at is not None:
            raise refusal(409, message="The upload was completed before.")
        if not asset.size:
            raise refusal(409, message="No bytes were uploaded.")
        seconds = SLOW_SECONDS if "[slow]" in asset.name else PROCESSING_SECONDS * self._time_scale
        asset.ready_at = self._clock() + seconds
        return _json(self._record(asset))

    async def _retry(self, request: web.Request) -> web.Response:
        asset, now = await self._existing(request), self._clock()
        expired = asset.uploaded_via == "signed_url" and asset.ready_at is None and now >= asset.expires
        if not expired and asset.status(now) != "failed":
            raise refusal(409, message="The upload is neither failed nor expired.")
        self._reserve(asset)
        return _json(self._record(asset, created=True))

    async def _existing(self, request: web.Request) -> SandboxAsset:
        """Return the asset of a POST, whose body must be JSON."""
        await _read_json(request)
        return self._get(request)

    def _get(self, request: web.Request) -> SandboxAsset:
        asset_id = request.match_info["asset_id"]
        if not asset_id.startswith("asset_"):
            raise _invalid({"assetId": "Must start with asset_"})
        if asset_id not in self._assets:
            raise refusal(404, message="There is no such asset.")
        return self._assets[asset_id]

    async def _retrieve(self, request: web.Request) -> web.Response:
        return _json(self._details(self._get(request)))

    async def _list(self, request: web.Request) -> web.Response:
        query = parse_history_query({name: value for name, value in request.query.items() if name != "query"})
        words = request.query.get("query", "").lower()
        found = [
            asset
            for asset in reversed(self._assets.values())
            if words in asset.name.lower()
            and query.workspace_id in (None, asset.workspace_id)
            and query.project_id in (None, asset.project_id)
        ]
        end = query.offset + query.limit
        items = [
            {**self._details(asset), "created_at": round(1000 * (self._unix_at_zero + asset.created))}
            for asset in found[query.offset : end]
        ]
        cursor = encode_cursor(end) if end < len(found) else None
        return _json({"assets": items, "meta": {"next_cursor": cursor, "total_estimate": len(found)}})

    def _record(self, asset: SandboxAsset, *, created: bool = False) -> dict[str, object]:
        """Return the record of a create, a completion or another reservation."""
        status = asset.status(self._clock())
        record: dict[str, object] = {
            "asset_id": asset.asset_id,
            "status": status,
            "url": asset.url,
            "visibility": "workspace",
            "workspace_id": asset.workspace_id,
            "uploaded_via": asset.uploaded_via,
        }
        if created and asset.token:
            record["expires_at"] = self._iso_time(asset.expires)
            record["upload"] = {
                "url": self._store_url,
                "method": "POST",
                "content_type": "multipart/form-data",
                "file_field": "file",
                "form_fields": {"key": asset.asset_id, "x-goog-signature": asset.token},
            }
        return record

    def _details(self, asset: SandboxAsset) -> dict[str, object]:
        status = asset.status(self._clock())
        return {
            "asset_id": asset.asset_id,
            "status": status,
            "uploaded_via": asset.uploaded_via,
            "content_type": asset.content_type,
            "created_at": self._iso_time(asset.created),
            "description": None,
            "failure_message": asset.failure if status == "failed" else None,
            "height": None,
            "name": asset.name,
            "project_id": asset.project_id,
            "size_bytes": asset.size or None,
            "upload_content_type": asset.content_type,
            "url": asset.url if status == "ready" else None,
            "width": None,
            "workspace_id": asset.workspace_id,
        }

    def _iso_time(self, at: float) -> str:
        return datetime.fromtimestamp(self._unix_at_zero + at, UTC).isoformat(timespec="milliseconds")

    async def _show(self, request: web.Request) -> web.Response:
        asset = self._assets.get(request.match_info["name"].partition(".")[0])
        if asset is None or asset.size > _SHOWN_BYTES or asset.status(self._clock()) != "ready":
            raise refusal(404, message="There is no such asset.")
        return web.Response(body=await run_in_thread(asset.read), content_type=asset.content_type)

    # -- the store

    async def _store(self, request: web.Request) -> web.Response:
        """Store the file of a form whose fields came first. The form is its own permission: no key may come here."""
        if "Authorization" in request.headers or "Cookie" in request.headers:
            self.refused_keys += 1
            return _store_error(400, "InvalidRequest")
        fields: dict[str, str] = {}
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                continue
            if part.name == "file":
                return await self._store_file(fields, part)
            fields[part.name or ""] = (await part.read()).decode(errors="replace")
        return _store_error(400, "IncompleteBody")

    async def _store_file(self, fields: Mapping[str, str], part: BodyPartReader) -> web.Response:
        asset = self._assets.get(fields.get("key", ""))
        token = fields.get("x-goog-signature", "")
        if asset is None or not secrets.compare_digest(asset.token.encode(), token.encode()):
            return _store_error(403, "SignatureDoesNotMatch")
        if self._clock() >= asset.expires:
            return _store_error(400, "ExpiredToken")
        file = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 - closed with the sandbox
        size = 0
        try:
            while chunk := await part.read_chunk(_CHUNK_BYTES):
                await run_in_thread(file.write, chunk)
                size += len(chunk)
        except BaseException:  # the sender has gone
            file.close()
            raise
        if asset.file is not None:
            asset.file.close()
        asset.file, asset.size = file, size
        return web.Response(status=204)


def _input_urls(params: Mapping[str, object]) -> Iterator[str]:
    """Yield the URLs of media inputs: ``image_url``, ``image_urls``, ``video_url`` and the like."""
    for name, value in params.items():
        if name.endswith(("_url", "_urls")):
            yield from (each for each in (value if _is_list(value) else [value]) if isinstance(each, str))


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def _type_by_name(fields: Mapping[str, str]) -> str | None:
    return content_type_of_file(b"", fields.get("file_name"))


async def _read_part(part: BodyPartReader, most: int, name: str, message: str) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(_CHUNK_BYTES):
        content += chunk
        if len(content) > most:
            raise _invalid({name: message})
    return bytes(content)


async def _read_json(request: web.Request) -> dict[str, object]:
    """Return the body. It may be empty unless another type is named: FLORA's npm client sends completions so."""
    body = await request.read()
    if not body and request.headers.get("Content-Type", "application/json").startswith("application/json"):
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal(400, code="invalid_json", message="The body is not JSON.") from None


def _invalid(fields: Mapping[str, str]) -> RefusalError:
    return RefusalError(400, "input_validation_error", "The request is not valid.", fields=fields)


def _json(body: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


def _store_error(status: int, code: str) -> web.Response:
    return web.Response(status=status, text=f"<Error><Code>{code}</Code></Error>", content_type="application/xml")
