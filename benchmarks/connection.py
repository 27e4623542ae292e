"""A connection of a stub server, which reads whole requests and does nothing else of HTTP."""

from __future__ import annotations

import asyncio


class Connection(asyncio.Protocol):
    """Reads the requests of one connection, pipelined or in parts."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        while (end := received.find(b"\r\n\r\n")) >= 0:
            end += 4
            if received.startswith(b"POST"):
                length = received.lower().index(b"content-length:") + 15
                end += int(received[length : received.index(b"\r", length)])
                if len(received) < end:
                    break
            method, path, _ = received.split(b" ", 2)
            request, received = received[:end], received[end:]
            self.respond(method, path, request)
        self._received = received

    def respond(self, method: bytes, path: bytes, request: bytes, /) -> None:
        """Respond to a whole request."""
        raise NotImplementedError
