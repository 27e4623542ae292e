"""Outputs to disk: a part file, then a rename; never with our key, never over what is there."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urljoin

from anyio.to_thread import run_sync

from flora_async import errors
from flora_async._transport import Media
from flora_async.models import Output, Run

OpenMedia: TypeAlias = Callable[[str], AbstractAsyncContextManager[Media]]

_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/svg+xml": "svg",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "video/quicktime": "mov",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "application/pdf": "pdf",
    "application/json": "json",
    "text/plain": "txt",
    "text/markdown": "md",
}

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_MAX_STEM = 120


async def download(
    source: Run | Output,
    folder: Path,
    *,
    open_media: OpenMedia,
    check_url: Callable[[str], str],
    max_bytes: int,
) -> list[Path]:
    """Save the outputs of *source* in *folder*, one after another, and say where."""
    run_id, outputs = (None, (source,)) if isinstance(source, Output) else (source.run_id, source.outputs)
    try:
        await run_sync(partial(folder.mkdir, parents=True, exist_ok=True))
    except OSError as error:
        raise errors.DownloadError(f"cannot make the folder {folder}: {error.strerror}") from None
    paths: list[Path] = []
    for output in outputs:
        stem = _file_name(f"{run_id}_{output.output_id}" if run_id else output.output_id)
        try:
            paths.append(await _save_output(output, folder / stem, open_media, check_url, max_bytes))
        except errors.DownloadError as error:
            error.run_id = run_id
            raise
    return paths


def _file_name(text: str) -> str:
    # The server's words never become a path: what is not plain is replaced, a leading dot included.
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", text)[:_MAX_STEM]


async def _save_output(
    output: Output, stem: Path, open_media: OpenMedia, check_url: Callable[[str], str], max_bytes: int
) -> Path:
    if output.type == "text":
        return await _save(_once(output.url.encode(errors="replace")), stem.with_name(f"{stem.name}.txt"), max_bytes)
    url = check_url(output.url)
    try:
        for _ in range(_MAX_REDIRECTS + 1):
            async with open_media(url) as media:
                if media.status in _REDIRECTS:
                    url = check_url(urljoin(url, media.headers.get("location", "")))
                    continue
                if media.status != 200:
                    raise errors.DownloadError(f"output {output.output_id}: its host answered {media.status}")
                kind = media.headers.get("content-type", "").partition(";")[0].strip().lower()
                target = stem.with_name(f"{stem.name}.{_EXTENSIONS.get(kind, 'bin')}")
                return await _save(media.chunks, target, max_bytes)
    except errors.APIConnectionError as error:
        raise errors.DownloadError(f"output {output.output_id}: {error}") from error
    raise errors.DownloadError(f"output {output.output_id}: more than {_MAX_REDIRECTS} redirects")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _save(chunks: AsyncIterator[bytes], target: Path, max_bytes: int) -> Path:
    """Write *chunks* to a part file beside *target*, which gets its name when it is whole."""
    if await run_sync(os.path.lexists, target):
        raise errors.DownloadError(f"{target} exists, and is not overwritten")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    size = 0
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > max_bytes:
                        raise errors.DownloadError(f"{target.name} is larger than {max_bytes} bytes")
                    await run_sync(file.write, chunk)
                await run_sync(os.fsync, file.fileno())
            # A link, unlike a rename, never replaces what another has put there meanwhile.
            os.link(part, target)
        finally:
            part.unlink()
    except errors.FloraError:
        raise  # a time-out of ours is an OSError too
    except FileExistsError:
        raise errors.DownloadError(f"{target} exists, and is not overwritten") from None
    except OSError as error:
        raise errors.DownloadError(f"cannot write {target}: {error.strerror}") from None
    return target
