"""A server below HTTP: it sends the bytes that a test has written for it, and cuts where the test says."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from typing import Self
from weakref import WeakKeyDictionary

import msgspec


class Asked(msgspec.Struct, frozen=True):
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int


Step = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bool]]
"""Answers one request, and says whether the connection stays."""


def http(body: object = b"", *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    """Write a proper answer; *headers* are further lines."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    size = len(raw) if length is None else length
    lines = f"HTTP/1.1 {status}\r\nrequest-id: req_1\r\nContent-Length: {size}\r\n{headers}\r\n"
    return lines.encode("latin-1") + raw


def head(lines: str, *, status: str = "200 OK") -> bytes:
    """Write a head with no length of its own."""
    return f"HTTP/1.1 {status}\r\nrequest-id: req_1\r\n{lines}\r\n".encode("latin-1")


def say(content: bytes, *, stay: bool = True) -> Step:
    """Answer, and keep the connection."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(content)
        await writer.drain()
        return stay

    return step


def close(content: bytes = b"") -> Step:
    """Say something, and close properly."""
    return say(content, stay=False)


def reset(content: bytes = b"") -> Step:
    """Say something, and tear the connection down."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(content)
        await writer.drain()
        if content:
            await asyncio.sleep(0.02)  # so that it is read before the reset throws it away
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return False

    return step


def drip(content: bytes, *, every: float = 0.02, repeat: bytes = b"") -> Step:
    """Say something byte by byte, and then *repeat* something for ever."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        for index in range(len(content)):
            writer.write(content[index : index + 1])
            await writer.drain()
            await asyncio.sleep(every)
        while repeat:
            writer.write(repeat)
            await writer.drain()
            await asyncio.sleep(every)
        await asyncio.Event().wait()
        return True

    return step


def pour(content: bytes, repeat: bytes) -> Step:
    """Say something, and *repeat* something for ever, as fast as it is read."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(content)
        while True:
            writer.write(repeat)
            await writer.drain()

    return step


class Connections(ABC):
    """A server of connections, each of which goes from request to request; all end with it."""

    where: str
    """``http://host:port``, once it listens."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        self.where = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (
            OSError,
            EOFError,
            RuntimeError,
            asyncio.CancelledError,
        ):  # the peer is gone; uvloop says it by RuntimeError
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.close()

    @abstractmethod
    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; say whether the connection stays."""


class Raw(Connections):
    """The server: for each request the next step, the last again and again. The history is a 404, or what is set."""

    def __init__(self, *steps: Step) -> None:
        super().__init__()
        self.steps = list(steps)
        self.asked: list[Asked] = []
        self.history = http({"error": {"code": "not_found"}}, status="404 Not Found")
        self._numbers: WeakKeyDictionary[asyncio.StreamReader, int] = WeakKeyDictionary()
        self._connections = itertools.count()

    @property
    def base_url(self) -> str:
        """What a client takes as its ``base_url``."""
        return f"{self.where}/api/v1"

    def count(self, method: str) -> int:
        """Say how many requests of a kind came, but for the history."""
        return sum(asked.method == method and "/generations" not in asked.path for asked in self.asked)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        number = self._numbers.get(reader)
        if number is None:
            number = self._numbers[reader] = next(self._connections)
        self.asked.append(Asked(method, path, headers, body, number))
        if "/generations" in path:
            return await say(self.history)(reader, writer)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return await step(reader, writer)
