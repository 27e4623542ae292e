"""Save outputs to disk: write a partial file, then rename it. Downloads never send the API key."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
import zlib
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from functools import partial
from io import BufferedWriter
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import urljoin

from msgspec import Struct

from flora_async import errors
from flora_async._aio import run_in_thread
from flora_async._file_names import EXTENSIONS, content_coding, extension_of, file_stems
from flora_async._http.settings import HTTPSettings
from flora_async._http.transport import OutputStream, Transport
from flora_async.models import Output, Run

OnExisting: TypeAlias = Literal["error", "skip", "replace"]

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 3
_EXPIRED = (401, 403, 404, 410)
_RETRYABLE = (416, 425)
"""Statuses that a host of media may send again after a broken transfer, besides those of all servers."""
_MAX_DECOMPRESSED_PIECE = 2**20
_new_gunzip = partial(zlib.decompressobj, zlib.MAX_WBITS | 16)
_CONTENT_RANGE = r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15}|\*)"


class Downloads:
    """Saves outputs of runs."""

    def __init__(
        self, settings: HTTPSettings, transport: Transport, retrieve: Callable[[str], Coroutine[Any, Any, Run]]
    ) -> None:
        self._settings = settings
        self._transport = transport
        self._retrieve = retrieve

    async def save(self, source: Run | Output, folder: Path, on_existing: OnExisting) -> list[Path]:
        """Save the outputs of *source* in *folder*, one after another, and return their paths."""
        run_id, outputs = (None, (source,)) if isinstance(source, Output) else (source.run_id, source.outputs)
        try:
            await run_in_thread(partial(folder.mkdir, parents=True, exist_ok=True))
        except (OSError, ValueError) as error:
            raise errors.DownloadError(f"cannot create the folder {folder}: {_reason(error)}") from None
        saved: list[Path] = []
        for output, stem in zip(outputs, file_stems(run_id, outputs), strict=True):
            try:
                saved.append(await self._save(output, folder / stem, run_id, on_existing))
            except errors.DownloadError as error:
                error.run_id = run_id
                error.saved = tuple(saved)
                raise
        return saved

    async def _save(self, output: Output, stem: Path, run_id: str | None, on_existing: OnExisting) -> Path:
        is_text = output.type == "text"
        part = PartialFile(stem, self._settings.max_download_bytes)
        try:
            if on_existing == "skip":
                found = await run_in_thread(_find_saved, stem, ("txt",) if is_text else EXTENSIONS)
                if found is not None:
                    return found
            await run_in_thread(part.open)
            if is_text:  # The url is the text itself.
                target = await self._choose_target(stem, "txt", on_existing)
                await run_in_thread(part.write, output.url.encode(errors="replace"))
            else:
                target = await self._fetch(output, part, stem, run_id, on_existing)
            await run_in_thread(part.finish)  # This can take long. A download cancelled here leaves no file.
            await run_in_thread(part.publish, target, on_existing)
            return target
        except FileExistsError:
            raise _exists_error(stem) from None
        except errors.APIConnectionError as error:
            raise errors.DownloadError(f"output {output.output_id}: {error}") from error
        except errors.FloraError:
            raise
        except OSError as error:
            raise errors.DownloadError(f"cannot write {stem}: {_reason(error)}") from None
        finally:
            part.remove()

    async def _choose_target(self, stem: Path, extension: str, on_existing: OnExisting) -> Path:
        target = _with_extension(stem, extension)
        if await run_in_thread(_blocks_download, target, on_existing):
            raise _exists_error(target)
        return target

    async def _fetch(
        self, output: Output, part: PartialFile, stem: Path, run_id: str | None, on_existing: OnExisting
    ) -> Path:
        """Fetch an output. Resume a broken transfer, and renew an expired URL once through the run."""
        url, failures = self._settings.media_url(output.url), 0
        while True:
            failure: errors.FloraError
            try:
                end = await self._fetch_once(url, part, stem, on_existing)
                if isinstance(end, Path):
                    return end
                failure = errors.DownloadError(f"output {output.output_id}: {end.message}")
                if end.expired:
                    if run_id is None:
                        raise failure
                    url, run_id = self._settings.media_url(await self._renew_url(run_id, output, failure)), None
                    continue
            except errors.APIConnectionError as error:
                if not error.retryable:
                    raise
                failure = error
            failures += 1
            if failures > self._settings.max_retries:
                raise failure
            await self._transport.sleep(self._settings.retry.backoff_delay(failures))

    async def _renew_url(self, run_id: str, output: Output, expired: errors.FloraError) -> str:
        try:
            run = await self._retrieve(run_id)
        except errors.FloraError:
            raise expired from None
        for fresh in run.outputs:
            if fresh.output_id == output.output_id and fresh.url != output.url:
                return fresh.url
        raise expired

    async def _fetch_once(
        self, url: str, part: PartialFile, stem: Path, on_existing: OnExisting
    ) -> Path | _RetryableFailure:
        """Send one request and follow its redirects. All response headers must arrive within the client's timeout."""
        urls = [url]
        deadline = asyncio.timeout(self._settings.timeout)
        try:
            async with deadline:
                while len(urls) <= _MAX_REDIRECTS + 1:
                    headers = {"Range": f"bytes={part.size}-", "If-Range": part.validator} if part.resumable else {}
                    async with self._transport.media(urls[-1], headers) as media:
                        if media.status not in _REDIRECTS:
                            deadline.reschedule(None)  # Each read of the body has its own timeout.
                            return await self._receive(media, part, stem, urls, on_existing)
                        target = _join_location(urls[-1], media.headers.get("location", ""), stem.name)
                        urls.append(self._settings.media_url(target))
        except TimeoutError:
            if not deadline.expired():
                raise
            raise errors.APITimeoutError(
                f"cannot save {stem.name}: its host sent no response headers in time", sent="maybe_sent"
            ) from None
        raise errors.DownloadError(f"cannot save {stem.name}: its host sent more than {_MAX_REDIRECTS} redirects")

    async def _receive(
        self, media: OutputStream, part: PartialFile, stem: Path, urls: list[str], on_existing: OnExisting
    ) -> Path | _RetryableFailure:
        """Write the received bytes to the partial file, and return its final path."""
        resuming, part.validator = part.resumable, ""
        failure = _status_failure(media.status, stem.name, resuming=resuming)
        if failure is not None:
            return failure
        coding = content_coding(media.headers.get("content-encoding", ""))
        if coding not in ("", "gzip"):
            raise errors.DownloadError(
                f"cannot save {stem.name}: its host sent Content-Encoding {coding}, which was not requested"
            )
        if media.status == 206:
            match = re.fullmatch(_CONTENT_RANGE, media.headers.get("content-range", ""))
            if match is None or int(match[1]) != part.size or coding:
                return _RetryableFailure("its host sent a range that was not requested")
            length = match[2]
        else:
            await run_in_thread(part.restart, bool(coding))
            length = media.headers.get("content-length", "")
        extension = extension_of(media.headers.get("content-type", ""), urls[-1], urls[0])
        target = await self._choose_target(stem, extension, on_existing)
        total = int(length) if length.isascii() and length.isdigit() else None
        if total is not None:
            await self._check_room(target, total, total - part.received, packed=bool(coding))
        tag = media.headers.get("etag", "")
        part.validator = tag if tag.startswith('"') and not coding else ""
        try:
            async for chunk in media.chunks:
                await run_in_thread(part.write, chunk)
        except zlib.error:
            return _RetryableFailure("its gzip encoding is corrupt")
        part.validator = ""
        if total not in (None, part.received):
            return _RetryableFailure(f"its host sent {part.received} of {total} bytes")
        return target if part.complete else _RetryableFailure("its gzip encoding is truncated")

    async def _check_room(self, target: Path, total: int, missing: int, *, packed: bool) -> None:
        if total > self._settings.max_download_bytes and not packed:
            raise _too_large_error(target.name, self._settings.max_download_bytes)
        if missing > await run_in_thread(_free_bytes, target.parent):
            raise errors.DownloadError(f"cannot save {target.name}: its {total} bytes exceed the free disk space")


def _free_bytes(folder: Path) -> int:
    from shutil import disk_usage  # its compressors would take longer to import than ten modules of this package

    return disk_usage(folder).free


class _RetryableFailure(Struct, frozen=True):
    """A failure after which another attempt can succeed."""

    message: str
    expired: bool = False
    """Whether another attempt needs a new URL."""


def _join_location(url: str, location: str, name: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:  # like that of a bracket without its pair
        raise errors.DownloadError(f"cannot save {name}: its host redirects to a URL that cannot be read") from None


def _status_failure(status: int, name: str, *, resuming: bool) -> _RetryableFailure | None:
    if status == 200 or (status == 206 and resuming):
        return None
    if status in _EXPIRED or status in _RETRYABLE or errors.is_retryable_status(status):
        return _RetryableFailure(f"its host responded with {status}", expired=status in _EXPIRED)
    raise errors.DownloadError(f"cannot save {name}: its host responded with {status}")


class PartialFile:
    """A file before it has its final name. Call all methods but ``remove`` in a thread."""

    def __init__(self, stem: Path, max_bytes: int) -> None:
        self._path = stem.with_name(f".{stem.name}.{uuid.uuid4().hex[:8]}.part")
        self._max_bytes = max_bytes
        self._file: BufferedWriter | None = None
        self._gunzip = _new_gunzip()
        self._packed = False
        self.size = 0
        """Bytes in the file."""
        self.received = 0
        """Bytes received: fewer than :attr:`size` if they are encoded."""
        self.validator = ""
        """The host's ETag of this version of the output. If it is empty, the next attempt starts from the beginning."""

    @property
    def resumable(self) -> bool:
        """Whether a broken transfer can be resumed."""
        return bool(self.size and self.validator)

    @property
    def complete(self) -> bool:
        """Whether the encoded data, if the file is encoded, is complete."""
        return not self._packed or self._gunzip.eof

    def open(self) -> None:
        """Create the file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(self._path, flags, 0o666), "wb")

    def restart(self, packed: bool) -> None:
        """Discard the received bytes. The next ones are gzip if *packed*, else plain."""
        file = self._require_open()
        file.seek(0)
        file.truncate()
        self.size = self.received = 0
        self._packed = packed
        self._gunzip = _new_gunzip()

    def write(self, chunk: bytes) -> None:
        """Decompress and write *chunk*. Raise if the file would exceed its limit."""
        file = self._require_open()
        self.received += len(chunk)
        for piece in self._decompress(chunk):
            # Empty gzip members add no size. A valid gzip file is never twice as long as its content.
            if max(self.size + len(piece), self.received // 2) > self._max_bytes:
                raise _too_large_error("the output", self._max_bytes)
            file.write(piece)
            self.size += len(piece)
        file.flush()

    def _decompress(self, chunk: bytes) -> Iterator[bytes]:
        if not self._packed:
            yield chunk
            return
        while chunk:
            if self._gunzip.eof:
                if not chunk.startswith(b"\x1f"):  # Padding, which gzip ignores too.
                    return
                self._gunzip = _new_gunzip()
            yield self._gunzip.decompress(chunk, _MAX_DECOMPRESSED_PIECE)
            chunk = self._gunzip.unconsumed_tail or self._gunzip.unused_data

    def finish(self) -> None:
        """Flush the file to the disk and close it: Windows cannot rename an open file."""
        file = self._require_open()
        os.fsync(file.fileno())
        file.close()

    def publish(self, target: Path, on_existing: OnExisting) -> None:
        """Rename the file to its final name."""
        if on_existing == "replace":
            self._path.replace(target)
            return
        try:
            _rename_exclusively(self._path, target)
        except FileExistsError:
            if on_existing == "error" or not target.is_file():
                raise
            if not target.stat().st_size:
                self._path.replace(target)

    def remove(self) -> None:
        """Delete the partial file. A finished file is kept. This never raises."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            with suppress(OSError):
                self._path.unlink()

    def _require_open(self) -> BufferedWriter:
        if self._file is None:
            raise ValueError("the file is not open")
        return self._file


def _rename_exclusively(path: Path, target: Path) -> None:
    """Rename a file. Raise if the new name exists: a plain rename would replace it.

    File systems without hard links (exFAT, many SMB and FUSE mounts, Android) reserve the name by an empty file first.
    A process that is killed between the two steps leaves the empty file.
    """
    try:
        os.link(path, target)
    except FileExistsError:
        raise
    except (OSError, AttributeError):  # Some platforms lack os.link.
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            path.replace(target)
        except OSError:
            target.unlink()
            raise


def _blocks_download(target: Path, on_existing: OnExisting) -> bool:
    return os.path.lexists(target) and (on_existing == "error" or not target.is_file())


def _find_saved(stem: Path, extensions: Iterable[str]) -> Path | None:
    """Return the file of an output that was saved before. An empty file does not count."""
    for path in (_with_extension(stem, extension) for extension in extensions):
        if path.is_file() and path.stat().st_size:
            return path
    return None


def _with_extension(stem: Path, extension: str) -> Path:
    return stem.with_name(f"{stem.name}.{extension}")  # with_suffix would truncate an id at its dot.


def _exists_error(target: Path) -> errors.DownloadError:
    return errors.DownloadError(f"{target} exists. Pass on_existing='skip' or 'replace', or another folder")


def _too_large_error(name: str, limit: int) -> errors.DownloadError:
    return errors.DownloadError(f"{name} is larger than {limit} bytes. Flora(max_download_bytes=...) permits more")


def _reason(error: OSError | ValueError) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
