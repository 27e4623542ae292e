"""Faults that the sandbox injects, to test services against them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random
from typing import Literal, TypeAlias, get_args

from aiohttp import web

from flora_async.errors import ConfigurationError

FaultName: TypeAlias = Literal[
    "reset",
    "hang",
    "html",
    "redirect",
    "lost_reply",
    "half_reply",
    "repeated_reply",
    "garbage",
    "empty",
    "wrong_run",
]
"""Before the request is processed: ``reset`` cuts the connection, ``hang`` never responds, ``html`` is a proxy's 502,
and ``redirect`` points to another host. After it was processed, and billed: ``lost_reply`` cuts the connection instead
of a response, ``half_reply`` in the middle of it. ``repeated_reply`` sends the response twice, ``garbage`` is invalid
JSON, ``empty`` has no body, and ``wrong_run`` returns another run to a read."""

Fault: TypeAlias = FaultName | int
"""A name, or a status from 400 to 599: the server returns that error and does not process the request."""

BEFORE: frozenset[Fault] = frozenset({"reset", "hang", "html", "redirect"})
REPEAT_DELAY = 0.005
"""Seconds between a response and its repetition."""


def check_fault(fault: object) -> None:
    """Raise ConfigurationError for an unknown fault."""
    known = fault in get_args(FaultName) if isinstance(fault, str) else isinstance(fault, int) and 400 <= fault <= 599
    if not known:
        names = ", ".join(get_args(FaultName))
        raise ConfigurationError(f"a fault is a status from 400 to 599, or one of {names}, not {fault!r}")


def is_number(value: object) -> bool:
    """Return whether a value is a number, and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class FaultPicker:
    """Picks the fault of each request, by a seed."""

    def __init__(self, shares: Mapping[Fault, float], seed: int) -> None:
        for fault, share in shares.items():
            check_fault(fault)
            if not is_number(share) or not 0 <= share <= 1:
                raise ConfigurationError(f"the share of {fault} must be from 0 to 1, not {share!r}")
        if sum(shares.values()) > 1 + 1e-9:
            raise ConfigurationError("the shares of all faults must not be more than 1 together")
        self._shares = dict(shares)
        self._random = Random(seed)

    def pick(self) -> Fault | None:
        """Return the fault of the next request, or ``None``."""
        if not self._shares:
            return None
        point = self._random.random()
        for fault, share in self._shares.items():
            point -= share
            if point < 0:
                return fault
        return None


async def apply_before(fault: Fault, request: web.Request) -> web.Response:
    """Return the response of a fault that replaces the processing of a request."""
    if fault == "html":
        return web.Response(status=502, text="<html><h1>502 Bad Gateway</h1></html>", content_type="text/html")
    if fault == "redirect":
        return web.Response(status=302, headers={"Location": "https://elsewhere.example/"})
    if fault == "hang":
        await asyncio.Event().wait()
    return _abort_connection(request)


def apply_after(fault: Fault | None, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Return the response as a fault changes it."""
    if (
        fault is None
        or fault in BEFORE
        or not isinstance(response, web.Response)
        or not isinstance(response.body, bytes)
    ):
        return response
    if fault == "lost_reply":
        return _abort_connection(request)
    if fault == "garbage":
        response.body = b"]" + response.body
    elif fault == "empty":
        response.body = b""
    elif fault == "wrong_run" and request.method == "POST":
        return response
    elif fault == "wrong_run":
        response.body = response.body.replace(b'"run_id":"run_', b'"run_id":"run_not')
    elif request.transport is not None:
        lines = [f"HTTP/1.1 {response.status} {response.reason}", f"Content-Length: {len(response.body)}"]
        lines += [f"{name}: {value}" for name, value in response.headers.items() if name.lower() != "content-length"]
        whole = "\r\n".join([*lines, "", ""]).encode() + response.body
        if fault == "half_reply":
            request.transport.write(whole[: -len(response.body) // 2])
            request.transport.close()
        else:
            asyncio.get_running_loop().call_later(REPEAT_DELAY, _send_again, request.transport, whole)
    return response


def _send_again(transport: asyncio.Transport, whole: bytes) -> None:
    if not transport.is_closing():
        transport.write(whole)


def _abort_connection(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
