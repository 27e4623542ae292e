"""The sandbox's HTTP server: FLORA's operations, credentials, idempotency and errors, on loopback."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from email.utils import formatdate
from importlib.util import find_spec
from typing import Literal, Self, get_args

import msgspec
from aiohttp import web
from msgspec import Struct
from msgspec.structs import replace

from flora_async._aio import run_in_thread
from flora_async._bounded_dict import BoundedDict
from flora_async.errors import ConfigurationError
from flora_async.models import ActionOrder, GenerationType, Order, TechniqueOrder
from flora_async.sandbox import _catalog, _front_page
from flora_async.sandbox._assets import STORE_PATH, AssetStore
from flora_async.sandbox._contract import (
    RefusalError,
    check_run_id,
    json_response,
    parse_history_query,
    parse_order,
    read_body,
    refusal,
    requested_status,
)
from flora_async.sandbox._faults import (
    BEFORE,
    Fault,
    FaultName,
    FaultPicker,
    apply_after,
    apply_before,
    check_fault,
    is_number,
)
from flora_async.sandbox._kinds import Host, Kinds
from flora_async.sandbox._runs import (
    EXTENSIONS,
    Runs,
    SandboxRun,
    encode_cursor,
    example_run,
    generation_record,
    plan_run,
    run_record,
    started_record,
)
from flora_async.sandbox._studio import Studio
from flora_async.sandbox._webhooks import WebhookSender

log: logging.Logger = logging.getLogger("flora_async.sandbox")

MAX_BODY_BYTES = 2**20
KEY_LIFETIMES = {"reject": 7200.0, "replay": 86400.0}
"""Seconds that a key is stored: FLORA's reference and developer site document different values."""


class _AcceptedCreate(Struct, frozen=True):
    """A create that was accepted under an idempotency key."""

    at: float
    body: bytes
    response_body: bytes


class _PlannedFault(Struct):
    """A fault requested with ``fail_next``."""

    fault: Fault
    times: int
    method: str | None
    path: str
    retry_after: float | None
    code: str | None


class _TokenBucket:
    """A token bucket: *rate* requests a second, and a burst of one second's requests."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate)
        self._tokens = self._capacity
        self._at = now

    def try_acquire(self, now: float) -> float:
        """Acquire a token and return 0; without a token, return the seconds until the next one."""
        self._tokens = min(self._capacity, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1 - 1e-9:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Sandbox:
    """A local FLORA server, for first steps, tests and demos.

    ``async with Sandbox() as sandbox: Flora(sandbox.api_key, base_url=sandbox.base_url)``. It keeps the contract of
    FLORA's reference over real HTTP on this machine: credentials, validation, idempotency, runs that are pending, run
    and finish, a paged history, valid media files. Any workspace and project id with the right prefix exists, and so
    does ``run_abc123`` of the reference's examples, which the history does not list. Nothing is billed, and
    nothing stays on the disk. A ``callback_url`` gets a webhook: https, or http on this machine. The front page, ``/``
    in a browser, shows the newest runs with their prompts and current states, and needs no key.

    A prompt can request an outcome. ``[fail:safety_blocked]``, ``[fail:GPU_PROVIDER_ERROR]``: the run fails with that
    code, in either spelling, and ``[fail:GPU_PROVIDER_ERROR:rejected by the safety system]`` with that message too.
    ``[slow]``: it takes at least a minute at any time scale. ``[http:429]``: the create returns that status and starts
    nothing. The same prompt and ``params={"seed": 7}`` make the same medium. As at FLORA, no value in ``params`` is
    refused, and all are billed; without a required input of its model, a run fails.

    Args:
        api_key: the only accepted key; by default a new one.
        any_key: accept any key.
        host: the address to listen on.
        port: the port to listen on; 0 is any free one.
        time_scale: factor of run durations; at 1 a text takes about 2 seconds, a sound 4, an image 6, a video 12.
        quote_factor: the charge of a run divided by its quote, the ``charged_cost`` of the create. FLORA's quotes were
            off by 3.5 and by 1.5.
        charge_delay: seconds at time scale 1 between the end of a run and its ``charged_cost``; up to 60 at FLORA.
        idempotency: the response to a create under a used key: ``"reject"``, a 409 within 2 hours, as in the
            reference; ``"replay"``, the first response again within 24 hours, as on the developer site.
        max_runs: maximum number of stored runs; the oldest are deleted first.
        faults: injected faults, each with its share of the requests, like ``{"lost_reply": 0.1, 503: 0.05}``;
            :data:`flora_async.sandbox.FaultName` lists them.
        models: the response to ``GET /models``, in place of the sandbox's own models.
        seed: selects the requests that get a fault; the same ones for the same seed and sequence of requests.
        lost_webhooks: the share of webhooks that are never sent.
        rate_limit: requests a second for each API key, with a burst of one second's requests. More are rejected with
            429 and ``Retry-After``, and not processed. By default there is no limit.

    Raises:
        ConfigurationError: an argument is invalid, or Pillow and PyAV, the extra ``sandbox``, are not installed.
    """

    def __init__(
        self,
        *,
        api_key: str | None = None,
        any_key: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        time_scale: float = 1.0,
        quote_factor: float = 1.0,
        charge_delay: float = 0.0,
        idempotency: Literal["reject", "replay"] = "reject",
        max_runs: int = 200_000,
        faults: Mapping[Fault, float] | None = None,
        models: Sequence[Mapping[str, object]] | None = None,
        seed: int = 0,
        lost_webhooks: float = 0.0,
        rate_limit: float | None = None,
    ) -> None:
        positive = {"time_scale": time_scale, "rate_limit": rate_limit, "quote_factor": quote_factor}
        for name, value in positive.items():
            if value is not None and not (is_number(value) and value > 0 and math.isfinite(value)):
                raise ConfigurationError(f"{name} must be a finite number above 0, not {value!r}")
        if idempotency not in KEY_LIFETIMES:
            raise ConfigurationError(f"idempotency must be 'reject' or 'replay', not {idempotency!r}")
        if not (is_number(charge_delay) and 0 <= charge_delay < math.inf):
            raise ConfigurationError(f"charge_delay must be a finite number of seconds from 0 on, not {charge_delay!r}")
        if not (is_number(lost_webhooks) and 0 <= lost_webhooks <= 1):
            raise ConfigurationError(f"lost_webhooks must be a share from 0 to 1, not {lost_webhooks!r}")
        _check_count("max_runs", max_runs)
        _check_count("port", port, 0, 65535)
        self.api_key: str = api_key or f"sk_test_{secrets.token_hex(16)}"
        """An accepted API key."""
        self.accepted: int = 0
        """Number of accepted creates: FLORA would have billed these."""
        self.requests: Counter[str] = Counter()
        """Number of requests by operation, like ``requests["POST /generate"]`` or ``requests["GET /runs"]``."""
        self._own_models = models
        self._any_key = any_key
        self._host = host
        self._port = port
        self._time_scale = time_scale
        self._quote_factor = quote_factor
        self._charge_delay = charge_delay * time_scale
        self._idempotency: Literal["reject", "replay"] = idempotency
        self._rate_limit = rate_limit
        self._buckets: dict[str, _TokenBucket] = {}
        self._runs = Runs(max_runs)
        self._assets = AssetStore(time_scale=time_scale)
        self._keys: BoundedDict[tuple[str, str], _AcceptedCreate] = BoundedDict(max_runs)
        services = Host(
            lambda: self.base_url, lambda: self._clock(), self._plan, self._accept, self._count_accepted, self._runs
        )
        self._kinds = Kinds(services, max_runs)
        self._studio = Studio(services, self._kinds)
        self._planned: list[_PlannedFault] = []
        self._fault_picker = FaultPicker(faults or {}, seed)
        self._webhooks = WebhookSender(time_scale=time_scale, lost=lost_webhooks, seed=seed)
        self.webhook_secret: str = self._webhooks.secret
        """Secret that signs the webhooks: the ``secret`` of ``flora.inbox``."""
        self._runner: web.AppRunner | None = None
        self._url = ""
        self._clock: Callable[[], float] = time.monotonic
        self._unix_at_zero = 0.0

    @property
    def base_url(self) -> str:
        """The ``base_url`` for a client."""
        if not self._url:
            raise ConfigurationError("the sandbox has not been started: use `async with Sandbox() as sandbox:`")
        return self._url

    @property
    def orders(self) -> dict[str, Order]:
        """The orders of generations by run id, oldest first."""
        return self._runs.orders()

    @property
    def technique_and_action_orders(self) -> dict[str, TechniqueOrder | ActionOrder]:
        """The orders of techniques and actions by run id."""
        return self._kinds.orders()

    async def start(self) -> None:
        """Start to listen. ``async with`` does it too."""
        for needed in ("PIL", "av"):
            if find_spec(needed) is None:
                raise ConfigurationError(
                    f"the sandbox makes real media and needs {needed}: pip install 'flora-async[sandbox]'"
                )
        # Runs use the loop's clock, so that they follow a loop in virtual time.
        self._clock = asyncio.get_running_loop().time
        self._unix_at_zero = time.time() - self._clock()
        self._example = example_run(now=self._clock(), unix=time.time(), time_scale=self._time_scale)
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._handle])
        app.add_routes(
            [
                web.post("/api/v1/generate", self._create),
                web.post("/api/v1/runs/generation", self._create),
                *self._kinds.routes(),
                *self._studio.routes(),
                web.get("/api/v1/runs/{run_id}", self._retrieve),
                web.get("/api/v1/generations", self._list),
                web.get("/api/v1/workspaces", self._workspaces),
                web.get("/api/v1/models", self._models),
                *self._assets.routes(),
                web.get("/media/{run_id}/{name}", self._media),
                web.get("/", self._front_page),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except (OSError, OverflowError, ValueError) as error:
            await runner.cleanup()
            number = error.errno if isinstance(error, OSError) else None
            why = os.strerror(number) if number and number > 0 else str(error)
            raise ConfigurationError(
                f"the sandbox cannot listen on {self._host}:{self._port}: {why}. port 0 is any free one"
            ) from None
        self._runner = runner
        host, port = runner.addresses[0][:2]
        origin = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        await self._assets.start(self._host, origin, self._clock, self._unix_at_zero, self._handle)
        self._url = f"{origin}/api/v1"

    async def close(self) -> None:
        """Stop listening and cancel pending webhooks. A second call does nothing."""
        runner, self._runner = self._runner, None
        await self._webhooks.close()
        await self._assets.close()
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def fail_next(
        self,
        fault: Fault,
        *,
        times: int = 1,
        method: str | None = None,
        path: str = "",
        retry_after: float | None = None,
        code: str | None = None,
    ) -> None:
        """Inject a *fault* into the next *times* requests: an error of that status, or a fault by its name.

        *method* and *path*, a prefix of the path below the base URL, select the requests, like ``path="/runs"``.
        *retry_after* is in seconds; *code* is by default FLORA's usual one for the status.

        Raises:
            ConfigurationError: the fault is unknown, or a number is out of range.
        """
        check_fault(fault)
        _check_count("times", times)
        if retry_after is not None and not (is_number(retry_after) and 0 <= retry_after < math.inf):
            raise ConfigurationError(f"retry_after must be a finite number of seconds from 0 on, not {retry_after!r}")
        self._planned.append(_PlannedFault(fault, times, method, path, retry_after, code))

    # -- every request

    @web.middleware
    async def _handle(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        fault: Fault | None = None
        try:
            if request.path.startswith("/api/v1/"):
                path = request.path.removeprefix("/api/v1")
                self.requests[f"{request.method} /{path.split('/')[1]}"] += 1
                self._check_rate(self._check_key(request))
                fault = self._next_fault(request.method, path)
            elif request.path == STORE_PATH:
                fault = self._next_fault(request.method, request.path)
            response = await (apply_before(fault, request) if fault in BEFORE else handler(request))
        except RefusalError as error:
            response = json_response(error.body, status=error.status)
            response.headers.update(error.headers)
        except web.HTTPException as error:
            words = refusal(error.status, message=error.reason)
            response = json_response(words.body, status=words.status)
        except Exception:
            extra = {"method": request.method, "path": request.path}
            log.exception("%s %s failed", request.method, request.path, extra=extra)
            response = json_response(refusal(500, message="The sandbox has failed.").body, status=500)
        response.headers["request-id"] = f"req_{secrets.token_hex(12)}"
        # The date follows the clock of the runs, which may be virtual.
        response.headers["Date"] = formatdate(self._unix_at_zero + self._clock(), usegmt=True)
        return apply_after(fault, request, response)

    def _check_key(self, request: web.Request) -> str:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise refusal(401, message="An API key is required: Authorization: Bearer ...")
        if not self._any_key and not secrets.compare_digest(key.strip().encode(), self.api_key.encode()):
            raise refusal(401, code="invalid_api_key", message="The API key is not valid.")
        return key.strip()

    def _check_rate(self, key: str) -> None:
        """Raise the 429 of a request above the rate limit of its key."""
        if self._rate_limit is None:
            return
        bucket = self._buckets.setdefault(key, _TokenBucket(self._rate_limit, self._clock()))
        wait = bucket.try_acquire(self._clock())
        if wait > 0:
            raise refusal(429, message="Too many requests.", retry_after=wait)

    def _next_fault(self, method: str, path: str) -> FaultName | None:
        """Return the fault of a request by its name, or raise the error response of a status."""
        for planned in self._planned:
            if planned.method in (None, method) and path.startswith(planned.path):
                planned.times -= 1
                if planned.times <= 0:
                    self._planned.remove(planned)
                break
        else:
            planned = None
        fault = planned.fault if planned else self._fault_picker.pick()
        if isinstance(fault, int):
            code, retry_after = (planned.code, planned.retry_after) if planned else (None, None)
            raise refusal(fault, code=code, retry_after=retry_after)
        return fault

    # -- FLORA's operations

    async def _create(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        key = request.headers.get("Idempotency-Key")
        if self._idempotency == "replay":
            key = str(given.pop("idempotency_key", None) or key or "")
        quoted = given.pop("quote", None) is True
        order = parse_order(given)
        if quoted:  # undocumented at FLORA: the answer is the quote, and nothing is started
            return json_response({"estimated_cost": self._plan(order).quote})

        def plan() -> tuple[SandboxRun, object]:
            run = self._check_inputs(self._plan(order))
            self._runs.add(run)
            return run, started_record(run, self.base_url)

        return self._accept(request, key, msgspec.json.encode(order), plan)

    def _plan(self, order: Order) -> SandboxRun:
        """Plan the run of an order, or raise the error that its prompt requests."""
        if status := requested_status(order.prompt):
            raise refusal(status, retry_after=1 if status == 429 else None)
        now = self._clock()
        run = plan_run(order, now=now, unix=self._unix_at_zero + now, time_scale=self._time_scale)
        return replace(run, quote_factor=self._quote_factor, charge_delay=self._charge_delay)

    def _accept(
        self,
        request: web.Request,
        key: str | None,
        body: bytes,
        plan: Callable[[], tuple[SandboxRun | None, object]],
        *,
        status: int = 201,
    ) -> web.Response:
        """Start what *plan* plans, or respond to a used key. Keys count for one operation."""
        now = self._clock()
        scope = (request.headers["Authorization"], f"{request.path} {key}")
        used = self._keys.get(scope) if key else None
        if used is not None and now - used.at <= KEY_LIFETIMES[self._idempotency]:
            return self._respond_to_used_key(used, body)
        run, record = plan()
        if run is not None:
            self._webhooks.schedule(run)
            self._count_accepted()
        response_body = msgspec.json.encode(record)
        if key:
            self._keys.pop(scope, None)
            self._keys[scope] = _AcceptedCreate(now, body, response_body)
        return web.Response(body=response_body, status=status, content_type="application/json")

    def _count_accepted(self) -> None:
        self.accepted += 1

    def _check_inputs(self, run: SandboxRun) -> SandboxRun:
        """Return the run, with a planned failure if its inputs cannot be used."""
        if run.failure is not None:
            return run
        missing = _catalog.missing_inputs(run.order, self._list_models())
        if missing:
            reason = f"The input {', '.join(missing)} is missing."
            return replace(run, failure="GENERATION_INPUT_VALIDATION", failure_message=reason)
        return replace(run, failure=self._assets.input_failure(run.order.params))

    def _respond_to_used_key(self, used: _AcceptedCreate, body: bytes) -> web.Response:
        if self._idempotency == "reject":
            raise refusal(409, code="idempotency_duplicate", message="This idempotency key was used before.")
        if used.body != body:
            raise refusal(422, message="This idempotency key was used for another body.")
        headers = {"idempotent-replayed": "true"}
        return web.Response(body=used.response_body, status=201, content_type="application/json", headers=headers)

    async def _retrieve(self, request: web.Request) -> web.Response:
        run_id = request.match_info["run_id"]
        check_run_id(run_id)
        return json_response(run_record(self._run(run_id), self._clock(), self.base_url))

    def _run(self, run_id: str) -> SandboxRun:
        run = self._runs.get(run_id) or self._kinds.get(run_id)
        if run is None and run_id == self._example.run_id:
            return self._example
        if run is None:
            raise refusal(404, message="There is no such run.")
        return run

    async def _list(self, request: web.Request) -> web.Response:
        query = parse_history_query(request.query)
        now = self._clock()
        runs, following, total = self._runs.page(query, now)
        cursor = None if following is None else encode_cursor(following)
        listed = [generation_record(run, now, self.base_url) for run in runs]
        return json_response({"generations": listed, "meta": {"next_cursor": cursor, "total_estimate": total}})

    async def _workspaces(self, _request: web.Request) -> web.Response:
        return json_response({"workspaces": _catalog.WORKSPACES})

    async def _models(self, request: web.Request) -> web.Response:
        wanted = request.query.get("type")
        if wanted is not None and wanted not in get_args(GenerationType):
            fields = {"type": f"Must be one of {', '.join(get_args(GenerationType))}"}
            raise RefusalError(400, "input_validation_error", "The request is not valid.", fields=fields)
        return json_response({"models": [model for model in self._list_models() if wanted in (None, model["type"])]})

    def _list_models(self) -> Sequence[Mapping[str, object]]:
        return _catalog.MODELS if self._own_models is None else self._own_models

    async def _media(self, request: web.Request) -> web.Response:
        from flora_async.sandbox import _media

        run = self._run(request.match_info["run_id"])
        if run.given is not None:
            picture = await self._kinds.render(run, request.match_info["name"])
            if picture is None:
                raise refusal(404, message="There is no such output.")
            return _range_response(request, picture, "image/png")
        kind = run.order.type
        there = run.status(self._clock()) == "completed" and kind in EXTENSIONS
        if not there or request.match_info["name"] != f"output_1.{EXTENSIONS[kind]}":
            raise refusal(404, message="There is no such output.")
        picture = await self._assets.picture_of(run.order.params)
        medium = await run_in_thread(_media.render, kind, run.order.prompt, run.seed, picture)
        return _range_response(request, medium.content, medium.content_type)

    async def _front_page(self, request: web.Request) -> web.Response:
        query = parse_history_query({"limit": str(_front_page.RUNS_PER_PAGE), **request.query})
        now = self._clock()
        runs, following, total = self._runs.page(query, now)
        older = None if following is None else str(request.rel_url.update_query(cursor=encode_cursor(following)))
        page = _front_page.page(runs, now, self.base_url, total=total, older=older)
        return web.Response(text=page, content_type="text/html", headers=_front_page.HEADERS)


def _check_count(name: str, value: object, least: int = 1, most: float = math.inf) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        wanted = f"from {least} on" if most == math.inf else f"from {least} to {most}"
        raise ConfigurationError(f"{name} must be a whole number {wanted}, not {value!r}")


def _range_response(request: web.Request, content: bytes, content_type: str) -> web.Response:
    """Return the response with a medium, or with the requested range of it."""
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "no-store"}
    try:
        requested = request.http_range
    except ValueError:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    start, stop, _ = requested.indices(len(content))
    if requested == slice(None, None, 1):
        return web.Response(body=content, content_type=content_type, headers=headers)
    if start >= stop:
        return web.Response(status=416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
    return web.Response(body=content[start:stop], status=206, content_type=content_type, headers=headers)
