"""The bytes of an upload, from a path, bytes, a file or an async iterable: a known length, readable at any place."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from io import BytesIO, TextIOBase
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias, TypeGuard, TypeVar, TypeVarTuple, runtime_checkable
from weakref import WeakValueDictionary

from flora_async import errors
from flora_async._aio import run_in_thread
from flora_async._media_types import SIGNATURE_BYTES
from flora_async._validation import check_path

if TYPE_CHECKING:
    from tempfile import SpooledTemporaryFile

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CHUNK_BYTES = 2**19
"""Bytes that are read and sent at once."""
_HASH_BYTES = 2**24
_SPOOL_BYTES = 2**22
"""Bytes of a stream that stay in memory. Longer ones are copied to a temporary file."""


class _Rewindable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...

    def seek(self, offset: int, whence: int = ..., /) -> int: ...

    def tell(self) -> int: ...


@runtime_checkable
class BinaryFile(Protocol):
    """A file that was opened for reading in binary mode."""

    def read(self, size: int = ..., /) -> bytes: ...


UploadInput: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | AsyncIterable[bytes]
"""A path, bytes, a binary file, an asynchronous iterable of bytes, or an https URL."""


_turns: WeakValueDictionary[int, Lock] = WeakValueDictionary()


def _turn_of(file: object) -> Lock:
    """Return the lock of an open file: two uploads of it, at the same time, must not move it under each other."""
    return _turns.setdefault(id(file), Lock())


class UploadSource:
    """Bytes with a known length. Reads do not interfere: each one has its place, and its turn, and moves nothing."""

    def __init__(self, file: _Rewindable, start: int, size: int, name: str | None) -> None:
        self._file = file
        self._start = start
        self._turn = asyncio.Lock()
        self._turn_of_threads = _turn_of(file)
        self.size = size
        self.name = name

    async def read(self, offset: int, size: int) -> bytes:
        """Return *size* bytes from *offset* on. Raise UploadError if the file is shorter than it was."""
        async with self._turn:
            try:
                chunk = await run_in_thread(self._read, offset, size)
            except (OSError, ValueError) as error:
                raise errors.UploadError(f"cannot read {self.label}: {_reason(error)}") from None
        if len(chunk) < size:
            raise errors.UploadError(f"cannot upload {self.label}: it became shorter during the upload")
        return chunk

    async def head(self) -> bytes:
        """Return the bytes that decide on the content type."""
        return await self.read(0, min(self.size, SIGNATURE_BYTES))

    async def digest(self) -> str:
        """Return the SHA-256 of the bytes."""
        hashed = sha256()
        for offset in range(0, self.size, _HASH_BYTES):
            chunk = await self.read(offset, min(_HASH_BYTES, self.size - offset))
            await run_in_thread(hashed.update, chunk)
        return hashed.hexdigest()

    @property
    def label(self) -> str:
        """The name of the file, as errors show it."""
        return self.name or "the file"

    def _read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        with self._turn_of_threads:
            self._file.seek(self._start + offset)
            while size > 0 and (part := self._file.read(size)):  # A raw file can return less than it has.
                parts.append(part)
                size -= len(part)
            self._file.seek(self._start)  # for another upload of the same file, at the same time or later
        return b"".join(parts) if len(parts) != 1 else parts[0]


@asynccontextmanager
async def open_source(source: object) -> AsyncGenerator[UploadSource]:
    """Open the bytes of an upload. A stream, which can be read once only, is copied first.

    Raises:
        ConfigurationError: *source* is nothing of that kind, is no regular file, or is empty.
    """
    if _is_bytes(source):
        content = bytes(source)
        yield _require_content(UploadSource(BytesIO(content), 0, len(content), None))
    elif _is_path(source):
        if isinstance(source, str) and source.startswith("data:"):
            raise errors.ConfigurationError("source is a data URL. Pass its decoded bytes: base64.b64decode(...)")
        path = check_path("source", source)
        file = await _run_require_content(f"cannot read {path}", _open_path, path)
        try:
            yield _require_content(UploadSource(file, 0, os.fstat(file.fileno()).st_size, path.name))
        finally:
            await run_in_thread(file.close)
    elif isinstance(source, TextIOBase):
        raise errors.ConfigurationError("source is a text file. Open it in binary mode: open(path, 'rb')")
    elif _is_stream(source):
        with _spool() as spooled:
            async for chunk in source:
                await run_in_thread(spooled.write, _check_chunk(chunk))
            yield _require_content(UploadSource(spooled, 0, spooled.tell(), None))
    elif isinstance(source, BinaryFile):
        async with _open_file(source) as opened:
            yield opened
    else:
        fix = ". Save it to a BytesIO first" if type(source).__name__.endswith("Image") else ""
        raise errors.ConfigurationError(
            "source must be a path, bytes, a binary file, an async iterable of bytes or an https URL, "
            f"not {type(source).__name__}{fix}"
        )


@asynccontextmanager
async def _open_file(file: BinaryFile) -> AsyncGenerator[UploadSource]:
    """Yield the bytes of the caller's file from its position on. The file stays open, at that position."""
    given = getattr(file, "name", None)
    name = Path(given).name if isinstance(given, str) else None
    if _is_rewindable(file):
        start, size = await _run_require_content("cannot read the file", _measure, file)
        yield _require_content(UploadSource(file, start, size, name))
        return
    with _spool() as spooled:
        while chunk := await _run_require_content("cannot read the file", file.read, CHUNK_BYTES):
            await run_in_thread(spooled.write, _check_chunk(chunk))
        yield _require_content(UploadSource(spooled, 0, spooled.tell(), name))


def _spool() -> SpooledTemporaryFile[bytes]:
    from tempfile import SpooledTemporaryFile  # Its import takes milliseconds, and few uploads need it.

    return SpooledTemporaryFile(max_size=_SPOOL_BYTES)


def _is_path(source: object) -> TypeGuard[str | os.PathLike[str]]:
    return isinstance(source, str | os.PathLike)


def _is_bytes(source: object) -> TypeGuard[bytes | bytearray | memoryview[int]]:
    return isinstance(source, bytes | bytearray | memoryview)


def _is_stream(source: object) -> TypeGuard[AsyncIterable[object]]:
    return isinstance(source, AsyncIterable)


def _is_rewindable(file: BinaryFile) -> TypeGuard[_Rewindable]:
    seekable = getattr(file, "seekable", None)
    return callable(seekable) and bool(seekable())


async def _run_require_content(label: str, function: Callable[[*Ts], T], *args: *Ts) -> T:
    try:
        return await run_in_thread(function, *args)
    except (OSError, ValueError) as error:
        if isinstance(error, errors.FloraError):
            raise
        raise errors.ConfigurationError(f"{label}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def _require_content(source: UploadSource) -> UploadSource:
    if source.size <= 0:
        raise errors.ConfigurationError(f"cannot upload {source.label}: it is empty")
    return source


def _check_chunk(chunk: object) -> bytes:
    if not _is_bytes(chunk):
        raise errors.ConfigurationError(f"source yielded {type(chunk).__name__}, not bytes")
    return bytes(chunk)


def _open_path(path: Path) -> BinaryIO:
    # Opening a pipe would block until another process writes to it.
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file. Pass an open binary file for a pipe"
        raise errors.ConfigurationError(f"cannot upload {path}: it is {kind}")
    return path.open("rb")


def _measure(file: _Rewindable) -> tuple[int, int]:
    """Return the position, and the number of bytes from there on."""
    with _turn_of(file):
        start = file.tell()
        size = file.seek(0, os.SEEK_END) - start
        file.seek(start)
        return start, size
