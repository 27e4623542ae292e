"""A server below HTTP: it sends the bytes that a test has written for it, and cuts where the test says."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Self

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


def say(content: bytes) -> Step:
    """Answer, and keep the connection."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(content)
        await writer.drain()
        return True

    return step


def close(content: bytes = b"") -> Step:
    """Say something, and close properly."""

    async def step(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(content)
        await writer.drain()
        return False

    return step


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


class Raw:
    """The server: for each request the next step, the last again and again. The history is a 404, or what is set."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.asked: list[Asked] = []
        self.history = http({"error": {"code": "not_found"}}, status="404 Not Found")
        self.base_url = ""
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/api/v1"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def count(self, method: str) -> int:
        """Say how many requests of a kind came, but for the history."""
        return sum(asked.method == method and "/generations" not in asked.path for asked in self.asked)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        number = self._connections
        try:
            while await self._answer(reader, writer, number):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append(Asked(method, path, headers, body, number))
        if "/generations" in path:
            return await say(self.history)(reader, writer)
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        return await step(reader, writer)
