"""``flora.assets``: upload files, and the steps of an upload one by one."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import PurePosixPath
from typing import Any, Self, TypeAlias
from urllib.parse import unquote, urlsplit

from msgspec.structs import replace

from flora_async import errors
from flora_async._http.multipart import FormBody, UploadTarget, encode_form, upload_target
from flora_async._http.requests import Request, custom_request, list_request
from flora_async._http.responses import parse_asset, parse_assets
from flora_async._http.settings import HTTPSettings
from flora_async._http.transport import Transport
from flora_async._inputs import OrderT, find_files, inputs_of
from flora_async._media_types import UPLOAD_TYPES, content_type_of_file
from flora_async._resources.input_files import FileMemory, InputFiles
from flora_async._resources.operations import Resource
from flora_async._resources.pagination import AssetList, open_list
from flora_async._resources.upload_sources import CHUNK_BYTES, UploadInput, UploadSource, open_source
from flora_async._validation import check_callback, check_id, check_seconds, check_text
from flora_async.models import Asset

log = logging.getLogger("flora_async")

OnProgress: TypeAlias = Callable[[int, int], object]
"""Called with the number of bytes sent so far and their total. It falls back to 0 where an upload begins again."""

DIRECT_BYTES = 4 * 2**20
"""Largest file that is sent to FLORA itself. Official client 0.11.0: ``assets.upload``."""
UPLOAD_TIMEOUT = 120.0
SLOWEST_UPLOAD = 125_000.0
"""Seconds for an upload, and one more for each so many bytes: by default, a line of 1 Mbit/s is fast enough."""
READY_DELAYS = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0)
"""Seconds between looks at an asset that is not ready; the last one repeats."""
MAX_MISSING = 3
"""Number of looks in a row at which a new asset may be missing."""
_MAX_NAME = 255
_SENT = (200, 201, 204)
_EXPIRED = (400, 401, 403, 404, 410)
_CONTENT_TYPE = r"[a-z0-9][a-z0-9.+-]{0,63}/[a-z0-9][a-z0-9.+-]{0,63}"
_STORE_CODE = rb"<Code>([A-Za-z]{1,64})</Code>"


class Assets(Resource):
    """``flora.assets``: files at FLORA, whose URLs are inputs of runs. Uploads cost nothing."""

    def __init__(self, settings: HTTPSettings, transport: Transport) -> None:
        super().__init__(settings.origin, transport)
        self._settings = settings
        self._inputs = InputFiles(lambda path, workspace_id: self.upload(path, workspace_id=workspace_id))

    async def replace_files(self, order: OrderT, *, memory: FileMemory | None = None) -> OrderT:
        """Return the order with URLs in the place of the files among its inputs. Paths are uploaded first.

        ``create``, ``generate`` and the others do it by themselves. The same bytes are uploaded once for a client and
        workspace; a *memory* makes it once for longer. An order without files is returned as it is.

        Raises:
            ConfigurationError: a file cannot be read, or an asset is not ready.
            UploadError: as :meth:`upload` raises it.
        """
        return await self._inputs.replace(order, memory) if find_files(inputs_of(order)) else order

    async def upload(
        self,
        source: UploadInput,
        *,
        workspace_id: str,
        project_id: str | None = None,
        folder: str | None = None,
        content_type: str | None = None,
        file_name: str | None = None,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Asset:
        """Upload a file and return its asset when its ``url`` can be used in an order.

        Up to 4 MiB go to FLORA in one request. Larger files go to the store that FLORA names, without the API key, in
        small pieces: memory does not grow with the file. A broken or expired transfer begins again, at most
        ``max_retries`` times. FLORA fetches an https URL itself, up to 50 MB. OpenAPI: ``POST /assets``.

        Args:
            source: a path, bytes, a binary file (from its position on, which it keeps), an asynchronous iterable of
                bytes, or an https URL. A stream is copied to a temporary file first: its length must be known.
            workspace_id: the workspace that can use the asset.
            project_id: a project on whose canvas it is put.
            folder: a folder of the library.
            content_type: its content type; by default as its first bytes show, or else its name.
            file_name: its name; by default that of the file.
            on_progress: called with the sent and the total bytes. Its exceptions end the upload.
            timeout: seconds for the whole upload, the copy of a stream included; by default 120, and one more for each
                125,000 bytes, from the first request on. A read of a pipe that blocks cannot be interrupted.

        Raises:
            ConfigurationError: the file cannot be read, is empty, or has a type that FLORA does not accept. Nothing was
                sent.
            UploadError: the store refused the file, or FLORA could not use it.
            UploadTimeoutError: *timeout* seconds have passed.
            APIError, APIConnectionError: as for every request. Each error after the first response has an ``asset_id``.
        """
        fields = _asset_fields(workspace_id, project_id, folder, content_type, file_name)
        if on_progress is not None:
            check_callback("on_progress", on_progress, "two numbers of bytes")
        seconds = None if timeout is None else check_seconds("timeout", timeout)
        upload = _Upload(self, self._settings, self._transport, fields, on_progress)
        if isinstance(source, str) and "://" in source:
            url = self._settings.media_url(source, label="source", error=errors.ConfigurationError)
            fields.setdefault("file_name", _name_in_url(url))
            return await upload.within(seconds or UPLOAD_TIMEOUT, upload.send_url(url))
        if seconds is None:
            return await upload.send_source(source, upload.send_in_time)
        return await upload.within(seconds, upload.send_source(source, upload.send_file))

    async def create(
        self,
        *,
        workspace_id: str,
        source: str = "signed-url",
        project_id: str | None = None,
        folder: str | None = None,
        content_type: str | None = None,
        file_name: str | None = None,
    ) -> Asset:
        """Reserve an upload, or request that FLORA fetches the https URL *source*. OpenAPI: ``POST /assets``.

        To a reserved asset belongs a form, ``asset.upload``: post its fields, then the file, without the API key, and
        call ``complete``. Types and sizes are not checked here.
        """
        fields = _asset_fields(workspace_id, project_id, folder, content_type, file_name)
        return await self.send_create({"source": check_text("source", source), **fields})

    async def complete(self, asset_id: str) -> Asset:
        """Report to FLORA that the bytes of a reserved asset were sent. OpenAPI: ``POST /assets/{assetId}/complete``.

        Raises:
            ConflictError: it was completed before.
        """
        try:
            return await self._post(asset_id, "complete")
        except errors.ConflictError as error:
            if error.attempts == 1:
                raise
        return await self.retrieve(asset_id)  # An earlier attempt was executed, and its response was lost.

    async def retry(self, asset_id: str) -> Asset:
        """Reserve another upload for a failed or expired asset. OpenAPI: ``POST /assets/{assetId}/retry``.

        Raises:
            ConflictError: the asset is neither failed nor expired.
        """
        return await self._post(asset_id, "retry")

    async def retrieve(self, asset_id: str) -> Asset:
        """Return the current state of an asset. OpenAPI: ``GET /assets/{assetId}``."""
        known_id = check_id("asset_id", asset_id, "asset_")
        request = custom_request(self._origin, "GET", f"/assets/{known_id}")
        return await self._transport.send(request, partial(parse_asset, known_id))

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = 100,
        query: str | None = None,
        workspace_id: str | None = None,
        project_id: str | None = None,
        timeout: float | None = None,
    ) -> AssetList:
        """Return the assets: ``async for asset in flora.assets.list(workspace_id=...)``.

        *query* searches. *limit* is the size of a page, 1 to 100, not a total; ``None`` leaves it to FLORA. *timeout*
        are the seconds for each HTTP exchange, in place of the client's. OpenAPI: ``GET /assets``.
        """
        origin = self._origin

        def request(cursor: str | None) -> Request:
            return list_request(
                origin,
                path="/assets",
                cursor=cursor,
                limit=limit,
                project_id=project_id,
                status=None,
                workspace_id=workspace_id,
                search=query,
            )

        return open_list(AssetList, self._transport, request, parse_assets, cursor=cursor, timeout=timeout)

    async def send_create(self, fields: Mapping[str, str], form: FormBody | None = None) -> Asset:
        """Send ``POST /assets``: *fields* as JSON, or a *form* with the file.

        A conflict of its own key means that FLORA has an asset whose id was lost. Another one is created then.
        """
        for _ in range(self._settings.max_retries):
            try:
                return await self._transport.send(self._create_request(fields, form), partial(parse_asset, None))
            except errors.IdempotencyConflictError:
                log.info("the response to an upload was lost, the file is sent again", extra={"path": "/assets"})
        return await self._transport.send(self._create_request(fields, form), partial(parse_asset, None))

    def _create_request(self, fields: Mapping[str, str], form: FormBody | None) -> Request:
        key = str(uuid.uuid4())
        request = custom_request(self._origin, "POST", "/assets", json=fields, idempotency_key=key)
        if form is None:
            return request
        return replace(
            request,
            body=form.head,
            content_type=form.content_type,
            timeout=self._settings.timeout + len(form.head) / SLOWEST_UPLOAD,
        )

    async def _post(self, asset_id: str, step: str) -> Asset:
        known_id = check_id("asset_id", asset_id, "asset_")
        key = str(uuid.uuid4())
        request = custom_request(self._origin, "POST", f"/assets/{known_id}/{step}", json={}, idempotency_key=key)
        return await self._transport.send(request, partial(parse_asset, known_id))


class _Upload:
    """One upload: which way it takes, what is sent again, and which asset its errors name."""

    def __init__(
        self,
        assets: Assets,
        settings: HTTPSettings,
        transport: Transport,
        fields: dict[str, str],
        on_progress: OnProgress | None = None,
    ) -> None:
        self._assets = assets
        self._settings = settings
        self._transport = transport
        self._fields = fields
        self._on_progress = on_progress
        self._asset_id: str | None = None

    async def within(self, seconds: float, upload: Coroutine[Any, Any, Asset]) -> Asset:
        """Await *upload*. Its errors name the asset."""
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await upload
        except errors.FloraError as error:
            error.asset_id = error.asset_id or self._asset_id
            raise
        except TimeoutError:
            if not deadline.expired():
                raise
            raise errors.UploadTimeoutError(
                f"{self._fields.get('file_name', 'the file')} was not uploaded, or not ready, within {seconds:g} s. "
                "Pass a longer timeout=..., or look at the asset later",
                asset_id=self._asset_id,
                retryable=True,
            ) from None
        except (Exception, asyncio.CancelledError) as error:  # A cancellation, or an exception of on_progress.
            if self._asset_id is not None:
                error.add_note(f"the upload of {self._asset_id} is incomplete")
            raise

    async def send_url(self, url: str) -> Asset:
        """Request that FLORA fetches the file."""
        return await self._wait_until_ready(await self._assets.send_create({"source": url, **self._fields}))

    async def send_source(self, source: UploadInput, send: Callable[[UploadSource], Awaitable[Asset]]) -> Asset:
        """Open a source, find its type and its name, and *send* it."""
        fields = self._fields
        async with open_source(source) as file:
            kind = fields.get("content_type") or content_type_of_file(
                await file.head(), fields.get("file_name") or file.name
            )
            if kind not in UPLOAD_TYPES:
                raise errors.ConfigurationError(
                    f"cannot upload {file.label}: FLORA does not accept {kind or 'its type'}. "
                    f"It accepts {', '.join(UPLOAD_TYPES)}; content_type=... names the type"
                )
            fields["content_type"] = kind
            fields.setdefault("file_name", _clean_name(file.name) or f"upload.{kind.partition('/')[2]}")
            return await send(file)

    async def send_in_time(self, file: UploadSource) -> Asset:
        """Send the bytes of a file within the default time for its size."""
        return await self.within(UPLOAD_TIMEOUT + file.size / SLOWEST_UPLOAD, self.send_file(file))

    async def send_file(self, file: UploadSource) -> Asset:
        """Send the bytes of a file, by the way that its size allows."""
        if file.size > DIRECT_BYTES:
            return await self._wait_until_ready(await self._send_reserved(file))
        form = self._form(tuple(self._fields.items()), "file")
        content = await file.read(0, file.size)
        self._report(0, file.size)
        whole = FormBody(form.content_type, form.head + content + form.tail)
        asset = await self._assets.send_create(self._fields, whole)
        self._report(file.size, file.size)
        return await self._wait_until_ready(asset)

    def _form(self, fields: Sequence[tuple[str, str]], file_field: str) -> FormBody:
        kind, name = self._fields["content_type"], self._fields["file_name"]
        return encode_form(fields, file_field=file_field, file_name=name, content_type=kind)

    def _report(self, sent: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(sent, total)

    async def _send_reserved(self, file: UploadSource) -> Asset:
        """Reserve an asset and send its bytes to the store, again from the first byte where that failed."""
        asset = await self._reserve()
        failures = 0
        while True:
            try:
                await self._send_to_store(upload_target(asset), file)
                return await self._complete(asset.asset_id)
            except (errors.UploadError, errors.APIConnectionError) as error:
                failures += 1
                if not error.retryable or failures > self._settings.max_retries:
                    raise
                expired = isinstance(error, errors.UploadError) and error.status in _EXPIRED
                name = type(error).__name__
                extra = {"asset_id": asset.asset_id, "attempt": failures, "error": name}
                log.info("upload of %s: attempt %d failed (%s)", asset.asset_id, failures, name, extra=extra)
            if expired:
                asset = await self._renew(asset.asset_id)
            else:
                await self._transport.sleep(self._transport.retry_policy.backoff_delay(failures))

    async def _reserve(self) -> Asset:
        asset = await self._assets.send_create({"source": "signed-url", **self._fields})
        self._asset_id = asset.asset_id
        return asset

    async def _renew(self, asset_id: str) -> Asset:
        try:
            return await self._assets.retry(asset_id)
        except (errors.ConflictError, errors.NotFoundError):  # FLORA does not see it as expired, or deleted it.
            return await self._reserve()

    async def _complete(self, asset_id: str) -> Asset:
        try:
            return await self._assets.complete(asset_id)
        except errors.ConflictError:
            return await self._assets.retrieve(asset_id)

    async def _send_to_store(self, target: UploadTarget, file: UploadSource) -> None:
        """Send the bytes once. The store may not stand still for longer than the client's timeout."""
        url = self._settings.media_url(target.url, label="the address of the upload", error=errors.UploadError)
        put = target.method == "PUT"
        form = FormBody(self._fields["content_type"]) if put else self._form(target.fields, target.file_field)
        headers = {
            "Content-Type": form.content_type,
            "Content-Length": str(len(form.head) + file.size + len(form.tail)),
        }
        stall = asyncio.timeout(self._settings.timeout)
        body = _StoreBody(form, file, partial(self._on_chunk, stall))
        try:
            async with stall:
                status, answer = await self._transport.upload(target.method, url, headers, body)
        except TimeoutError:
            if not stall.expired():
                raise
            raise errors.APITimeoutError(
                f"{self._fields['file_name']}: its store accepted no byte for {self._settings.timeout:g} s",
                sent="maybe_sent",
            ) from None
        except errors.APIConnectionError:
            if body.failure is not None:
                raise body.failure from None
            raise
        if status not in _SENT:
            raise _store_error(status, answer)

    def _on_chunk(self, stall: asyncio.Timeout, sent: int, total: int) -> None:
        if not stall.expired():
            stall.reschedule(asyncio.get_running_loop().time() + self._settings.timeout)
        self._report(sent, total)

    async def _wait_until_ready(self, asset: Asset) -> Asset:
        self._asset_id = asset.asset_id
        delays = chain(READY_DELAYS, repeat(READY_DELAYS[-1]))
        missing = 0
        while not asset.ready:
            if asset.status == "failed":
                reason = asset.failure_message or "it names no reason"
                raise errors.UploadError(f"FLORA cannot use {self._fields['file_name']}: {reason}")
            await self._transport.sleep(next(delays))
            try:
                asset = await self._assets.retrieve(asset.asset_id)
                missing = 0
            except errors.FloraError as error:
                missing = missing + 1 if isinstance(error, errors.NotFoundError) else 0
                if not error.retryable and not 0 < missing <= MAX_MISSING:
                    raise
        return asset


class _StoreBody:
    """The body of a request to a store: a form's head, the file and the form's tail, as an iterator."""

    def __init__(self, form: FormBody, file: UploadSource, on_chunk: Callable[[int, int], object]) -> None:
        self._form = form
        self._file = file
        self._on_chunk = on_chunk
        self._begun = self._ended = False
        self._sent = 0
        self.failure: Exception | None = None
        """The error of the file or of the caller's function. aiohttp raises its own error in its place."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await self._next_chunk()
        except Exception as error:
            self.failure = error
            raise
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def _next_chunk(self) -> bytes | None:
        if not self._begun:
            self._begun = True
            if self._form.head:
                return self._form.head
        if self._ended:
            return None
        self._on_chunk(self._sent, self._file.size)
        if self._sent < self._file.size:
            chunk = await self._file.read(self._sent, min(CHUNK_BYTES, self._file.size - self._sent))
            self._sent += len(chunk)
            return chunk
        self._ended = True
        return self._form.tail or None


def _store_error(status: int, answer: bytes) -> errors.UploadError:
    """Return the error of a store's response. Its text names the store's code, if there is one."""
    code = re.search(_STORE_CODE, answer)
    reason = f"{status} {code[1].decode()}" if code else str(status)
    final = "Entity" in reason  # EntityTooLarge comes as a 400 too.
    retryable = (status in _EXPIRED and not final) or errors.is_retryable_status(status)
    return errors.UploadError(f"the store refused the file with {reason}", status=status, retryable=retryable)


def _asset_fields(
    workspace_id: str, project_id: str | None, folder: str | None, content_type: str | None, file_name: str | None
) -> dict[str, str]:
    """Check the fields of a create, and return those that are set."""
    fields = {"workspace_id": check_id("workspace_id", workspace_id, "ws_")}
    if project_id is not None:
        fields["project_id"] = check_id("project_id", project_id, "prj_")
    if folder is not None:
        fields["folder"] = check_text("folder", folder)
    if content_type is not None:
        fields["content_type"] = check_text("content_type", content_type).lower()
        if not re.fullmatch(_CONTENT_TYPE, fields["content_type"]):
            raise errors.ConfigurationError(f"content_type must be like image/png, not {content_type[:80]!r}")
    if file_name is not None:
        fields["file_name"] = check_text("file_name", file_name, longest=_MAX_NAME)
    return fields


def _clean_name(name: str | None) -> str:
    """Return a file's name as text that can be sent: some systems have names in no encoding."""
    return (name or "").encode(errors="replace").decode()[-_MAX_NAME:]


def _name_in_url(url: str) -> str:
    return _clean_name(PurePosixPath(unquote(urlsplit(url).path)).name) or "upload"
