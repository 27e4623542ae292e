"""A lean FLORA for measurements of growth: it starts runs, completes them after a second, and serves their history.

It parses only the path and the length of a body. ``--history`` serves that many prepared items instead of the started
runs. It prints its port. ``GET /growth`` returns the number of started runs, the Unix time of the first and of the last
start, and the CPU seconds of the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from subprocess import PIPE, Popen
from sys import executable
from typing import Any

from benchmarks.calls.server import ITEMS, page, run
from benchmarks.connection import Connection

RUN_SECONDS = 1.0
_NUMBER = 7_777_777_777
"""Stands for the number of a run in the templates."""


def _template(record: dict[str, object]) -> bytes:
    return json.dumps(record).encode().replace(b"%", b"%%").replace(b"%d" % _NUMBER, b"%(n)010d")


def _run(status: str, **fields: object) -> bytes:
    times = {"created_at": "@c", "started_at": "@c", "completed_at": "@e" if status == "completed" else None}
    record = _template(run(f"run_{_NUMBER}", status) | times | fields)
    return record.replace(b'"@c"', b"%(created)d").replace(b'"@e"', b"%(ended)d")


_PLACE = {"generation_id": f"run_{_NUMBER}", "project_id": "prj_1", "workspace_id": "ws_1"}
RUN = {status: _run(status, poll_url=None) for status in ("running", "completed")}
ROW = {status: _run(status, **_PLACE) for status in ("running", "completed")}
STARTED = _template(
    {
        "run_id": f"run_{_NUMBER}",
        "type": "generation",
        "charged_cost": 0.04,
        "estimated_seconds": RUN_SECONDS,
        "poll_url": None,
        "project_id": "prj_1",
        "model": {"model_id": "t2i-flux-2-pro"},
    }
)


class Lean(Connection):
    """One connection."""

    created: array[float] = array("d")
    """Creation times of the runs, by number."""
    prepared: bytes = b""
    pages = 0

    date = ""

    @classmethod
    def keep_date(cls) -> None:
        """Renew the date of the responses each second."""
        cls.date = formatdate(usegmt=True)
        asyncio.get_running_loop().call_later(1.0, cls.keep_date)

    def respond(self, method: bytes, path: bytes, _request: bytes, /) -> None:
        """Start a run, or return what is read."""
        body = self._start() if method == b"POST" else self._read(path)
        status = "201 Created" if method == b"POST" else "200 OK"
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nDate: {self.date}"
        self._transport.write(f"HTTP/1.1 {status}\r\n{fields}\r\n\r\n".encode() + body)

    def _start(self) -> bytes:
        self.created.append(time.time())
        return STARTED % {b"n": len(self.created) - 1}

    def _read(self, path: bytes) -> bytes:
        where, _, query = path.partition(b"?")
        if where.endswith(b"/growth"):
            first, last = (self.created[0], self.created[-1]) if self.created else (None, None)
            figures = {"started": len(self.created), "first": first, "last": last, "cpu": time.process_time()}
            return json.dumps(figures).encode()
        if not where.endswith(b"/generations"):
            return self._record(RUN, int(where.rpartition(b"_")[2]))
        cursor = query.partition(b"cursor=")[2].partition(b"&")[0]
        return self._prepared_page(int(cursor or 0)) if self.prepared else self._page(cursor)

    def _record(self, templates: dict[str, bytes], number: int) -> bytes:
        created = self.created[number]
        status = "completed" if time.time() >= created + RUN_SECONDS else "running"
        times = {b"created": int(created * 1000), b"ended": int((created + RUN_SECONDS) * 1000)}
        return templates[status] % {b"n": number, **times}

    def _page(self, cursor: bytes) -> bytes:
        """Return the runs before the one that the cursor names, newest first."""
        end = int(cursor) if cursor else len(self.created)
        first = max(0, end - ITEMS)
        rows = b",".join(self._record(ROW, number) for number in range(end - 1, first - 1, -1))
        following = b'"%d"' % first if first else b"null"
        return b'{"generations":[%s],"meta":{"next_cursor":%s}}' % (rows, following)

    def _prepared_page(self, number: int) -> bytes:
        following = b'"%d"' % (number + 1) if number + 1 < self.pages else b"null"
        return self.prepared.replace(b"run_000000", b"run_%06d" % number).replace(b'"page_1"', following)


async def _serve(history: int) -> None:
    if history:
        Lean.prepared, Lean.pages = page(0), history // ITEMS
    loop = asyncio.get_running_loop()
    Lean.keep_date()
    server = await loop.create_server(Lean, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()


@contextmanager
def serving(*, history: int = 0) -> Iterator[str]:
    """Run the server in a process of its own. Yield its base URL."""
    words: tuple[Any, ...] = (executable, "-m", "benchmarks.growth.server", "--history", str(history))
    with Popen(words, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--history", type=int, default=0, help="number of prepared items; a page has 100")
    asyncio.run(_serve(parser.parse_args().history))
