"""Pure: the sandbox's runs. The state of a run is a function of the time since its creation."""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from flora_async._bounded_dict import BoundedDict
from flora_async.models import ActionOrder, GenerationType, Order, TechniqueOrder
from flora_async.sandbox._texts import text

SECONDS: dict[GenerationType, float] = {"text": 2.0, "audio": 4.0, "image": 6.0, "video": 12.0}
"""Duration of a run at time scale 1, plus or minus a quarter."""
USD: dict[GenerationType, float] = {"text": 0.01, "audio": 0.02, "image": 0.04, "video": 0.5}
SLOW_SECONDS = 60.0
WAITING_SHARE = 0.1
FAILING_SHARE = 0.4
EXTENSIONS: dict[GenerationType, str] = {"image": "png", "video": "mp4", "audio": "wav"}
FAILURES = {
    "safety_blocked": "The prompt was blocked by the safety system.",
    "provider_error": "The provider failed to complete the generation.",
    "model_timeout": "The model took too long.",
    "input_unreachable": "An input could not be fetched.",
    "internal_error": "Something went wrong.",
}
UNKNOWN_FAILURE = "The run failed, as its prompt asked."

_REQUESTED_FAILURE = re.compile(r"\[fail:([A-Za-z0-9_]{1,64})(?::([^\[\]]{1,200}))?\]")


def seeded_random(*words: object) -> Random:
    """Return a random generator seeded with *words*: the same words make the same choices."""
    return Random(sha256("\0".join(map(str, words)).encode(errors="replace")).digest())


class PlannedOutput(Struct, frozen=True):
    """An output of a technique or an action: a text, or a picture that an effect makes of a source."""

    type: str
    text: str | None = None
    source: str | None = None
    """URL of the picture."""
    effect: str = ""
    params: dict[str, Any] = {}


class SandboxRun(Struct, frozen=True, kw_only=True):
    """A run with its order, its planned durations and its planned end."""

    run_id: str
    order: Order
    seed: int
    created: float
    """Seconds, by the sandbox's clock."""
    created_at: int
    """Unix milliseconds."""
    waiting: float
    """Seconds until the run starts."""
    working: float
    """Seconds that the run takes after its start."""
    failure: str | None
    failure_message: str | None
    kind: str = "generation"
    given: TechniqueOrder | ActionOrder | None = None
    """The order of a technique or an action; ``order`` then has the main words and the type of its inputs."""
    is_nested: bool = False
    """Whether it was started by ``POST /techniques/{id}/runs``."""
    outputs: tuple[PlannedOutput, ...] = ()
    """The outputs of a technique or an action."""
    price: float | None = None
    name: str = ""
    model: str
    quote_factor: float = 1.0
    """Charge of the run divided by its quote."""
    charge_delay: float = 0.0
    """Seconds between the end of the run and its charge."""

    @property
    def estimate(self) -> float:
        """Estimated duration in seconds, within 15 % of the real one."""
        spread = seeded_random("estimate", self.run_id).uniform(0.85, 1.15)
        return round((self.waiting + self.working) * spread, 3)

    @property
    def cost(self) -> float:
        """The charge in USD."""
        return USD[self.order.type] if self.price is None else self.price

    @property
    def quote(self) -> float:
        """The quote in USD."""
        return round(self.cost / self.quote_factor, 6)

    def status(self, now: float) -> str:
        """Return the status of the run."""
        passed = now - self.created
        if passed < self.waiting:
            return "pending"
        if passed < self.waiting + self.working:
            return "running"
        return "failed" if self.failure else "completed"


def plan_run(order: Order, *, now: float, unix: float, time_scale: float) -> SandboxRun:
    """Plan the durations and the end of a run, by its prompt and seed."""
    given = (order.params or {}).get("seed")
    seed = given if isinstance(given, int) else 0
    seconds = SECONDS[order.type] * seeded_random("seconds", order.prompt, seed).uniform(0.75, 1.25) * time_scale
    if "[slow]" in order.prompt:
        seconds = max(SLOW_SECONDS, seconds)
    failure = _REQUESTED_FAILURE.search(order.prompt)
    working = seconds * (1 - WAITING_SHARE) * (FAILING_SHARE if failure and "[slow]" not in order.prompt else 1)
    return SandboxRun(
        run_id=f"run_{secrets.token_hex(8)}",
        order=order,
        seed=seed,
        created=now,
        created_at=round(unix * 1000),
        waiting=seconds - seconds * (1 - WAITING_SHARE),
        working=working,
        failure=failure[1] if failure else None,
        failure_message=(failure[2] or FAILURES.get(failure[1], UNKNOWN_FAILURE)).strip() if failure else None,
        model=order.model or f"sandbox-{order.type}",
    )


def example_run(*, now: float, unix: float, time_scale: float) -> SandboxRun:
    """Return the run ``run_abc123`` of the examples in FLORA's reference."""
    order = Order(
        type="image",
        prompt="A cinematic product photo of a ceramic mug on a sunlit table",
        workspace_id="ws_abc123",
        project_id="prj_abc123",
    )
    return replace(plan_run(order, now=now, unix=unix, time_scale=time_scale), run_id="run_abc123")


def started_record(run: SandboxRun, base_url: str) -> dict[str, object]:
    """Return the record of an accepted run. Reference: "Start a generation", Returns."""
    return {
        "run_id": run.run_id,
        "type": "generation",
        "estimated_seconds": run.estimate,
        "charged_cost": run.quote,
        "poll_url": f"{base_url}/runs/{run.run_id}",
        "project_id": run.order.project_id,
        "model": {"model_id": run.model},
    }


def _poll_url(run: SandboxRun, base_url: str) -> str:
    nested = f"/techniques/{run.given.endpoint}" if run.is_nested and run.given else ""
    return f"{base_url}{nested}/runs/{run.run_id}"


def run_record(run: SandboxRun, now: float, base_url: str) -> dict[str, object]:
    """Return the record of a run. Reference: "Get a run", Returns."""
    status = run.status(now)
    record: dict[str, object] = {
        "run_id": run.run_id,
        "status": status,
        "progress": 0,
        "created_at": run.created_at,
        "poll_url": _poll_url(run, base_url),
    }
    if status == "pending":
        return record
    record["started_at"] = run.created_at + round(1000 * run.waiting)
    if status == "running":
        record["progress"] = int(100 * (now - run.created - run.waiting) / run.working)
        return record
    record["completed_at"] = run.created_at + round(1000 * (run.waiting + run.working))
    if run.failure:
        record["progress"] = round(100 * FAILING_SHARE)
        record["charged_cost"] = 0
        record["error_code"] = run.failure
        record["error_message"] = run.failure_message
        return record
    record["progress"] = 100
    if now - run.created >= run.waiting + run.working + run.charge_delay:
        record["charged_cost"] = run.cost
    record["outputs"] = _planned_outputs(run, base_url) if run.given else [_output(run, base_url)]
    return record


def generation_record(run: SandboxRun, now: float, base_url: str) -> dict[str, object]:
    """Return the record of a run in the history. Reference: "List generation history", Returns."""
    return {
        **run_record(run, now, base_url),
        "generation_id": run.run_id,
        "project_id": run.order.project_id,
        "workspace_id": run.order.workspace_id,
        "model": {"model_id": run.model},
    }


def _planned_outputs(run: SandboxRun, base_url: str) -> list[dict[str, object]]:
    media = f"{base_url.removesuffix('/api/v1')}/media/{run.run_id}"
    return [
        {
            "output_id": f"output_{number}",
            "type": output.type,
            "url": f"{media}/output_{number}.png" if output.text is None else output.text,
        }
        for number, output in enumerate(run.outputs, 1)
    ]


def _output(run: SandboxRun, base_url: str) -> dict[str, object]:
    kind = run.order.type
    if kind == "text":
        written = text(run.order.prompt, seeded_random(run.order.prompt, run.seed))
        return {"output_id": "output_1", "type": "text", "url": written}
    url = f"{base_url.removesuffix('/api/v1')}/media/{run.run_id}/output_1.{EXTENSIONS[kind]}"
    return {"output_id": "output_1", "type": f"{kind}Url", "url": url}


class HistoryQuery(Struct, frozen=True):
    """The parameters of a page of the history."""

    offset: int = 0
    limit: int = 20
    project_id: str | None = None
    workspace_id: str | None = None
    status: str | None = None
    endpoint: str | None = None
    """Technique of the runs."""

    @property
    def unfiltered(self) -> bool:
        """Whether the query has no filter."""
        return (self.project_id, self.workspace_id, self.status, self.endpoint) == (None, None, None, None)

    def matches(self, run: SandboxRun, now: float) -> bool:
        """Return whether a run matches the filters."""
        return (
            self.project_id in (None, run.order.project_id)
            and self.workspace_id in (None, run.order.workspace_id)
            and (self.status is None or self.status == run.status(now))
            and (self.endpoint is None or (run.given is not None and self.endpoint == run.given.endpoint))
        )


def encode_cursor(offset: int) -> str:
    """Encode a cursor in FLORA's format."""
    return base64.urlsafe_b64encode(msgspec.json.encode({"offset": offset})).decode().rstrip("=")


def decode_cursor(cursor: str) -> int | None:
    """Return the offset of a cursor; ``None`` if the cursor is invalid."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        offset = msgspec.json.decode(raw, type=dict[str, int])["offset"]
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError):
        return None
    return offset if 0 <= offset <= 10**9 else None


class Runs:
    """The stored runs: at most *limit*; the oldest are deleted first."""

    def __init__(self, limit: int) -> None:
        self._by_id: BoundedDict[str, SandboxRun] = BoundedDict(limit)

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[SandboxRun]:
        return iter(self._by_id.values())

    def add(self, run: SandboxRun) -> None:
        """Store a run."""
        self._by_id[run.run_id] = run

    def get(self, run_id: str) -> SandboxRun | None:
        """Return a run, or ``None``."""
        return self._by_id.get(run_id)

    def orders(self) -> dict[str, Order]:
        """Return the orders by run id."""
        return {run_id: run.order for run_id, run in self._by_id.items()}

    def page(self, query: HistoryQuery, now: float) -> tuple[list[SandboxRun], int | None, int]:
        """Return a page, newest first, the offset of the next page or ``None``, and the total number of runs.

        Offsets count from the newest: new runs shift the pages, as at FLORA.
        """
        chosen: Iterator[SandboxRun] = reversed(self._by_id.values())
        total = len(self._by_id)
        if not query.unfiltered:
            listed = [run for run in chosen if query.matches(run, now)]
            chosen, total = iter(listed), len(listed)
        end = query.offset + query.limit
        return list(islice(chosen, query.offset, end)), end if end < total else None, total
