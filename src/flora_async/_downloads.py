"""Outputs to disk: a part file, then its name; never with our key, never over what is there."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urljoin

from anyio.to_thread import run_sync
from msgspec import Struct

from flora_async import _pacing, errors
from flora_async._transport import Media
from flora_async.models import Output, Run

OpenMedia: TypeAlias = Callable[[str, Mapping[str, str]], AbstractAsyncContextManager[Media]]

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
_EXPIRED = (401, 403, 404, 410)
_MAX_STEM = 120
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)")


class Downloads:
    """Save outputs of runs."""

    def __init__(
        self,
        *,
        open_media: OpenMedia,
        check_url: Callable[[str], str],
        retrieve: Callable[[str], Coroutine[Any, Any, Run]],
        pause: Callable[[float], Coroutine[Any, Any, None]],
        retries: int,
        max_bytes: int,
    ) -> None:
        self._open_media = open_media
        self._check_url = check_url
        self._retrieve = retrieve
        self._pause = pause
        self._retries = retries
        self._max_bytes = max_bytes

    async def save(self, source: Run | Output, folder: Path) -> list[Path]:
        """Save the outputs of *source* in *folder*, one after another, and say where."""
        run_id, outputs = (None, (source,)) if isinstance(source, Output) else (source.run_id, source.outputs)
        try:
            await run_sync(partial(folder.mkdir, parents=True, exist_ok=True))
        except OSError as error:
            raise errors.DownloadError(f"cannot make the folder {folder}: {error.strerror}") from None
        paths: list[Path] = []
        for output in outputs:
            stem = folder / _file_name(f"{run_id}_{output.output_id}" if run_id else output.output_id)
            try:
                paths.append(await self._save(output, stem, run_id))
            except errors.DownloadError as error:
                error.run_id = run_id
                raise
        return paths

    async def _save(self, output: Output, stem: Path, run_id: str | None) -> Path:
        try:
            part = await run_sync(_Part, stem)
        except OSError as error:
            raise errors.DownloadError(f"cannot write to {stem.parent}: {error.strerror}") from None
        try:
            if output.type == "text":  # its url is the text itself
                target = await self._target(stem, "txt")
                await self._write(part, output.url.encode(errors="replace"))
            else:
                target = await self._fetch(output, part, stem, run_id)
            await run_sync(part.name, target)
            return target
        except FileExistsError:
            raise errors.DownloadError(f"{stem.name} exists, and is not overwritten") from None
        except errors.APIConnectionError as error:
            raise errors.DownloadError(f"output {output.output_id}: {error}") from error
        except errors.FloraError:
            raise
        except OSError as error:
            raise errors.DownloadError(f"cannot write {stem.name}: {error.strerror}") from None
        finally:
            part.remove()

    async def _target(self, stem: Path, extension: str) -> Path:
        target = stem.with_name(f"{stem.name}.{extension}")
        if await run_sync(os.path.lexists, target):
            raise errors.DownloadError(f"{target} exists, and is not overwritten")
        return target

    async def _write(self, part: _Part, chunk: bytes) -> None:
        if part.size + len(chunk) > self._max_bytes:
            raise errors.DownloadError(f"the output is larger than {self._max_bytes} bytes")
        await run_sync(part.write, chunk)

    async def _fetch(self, output: Output, part: _Part, stem: Path, run_id: str | None) -> Path:
        """Fetch an output, from where it broke off if it did; through the run once more if its URL has expired."""
        url, failures = self._check_url(output.url), 0
        while True:
            trouble: errors.FloraError
            try:
                end = await self._fetch_once(url, part, stem)
                if isinstance(end, Path):
                    return end
                trouble = errors.DownloadError(f"output {output.output_id}: {end.message}")
                if end.expired:
                    if run_id is None:
                        raise trouble
                    url, run_id = self._check_url(await self._fresh_url(run_id, output, trouble)), None
                    continue
            except errors.APIConnectionError as error:
                if not error.retryable:
                    raise
                trouble = error
            failures += 1
            if failures > self._retries:
                raise trouble
            await self._pause(_pacing.retry_delay(failures))

    async def _fresh_url(self, run_id: str, output: Output, expired: errors.FloraError) -> str:
        try:
            run = await self._retrieve(run_id)
        except errors.FloraError:
            raise expired from None
        for fresh in run.outputs:
            if fresh.output_id == output.output_id and fresh.url != output.url:
                return fresh.url
        raise expired

    async def _fetch_once(self, url: str, part: _Part, stem: Path) -> Path | _Trouble:
        for _ in range(_MAX_REDIRECTS + 1):
            headers = (
                {"Range": f"bytes={part.size}-", "If-Range": part.validator} if part.size and part.validator else {}
            )
            async with self._open_media(url, headers) as media:
                if media.status not in _REDIRECTS:
                    return await self._take(media, part, stem)
                url = self._check_url(urljoin(url, media.headers.get("location", "")))
        raise errors.DownloadError(f"{stem.name}: more than {_MAX_REDIRECTS} redirects")

    async def _take(self, media: Media, part: _Part, stem: Path) -> Path | _Trouble:
        """Write what comes to the part file, and say what its name is to be."""
        validator, part.validator = part.validator, ""
        if media.status == 206 and part.size and validator:
            match = _CONTENT_RANGE.fullmatch(media.headers.get("content-range", ""))
            if match is None or int(match[1]) != part.size:
                return _Trouble("its host sent another part than was asked for")
            length = match[2]
        elif media.status == 200:
            await run_sync(part.restart)
            length = media.headers.get("content-length", "")
        elif media.status in _EXPIRED:
            return _Trouble(f"its host answered {media.status}", expired=True)
        elif media.status >= 500 or media.status in (416, 429):
            return _Trouble(f"its host answered {media.status}")
        else:
            raise errors.DownloadError(f"{stem.name}: its host answered {media.status}")
        if media.headers.get("content-encoding", "identity") != "identity":
            raise errors.DownloadError(f"{stem.name}: its host packs it, unasked")
        kind = media.headers.get("content-type", "").partition(";")[0].strip().lower()
        target = await self._target(stem, _EXTENSIONS.get(kind, "bin"))
        total = int(length) if length.isascii() and length.isdigit() else None
        if total is not None:
            await self._check_room(target, total, total - part.size)
        tag = media.headers.get("etag", "")
        part.validator = tag if tag.startswith('"') else ""
        async for chunk in media.chunks:
            await self._write(part, chunk)
        part.validator = ""
        return target if total in (None, part.size) else _Trouble(f"{part.size} bytes came instead of {total}")

    async def _check_room(self, target: Path, total: int, missing: int) -> None:
        if total > self._max_bytes:
            raise errors.DownloadError(f"{target.name} is larger than {self._max_bytes} bytes")
        if missing > (await run_sync(shutil.disk_usage, target.parent)).free:
            raise errors.DownloadError(f"{target.name} has {total} bytes, more than the disk has room for")


class _Trouble(Struct, frozen=True):
    """What another attempt may get past."""

    message: str
    expired: bool = False
    """Whether it takes another URL."""


def _file_name(text: str) -> str:
    # The server's words never become a path: what is not plain is replaced, a leading dot included.
    return re.sub(r"[^A-Za-z0-9._-]|^\.", "_", text)[:_MAX_STEM]


class _Part:
    """A file that has no name of its own yet."""

    def __init__(self, stem: Path) -> None:
        self._path = stem.with_name(f".{stem.name}.{secrets.token_hex(4)}.part")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        self._file: BufferedWriter = os.fdopen(os.open(self._path, flags, 0o666), "wb")
        self.size = 0
        self.validator = ""
        """The host's word for this very version of the output; empty: go on from the beginning."""

    def write(self, chunk: bytes) -> None:
        """Write all of it: a bare descriptor may take less, on a disk that is full."""
        self._file.write(chunk)
        self._file.flush()
        self.size += len(chunk)

    def restart(self) -> None:
        """Forget what came so far."""
        self._file.seek(0)
        self._file.truncate()
        self.size = 0

    def name(self, target: Path) -> None:
        """Give it its name. A link, unlike a rename, never replaces what another has put there meanwhile."""
        os.fsync(self._file.fileno())
        os.link(self._path, target)

    def remove(self) -> None:
        """Let it go; what has its name stays."""
        try:
            self._file.close()
        except OSError:
            pass  # what could not be written was said before
        finally:
            self._path.unlink(missing_ok=True)
