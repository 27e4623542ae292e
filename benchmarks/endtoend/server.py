"""A server with a rate limit and latencies, which speaks the API of each client and sends the outputs of runs.

It follows the loop's clock, so in virtual time it needs none for its own work. One token bucket is the limit of all
requests to the API; it holds the requests of one second. A request above it gets a 429 with ``Retry-After``. Outputs
come from a host of their own at FLORA, so that their requests are not limited.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate

from benchmarks.calls import awaited

CREATE_SECONDS = 0.3
POLL_SECONDS = 0.12
PAGE_SECONDS = 0.25
MEDIA_SECONDS = 0.2
"""Seconds from a request to its response, by the kind of request. A 429 takes as long as a poll."""
OUTPUT_BYTES = {"image": 50_000, "video": 200_000}
CONTENT_TYPES = {"image": "image/png", "video": "video/mp4"}
REFUSAL = {"error": {"code": "rate_limited", "message": "Too many requests."}}


class Workspace:
    """The runs of one measurement, with the limit of their workspace and the counted requests."""

    def __init__(self, kind: str, limit: float) -> None:
        self.kind = kind
        self.runs = awaited.Runs()
        self.saved: dict[int, float] = {}
        """Time at which the output of a run was on disk, by the number of the run."""
        self.failures: Counter[str] = Counter()
        """Runs that a client gave up, by the name of the error."""
        self.refused = 0
        self.origin = ""
        self.output = bytes(OUTPUT_BYTES[kind])
        self._limit = limit
        self._tokens = self._capacity = max(1.0, limit)
        self._at = -math.inf

    @property
    def requests(self) -> int:
        """Number of requests to the API, the refused ones too."""
        return self.runs.requests + self.refused

    def admit(self, now: float) -> float:
        """Let a request in and return 0, or return the seconds until the next one may come."""
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._limit)
        self._at = now
        if self._tokens < 1 - 1e-9:
            return (1 - self._tokens) / self._limit
        self._tokens -= 1
        return 0.0


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._loop = asyncio.get_running_loop()
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        head, body = self._received[:end], self._received[end:]
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 : head.index(b"\r", at)]) if at >= 0 else 0
        if len(body) < length:
            return
        self._received = body[length:]
        method, path, _ = head.split(b" ", 2)
        self._handle(method, path, body[:length])

    def _handle(self, method: bytes, path: bytes, body: bytes) -> None:
        if path.startswith(b"/media/"):
            kind = CONTENT_TYPES[self._workspace.kind]
            self._loop.call_later(MEDIA_SECONDS, self._send, "200 OK", self._workspace.output, kind)
        elif wait := self._workspace.admit(self._loop.time()):
            self._workspace.refused += 1
            refusal = json.dumps(REFUSAL).encode()
            extra = f"Retry-After: {math.ceil(wait)}\r\n"
            self._loop.call_later(POLL_SECONDS, self._send, "429 Too Many Requests", refusal, "application/json", extra)
        else:
            seconds = CREATE_SECONDS if method == b"POST" else PAGE_SECONDS if b"generations?" in path else POLL_SECONDS
            self._loop.call_later(seconds / 2, self._answer, method, path, body, seconds / 2)

    def _answer(self, method: bytes, path: bytes, body: bytes, rest: float) -> None:
        where = path.removeprefix(b"/await/")
        base = f"{self._workspace.origin}/await/{where.partition(b'/')[0].decode()}"
        runs, kind = self._workspace.runs, self._workspace.kind
        answer = awaited.respond(method, where, body, self._loop.time(), base, runs=runs, kind=kind)
        status = "201 Created" if method == b"POST" else "200 OK"
        self._loop.call_later(rest, self._send, status, json.dumps(answer).encode(), "application/json")

    def _send(self, status: str, body: bytes, content_type: str, extra: str = "") -> None:
        if not self._transport.is_closing():
            date = formatdate(awaited.UNIX + self._loop.time(), usegmt=True)
            head = (
                f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
                f"Date: {date}\r\n{extra}\r\n"
            )
            self._transport.write(head.encode() + body)


@asynccontextmanager
async def serve(kind: str, limit: float) -> AsyncIterator[Workspace]:
    """Serve a workspace on a free port."""
    workspace = Workspace(kind, limit)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(workspace), "127.0.0.1", 0, backlog=4096)
    host, port = server.sockets[0].getsockname()
    workspace.origin = f"http://{host}:{port}"
    workspace.runs.media = f"{workspace.origin}/media"
    try:
        yield workspace
    finally:
        server.close()
