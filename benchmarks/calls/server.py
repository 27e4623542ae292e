"""A stub server for measurements: it sends prepared bytes, so that the client is the bottleneck.

It parses only the path and the length of a body, and validates nothing. The first hundred pages of the history are
prepared. Runs whose id starts with ``run_slow`` never end; all others have completed. Responses below ``/late`` take
50 ms. Runs below ``/await`` take time (``awaited.py``).

Records have the fields of FLORA's reference, nulls where it allows them, two fields that it does not name, and one to
four outputs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from email.utils import formatdate

from benchmarks.calls import awaited
from benchmarks.connection import Connection

PAGES = 100
ITEMS = 100
LATE = 0.05


def _head(status: str, request: int, length: int, date: str = "Tue, 24 Nov 2026 12:00:00 GMT") -> bytes:
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n"
        f"Content-Length: {length}\r\nRequest-Id: req_{request:012}\r\nDate: {date}\r\n\r\n"
    ).encode()


def run(run_id: str, status: str, outputs: int = 1) -> dict[str, object]:
    """Return a run as in the response of ``GET /runs/{runId}``."""
    return {
        "run_id": run_id,
        "status": status,
        "progress": 100 if status == "completed" else 0,
        "created_at": 1790000000000,
        "started_at": 1790000001000,
        "completed_at": 1790000012000 if status == "completed" else None,
        "charged_cost": 0.04,
        "poll_url": f"https://app.flora.ai/api/v1/runs/{run_id}",
        "outputs": [
            {
                "output_id": f"output_{number}",
                "type": "imageUrl",
                "url": f"https://media.flora.ai/node-inputs/2026-11-24/anonymous/{run_id}-{number}.png",
            }
            for number in range(1, outputs + 1)
        ]
        if status == "completed"
        else None,
        "error_code": None,
        "error_message": None,
        "node_id": "7c1f0a52-9d0e-4f6b-a3a1-0d5f4a1f2b8e",
        "queue": {"position": None, "tier": "standard"},
    }


def page(number: int, pages: int = PAGES) -> bytes:
    """Return a page of a history of *pages* pages, as FLORA sends it."""
    items = [
        {
            **run(f"run_{number:06}{item:06}", "completed", 1 + item % 4),
            "generation_id": f"run_{number:06}{item:06}",
            "project_id": "prj_bench",
            "workspace_id": "ws_bench",
            "model": {"model_id": "t2i-flux-2-pro"},
        }
        for item in range(ITEMS)
    ]
    cursor = f"page_{number + 1}" if number + 1 < pages else None
    meta = {"next_cursor": cursor, "total_estimate": pages * ITEMS}
    return json.dumps({"generations": items, "meta": meta}).encode()


def _started(run_id: str) -> bytes:
    return json.dumps(
        {
            "run_id": run_id,
            "type": "generation",
            "charged_cost": 0.04,
            "estimated_seconds": 60,
            "poll_url": f"https://app.flora.ai/api/v1/runs/{run_id}",
            "project_id": "prj_bench",
            "model": {"model_id": "t2i-flux-2-pro"},
            "technique": None,
            "action": None,
            "node_id": "7c1f0a52-9d0e-4f6b-a3a1-0d5f4a1f2b8e",
        }
    ).encode()


_STARTED = _started("run_slow%010d").replace(b"%010d", b"%(id)010d")
_RUN = {
    status: [json.dumps(run("%s", status, outputs)).encode().replace(b"%s", b"%(id)s") for outputs in (1, 2, 3, 4)]
    for status in ("completed", "pending")
}


class Canned(Connection):
    """One connection."""

    answered = 0
    pages = PAGES
    prepared: Sequence[bytes] = ()

    def respond(self, method: bytes, path: bytes, request: bytes, /) -> None:
        """Respond at once, or late where the path says so."""
        if path.startswith(b"/late"):
            asyncio.get_running_loop().call_later(LATE, self._answer, path)
        elif path.startswith(b"/await/"):
            self._answer_awaited(method, path.removeprefix(b"/await/"), request)
        else:
            self._answer(path)

    def _answer_awaited(self, method: bytes, path: bytes, request: bytes) -> None:
        Canned.answered += 1
        host, port = self._transport.get_extra_info("sockname")
        base = f"http://{host}:{port}/await/{path.partition(b'/')[0].decode()}"
        answer = awaited.respond(method, path, request.partition(b"\r\n\r\n")[2], time.monotonic(), base)
        body = json.dumps(answer).encode()
        status = "201 Created" if method == b"POST" else "200 OK"
        if not self._transport.is_closing():
            head = _head(status, Canned.answered, len(body), formatdate(usegmt=True))
            self._transport.write(head + body)

    def _answer(self, path: bytes) -> None:
        Canned.answered += 1
        status = "200 OK"
        where, _, query = path.partition(b"?")
        if where.endswith(b"/generate"):
            status, body = "201 Created", _STARTED % {b"id": Canned.answered}
        elif where.endswith(b"/generations"):
            cursor = query.partition(b"cursor=page_")[2].partition(b"&")[0]
            number = int(cursor or b"0")
            body = self.prepared[number] if number < len(self.prepared) else page(number, self.pages)
        else:
            run_id = where.rpartition(b"/")[2]
            body = _RUN["pending" if run_id.startswith(b"run_slow") else "completed"][Canned.answered % 4] % {
                b"id": run_id
            }
        if not self._transport.is_closing():
            self._transport.write(_head(status, Canned.answered, len(body)) + body)


async def serve(cpu: int | None, pages: int) -> None:
    """Serve on a free port until SIGTERM. Prints the port."""
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    Canned.pages = pages
    Canned.prepared = [page(number, pages) for number in range(min(pages, PAGES))]
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Canned, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", type=int, help="the core to run on")
    parser.add_argument("--pages", type=int, default=PAGES, help="how long the history is; a page has 100 items")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.cpu, arguments.pages))
