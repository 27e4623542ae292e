"""A proxy that breaks what passes it, by a seed; and what became of the orders that went through it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from random import Random

import msgspec
from raw import Connections

from flora_async import Order

FAULTS = ("refuse", "delay", "reset_before", "reset_after", "truncate", "duplicate", "500_after", "503_after")
_KEY = re.compile(rb"(?i)^(idempotency-key:[ \t]*)(\S+)", re.MULTILINE)


class Chaos(Connections):
    """Passes requests on to *upstream* (``http://host:port/...``) and breaks a *share* of them.

    With *frees_keys*, a request that ends in a 5xx frees its idempotency key, though upstream has accepted it: the next
    one under that key is new to upstream.
    """

    def __init__(self, upstream: str, *, share: float, seed: int, delay: float, frees_keys: bool = False) -> None:
        super().__init__()
        self._frees_keys = frees_keys
        self._uses: Counter[bytes] = Counter()
        host, _, port = upstream.partition("//")[2].partition("/")[0].partition(":")
        self._upstream = host, int(port)
        self._path = upstream.partition("//")[2].partition("/")[2]
        self._share = share
        self._random = Random(seed)
        self._delay = delay
        self.met: Counter[str] = Counter()
        """How often each fault was met."""

    @property
    def base_url(self) -> str:
        """What a client takes as its ``base_url``."""
        return f"{self.where}/{self._path}"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await _message(reader)
        request = _KEY.sub(lambda found: b"%s%s.%d" % (found[1], found[2], self._uses[found[2]]), request, count=1)
        fault = self._random.choice(FAULTS) if self._random.random() < self._share else "none"
        pause = self._random.uniform(0, 2 * self._delay)
        self.met[fault] += 1
        if fault in ("refuse", "reset_before"):
            return False
        if fault == "delay":
            await asyncio.sleep(pause)
        up, down = await asyncio.open_connection(*self._upstream)
        try:
            down.write(request)
            answer = await _message(up)
        finally:
            down.transport.abort()
        if fault == "reset_after":
            return False
        if fault in ("500_after", "503_after"):
            key = _KEY.search(request)
            if self._frees_keys and key is not None and b" 201 " in answer[:20]:
                self._uses[key[2].rpartition(b".")[0]] += 1
            writer.write(_server_error(int(fault[:3]), self._random.getrandbits(64)))
            await writer.drain()
            return True
        if fault == "truncate":
            writer.write(answer[: self._random.randrange(1, len(answer))])
            await writer.drain()
            await asyncio.sleep(0.005)
            return False
        writer.write(answer)
        if fault == "duplicate":
            await writer.drain()
            await asyncio.sleep(self._random.choice((0, 0.005)))
            writer.write(answer)
        await writer.drain()
        return True


def _server_error(status: int, number: int) -> bytes:
    code = "service_unavailable" if status == 503 else "internal_error"
    body = msgspec.json.encode({"error": {"code": code, "message": "Something went wrong."}})
    head = f"HTTP/1.1 {status} Error\r\nrequest-id: req_{number}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Read a request or an answer that says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return head + await reader.readexactly(length)


class Verdict(msgspec.Struct):
    """What became of many orders."""

    orders: int = 0
    known: int = 0
    """The caller has the order's one run."""
    unknown: int = 0
    """The caller was told that nobody knows, with the key."""
    refused: int = 0
    """The caller got an ordinary error, and nothing was billed."""
    billed_twice: int = 0
    lost: int = 0
    """Billed, and the caller got an ordinary error, or nothing."""
    anothers: int = 0
    """The caller has the run of another order."""


def judged(
    orders: Mapping[str, Order], runs: Mapping[str, str | None], unknown: frozenset[str] = frozenset()
) -> Verdict:
    """Compare what was billed (*orders* by run id) with what callers know (run ids by prompt)."""
    billed = Counter(order.prompt for order in orders.values())
    verdict = Verdict(orders=len(runs))
    for prompt, run_id in runs.items():
        verdict.billed_twice += billed[prompt] > 1
        if prompt in unknown:
            verdict.unknown += 1
        elif run_id is None:
            verdict.refused += not billed[prompt]
            verdict.lost += bool(billed[prompt])
        elif run_id not in orders or orders[run_id].prompt != prompt:
            verdict.anothers += 1
        else:
            verdict.known += 1
    return verdict
