"""Upload the local files among the inputs of orders, each file once for each client."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from flora_async import errors
from flora_async._aio import run_in_thread
from flora_async._bounded_dict import BoundedDict
from flora_async._http.transport import check_before_post
from flora_async._inputs import AssetRecord, OrderT, find_files, inputs_of, replace_files
from flora_async._resources.upload_sources import open_source
from flora_async._validation import check_path
from flora_async.models import Asset

_Version: TypeAlias = tuple[int, int, int, int]

MAX_REMEMBERED_FILES = 10_000
"""Files of a client whose URLs are remembered."""


class FileMemory(Protocol):
    """Remembers the URLs of uploaded files for longer than a client lives."""

    async def find_url(self, workspace_id: str, digest: str) -> str | None:
        """Return the URL of the file with this SHA-256 in a workspace; ``None`` if it was not uploaded."""
        ...

    async def record_url(self, workspace_id: str, digest: str, url: str) -> None:
        """Record the URL of a file that was uploaded."""
        ...


class InputFiles:
    """Replaces files among the inputs of orders by their URLs. The same bytes are uploaded once for a workspace."""

    def __init__(self, upload: Callable[[Path, str], Coroutine[Any, Any, Asset]]) -> None:
        self._upload_file = upload
        self._digests = _SharedResults()
        self._urls = _SharedResults()

    async def replace(self, order: OrderT, memory: FileMemory | None) -> OrderT:
        """Return an order with URLs in the place of its files."""
        files = find_files(inputs_of(order))
        for asset in files:
            if isinstance(asset, AssetRecord):
                _url_of(asset)
        paths = {os.fspath(file): file for file in files if not isinstance(file, AssetRecord)}
        uploads = {
            path: asyncio.create_task(self._upload(file, order.workspace_id, memory)) for path, file in paths.items()
        }
        try:
            urls = {path: await upload for path, upload in uploads.items()}
        finally:
            for upload in uploads.values():
                upload.cancel()
            await asyncio.gather(*uploads.values(), return_exceptions=True)
        return replace_files(
            order, lambda file: _url_of(file) if isinstance(file, AssetRecord) else urls[os.fspath(file)]
        )

    async def _upload(self, file: os.PathLike[Any], workspace_id: str, memory: FileMemory | None) -> str:
        check_before_post.set(None)  # It is about the create, and this is a task of its own.
        path = check_path("a path in the inputs", file)
        version = await _version(path)
        digest = await self._digests.get(version, partial(_digest, path))
        if memory is not None and (stored := await memory.find_url(workspace_id, digest)):
            return stored
        url = await self._urls.get((workspace_id, digest), partial(self._send, path, workspace_id, version))
        if memory is not None:
            await memory.record_url(workspace_id, digest, url)
        return url

    async def _send(self, path: Path, workspace_id: str, version: _Version) -> str:
        asset = await self._upload_file(path, workspace_id)
        if await _version(path) != version:  # The URL may be that of other bytes than those of the digest.
            raise errors.UploadError(f"cannot upload {path}: it was changed during the upload", asset_id=asset.asset_id)
        return _url_of(asset)


async def _version(path: Path) -> _Version:
    """Return numbers that change with the content of a file."""
    try:
        status = await run_in_thread(path.stat)
    except (OSError, ValueError) as error:
        raise errors.ConfigurationError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


async def _digest(path: Path) -> str:
    async with open_source(path) as file:
        return await file.digest()


def _url_of(asset: AssetRecord) -> str:
    if asset.url is None or not asset.ready:
        raise errors.ConfigurationError(
            f"{asset.asset_id or 'the asset'} is {asset.status or 'not ready'}: it has no URL that a run can use yet. "
            "Retrieve it until it is ready: flora.assets.retrieve(...)"
        )
    return asset.url


class _SharedResults:
    """Computes each result once, for all that ask for it at the same time or later. A failure is not remembered."""

    def __init__(self) -> None:
        self._known: BoundedDict[Hashable, str] = BoundedDict(MAX_REMEMBERED_FILES)
        self._tasks: dict[Hashable, _SharedTask] = {}

    async def get(self, key: Hashable, compute: Callable[[], Coroutine[Any, Any, str]]) -> str:
        """Return the result of a key. Its computation is cancelled with the last caller that waits for it."""
        if (known := self._known.get(key)) is not None:
            return known
        shared = self._tasks.get(key)
        if shared is None:
            shared = self._tasks[key] = _SharedTask(asyncio.create_task(compute()))
        shared.callers += 1
        try:
            await asyncio.wait([shared.task])
            result = self._known[key] = shared.task.result()
        finally:
            shared.callers -= 1
            if not shared.callers:
                del self._tasks[key]
                shared.task.cancel()
                await asyncio.wait([shared.task])
        return result


class _SharedTask(Struct):
    """A task, and the number of callers that wait for it."""

    task: asyncio.Task[str]
    callers: int = 0
