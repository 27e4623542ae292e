"""Runs that take time, as the stub server shows them in the shape of each API."""

from __future__ import annotations

import json
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

MEDIANS = {"image": 10.0, "video": 110.0, "audio": 6.0, "text": 3.0}
"""Median seconds of a run, by its type. The spread is log-normal."""
SPREAD = 0.5
PAGE = 100
EXTENSIONS = {"image": "png", "video": "mp4", "audio": "wav", "text": "txt"}


class Runs:
    """All runs that were created, oldest first. The durations are the same in each process.

    Outputs are below the URL *media*.
    """

    def __init__(self, media: str = "https://media.flora.ai") -> None:
        self.media = media
        self.kinds: list[str] = []
        self.created: list[float] = []
        self.ends: list[float] = []
        self.requests = 0
        self._chance = random.Random(1)

    def create(self, kind: str, now: float) -> int:
        """Create a run. Return its number."""
        self.kinds.append(kind)
        self.created.append(now)
        self.ends.append(now + MEDIANS[kind] * math.exp(SPREAD * self._chance.gauss(0, 1)))
        return len(self.created) - 1

    def is_done(self, number: int, now: float) -> bool:
        """Return whether a run has ended."""
        return now >= self.ends[number]

    def url(self, number: int) -> str:
        """Return the URL of the output of a run."""
        return f"{self.media}/{number}.{EXTENSIONS[self.kinds[number]]}"


RUNS = Runs()
UNIX = time.time() - time.monotonic()


def respond(
    method: bytes, path: bytes, body: bytes, now: float, base: str, *, runs: Runs = RUNS, kind: str | None = None
) -> object:
    """Return the response to a request below ``/await``, as an object to encode. *kind* is the type of new runs."""
    client, _, rest = path.decode().partition("/")
    where, _, query = rest.partition("?")
    if client == "counts":
        return {"requests": runs.requests, "ends": runs.ends, "now": now}
    runs.requests += 1
    shape = SHAPES[client]
    if method == b"POST":
        given = json.loads(body).get("type") if body.startswith(b"{") else None  # openai sends a form
        return shape(runs, runs.create(kind or given or "image", now), now, base, "created")
    if where.endswith("generations"):
        return _history(runs, query, now, base)
    number, _, view = where.rpartition("run_")[2].partition("/")
    return shape(runs, int(number), now, base, view)


def _flora(runs: Runs, number: int, now: float, base: str, view: str) -> dict[str, Any]:
    created, end = runs.created[number], runs.ends[number]
    run = f"run_{number:010}"
    shown = {"run_id": run, "charged_cost": 0.04, "poll_url": f"{base}/runs/{run}"}
    if view == "created":
        model = {"model_id": "t2i-flux-2-pro"}
        estimate = MEDIANS[runs.kinds[number]]
        return {**shown, "type": "generation", "estimated_seconds": estimate, "project_id": "prj_bench", "model": model}
    done = now >= end
    output = {"output_id": "output_1", "type": f"{runs.kinds[number]}Url", "url": runs.url(number)}
    return {
        **shown,
        "status": "completed" if done else "running",
        "progress": 100 if done else 0,
        "created_at": int(1000 * (UNIX + created)),
        "started_at": int(1000 * (UNIX + created)),
        "completed_at": int(1000 * (UNIX + end)) if done else None,
        "outputs": [output] if done else None,
    }


def _history(runs: Runs, query: str, now: float, base: str) -> dict[str, Any]:
    """Return a page of the history, newest first. Its cursor is the number of the oldest run of the page before."""
    cursor = query.partition("cursor=")[2].partition("&")[0]
    before = int(cursor) if cursor else bisect_right(runs.created, now)
    first = max(0, before - PAGE)
    rows = [
        {**_flora(runs, number, now, base, ""), "generation_id": f"run_{number:010}"}
        | {"project_id": "prj_bench", "workspace_id": "ws_bench", "model": {"model_id": "t2i-flux-2-pro"}}
        for number in range(before - 1, first - 1, -1)
    ]
    return {"generations": rows, "meta": {"next_cursor": str(first) if first else None, "total_estimate": before}}


def _openai(runs: Runs, number: int, now: float, _base: str, _view: str) -> dict[str, Any]:
    done = runs.is_done(number, now)
    shown = {"id": f"run_{number}", "object": "video", "model": "sora-2", "seconds": "4", "size": "720x1280"}
    return {**shown, "created_at": 1790000000, "progress": 0, "status": "completed" if done else "in_progress"}


def _runway(runs: Runs, number: int, now: float, _base: str, view: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": f"run_{number}"}
    if view == "created":
        return shown
    shown["createdAt"] = "2026-11-24T12:00:00Z"
    if runs.is_done(number, now):
        return {**shown, "status": "SUCCEEDED", "output": [runs.url(number)], "cost": {"credits": 4}}
    return {**shown, "status": "RUNNING", "progress": 0, "estimatedCost": {"credits": 4}}


def _elevenlabs(runs: Runs, number: int, now: float, _base: str, _view: str) -> dict[str, Any]:
    if not runs.is_done(number, now):
        return {"id": f"run_{number}", "status": "generating"}
    content = {"content_url": runs.url(number), "content_mime_type": "image/png"}
    return {"id": f"run_{number}", "status": "completed", **content}


def _fal(runs: Runs, number: int, now: float, base: str, view: str) -> dict[str, Any]:
    url = f"{base}/requests/run_{number}"
    if view == "created":
        urls = {"response_url": url, "status_url": f"{url}/status", "cancel_url": f"{url}/cancel"}
        return {"request_id": f"run_{number}", **urls}
    if view == "status":
        return {"status": "COMPLETED" if runs.is_done(number, now) else "IN_PROGRESS", "logs": None, "metrics": {}}
    return {"images": [{"url": runs.url(number), "width": 1024, "height": 1024}]}


def _replicate(runs: Runs, number: int, now: float, base: str, _view: str) -> dict[str, Any]:
    done = runs.is_done(number, now)
    shown: dict[str, Any] = {
        "id": f"run_{number}",
        "model": "bench/model",
        "version": "1",
        "input": {},
        "logs": "",
        "error": None,
    }
    urls = {"get": f"{base}/predictions/run_{number}", "cancel": f"{base}/predictions/run_{number}/cancel"}
    output = runs.url(number) if done else None
    return {**shown, "urls": urls, "status": "succeeded" if done else "processing", "output": output}


SHAPES: dict[str, Callable[[Runs, int, float, str, str], dict[str, Any]]] = {
    "flora": _flora,
    "openai": _openai,
    "runway": _runway,
    "elevenlabs": _elevenlabs,
    "fal": _fal,
    "replicate": _replicate,
}
