"""The client: settings checked once, and the rooms bound together."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterable, Iterable, Mapping
from functools import partial
from inspect import iscoroutine
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeVar, overload

from msgspec.structs import replace

from flora_async import errors
from flora_async._downloads import Downloads
from flora_async._generate_many import OrderRunner, Outcomes
from flora_async._http import urls
from flora_async._http.auth import load_api_key
from flora_async._http.requests import Request, custom_request, list_request, order_of, retrieve_request
from flora_async._http.responses import RawResponse, check_decodable, http_date, parse_page, parse_response, parse_run
from flora_async._http.transport import Transport
from flora_async._lazy import LazyModule
from flora_async._outcomes import CompletedOutcome, OrderT
from flora_async._polling.durations import DurationEstimator
from flora_async._polling.poller import Poller, PollOperations
from flora_async._polling.schedule import PollFactory, check_schedule
from flora_async._polling.targets import PollResult, WaitTarget
from flora_async._polling.waiting import OnUpdate, RunOutcomes, RunWatch, wait_for_run
from flora_async._resources.catalog import Models, Projects, Workspaces
from flora_async._resources.create_recovery import CreateRecovery
from flora_async._resources.generations import Generations, OnCreate
from flora_async._validation import (
    check_callback,
    check_count,
    check_flag,
    check_path,
    check_run,
    check_seconds,
    check_ssl,
    check_text,
    check_timeout,
    check_usd,
    resolve_setting,
)
from flora_async._version import __version__
from flora_async.events import OnEvent, make_emitter
from flora_async.models import (
    Generation,
    GenerationPage,
    GenerationType,
    Order,
    Output,
    Response,
    Run,
    RunLike,
    StartedRun,
    lacks_outputs,
)
from flora_async.webhooks import Inbox

if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = LazyModule("aiohttp")

T = TypeVar("T")

DEFAULT_BASE_URL = "https://app.flora.ai/api/v1"
AWAITED_RUNS = 10_000
"""Number of runs, created here and awaited, whose duration is learned from when they finish."""
PLAUSIBLE_AGE = 86400.0
"""Seconds; an unfinished run that seems older, or not yet born, has a time stamp that says nothing."""

log = logging.getLogger("flora_async")


class Flora:
    """A client of FLORA, for one event loop. Use it as ``async with Flora() as flora:``, or ``close()`` it.

    Args:
        api_key: the key; else ``FLORA_API_KEY``. It is sent to *base_url* and nowhere else.
        base_url: where FLORA is; else ``FLORA_BASE_URL``, else FLORA itself. https, or http on this machine.
        timeout: seconds for one HTTP exchange; a call may take ``max_retries + 1`` of them, and the pauses between.
        max_retries: how often a request is sent again; 0: one try, one POST.
        poll: gives a wait generator for each run, like ``lambda: backoff.constant(interval=2)``; the default looks when
            the run should be done, never more often than every 2 seconds (see ``wait_for_run``).
        session: an aiohttp session to carry the reads, and nothing else: creates and downloads use sessions of this
            client. It is not closed here. It is refused with a proxy, a connector other than ``aiohttp.TCPConnector``
            or headers of its own that come in the way of the key, and in another event loop than its own.
        proxy: URL of an HTTP proxy for everything; the environment's is not used.
        ssl: which servers are trusted, and this client's certificate: an ``ssl.SSLContext`` for reads, creates and
            downloads alike; else Python's default one, which reads ``SSL_CERT_FILE`` once, as the process starts.
            With *session*, reads go as that session says.
        max_response_bytes: the largest answer that is read, unpacked.
        max_download_bytes: the largest output that is saved.
        batch_polling: read pages of the history where that tells of several runs at once.
        recover: what becomes of a create whose answer was lost, though FLORA has accepted it: ``"auto"`` returns the
            run from the history if it can be no other; ``"strict"`` never does, and raises with the candidates.
        on_create: called with the idempotency key and the order before each create: write them down, and no crash or
            cancellation can make you forget what you may have paid for.
        on_event: called with each :class:`Event` as it happens: a request ended, a run was created, a wait began or
            ended. A plain, quick function; what it raises is logged once, and changes nothing.
        allow_insecure: let *base_url* be http on another machine; everybody on the way can read the key.
        allow_private_hosts: download outputs from private addresses too.

    Raises:
        ConfigurationError: a setting is missing or cannot be used.
    """

    generations: Generations
    """Create, retrieve and list, as in FLORA's reference."""
    workspaces: Workspaces
    """The workspaces of the key."""
    projects: Projects
    """Their projects."""
    models: Models
    """The models that can be ordered, and what each takes."""

    def __init__(
        self,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        poll: PollFactory | None = None,
        session: aiohttp.ClientSession | None = None,
        proxy: str | None = None,
        ssl: SSLContext | None = None,
        max_response_bytes: int = 8 * 2**20,
        max_download_bytes: int = 2**30,
        batch_polling: bool = True,
        recover: Literal["auto", "strict"] = "auto",
        on_create: OnCreate | None = None,
        on_event: OnEvent | None = None,
        allow_insecure: bool = False,
        allow_private_hosts: bool = False,
    ) -> None:
        key, fault = load_api_key(api_key)
        api_key = None  # an error below shows the locals of this frame to whoever records them
        if fault is not None:
            raise errors.ConfigurationError(fault)
        check_flag("allow_insecure", allow_insecure)
        self._origin = urls.parse_base_url(
            resolve_setting("base_url", base_url, "FLORA_BASE_URL") or DEFAULT_BASE_URL, allow_insecure=allow_insecure
        )
        self._allow_private_hosts = check_flag("allow_private_hosts", allow_private_hosts)
        retries = check_count("max_retries", max_retries, least=0)
        if recover not in ("auto", "strict"):
            raise errors.ConfigurationError(f"recover must be 'auto' or 'strict', not {recover!r}")
        if on_create is not None:
            check_callback("on_create", on_create, "an idempotency key and an Order")
        tell = make_emitter(on_event)
        self._poll = _checked_poll(poll)
        if proxy is not None:
            urls.check_proxy(self._origin, check_text("proxy", proxy), allow_insecure=allow_insecure)
        self._transport = Transport(
            key=key,
            version=__version__,
            timeout=check_seconds("timeout", timeout),
            max_retries=retries,
            max_bytes=check_count("max_response_bytes", max_response_bytes, least=1),
            proxy=proxy,
            session=session,
            may_connect=self._may_connect,
            ssl=None if ssl is None else check_ssl(ssl),
            emit=tell,
        )
        self._awaited: dict[str, StartedRun] = {}
        self._estimates = DurationEstimator()
        self._poller = Poller(
            PollOperations(
                retrieve_run=self._retrieve_run,
                read_page=self._read_page if batch_polling else None,
                resolve_poll_url=self._resolve_poll_url,
                lane=self._transport.polls,
                clock=lambda: self._recovery.now(),
                on_finished=self._update_estimate,
                emit=tell,
            )
        )
        self._told_foreign = False
        self._has_inbox = False
        self._recovery = CreateRecovery(self._origin, self._transport, adopt=recover == "auto")
        self.generations = Generations(self._origin, self._transport, self._recovery, on_create=on_create, tell=tell)
        self.workspaces = Workspaces(self._origin, self._transport)
        self.projects = Projects(self._origin, self._transport, self.workspaces)
        self.models = Models(self._origin, self._transport)
        self._downloads = Downloads(
            open_media=self._transport.media,
            check_url=partial(urls.media_url, self._origin, allow_private_hosts=allow_private_hosts),
            retrieve=self.generations.retrieve,
            pause=self._transport.sleep,
            retries=retries,
            timeout=timeout,
            max_bytes=check_count("max_download_bytes", max_download_bytes, least=1),
        )

    def __repr__(self) -> str:
        return f"Flora(base_url={self._origin.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        raise errors.ConfigurationError(
            "a client is neither pickled nor copied: it holds an API key and belongs to one event loop; open another"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    if not TYPE_CHECKING:  # type checkers refuse a plain with by themselves

        def __enter__(self) -> NoReturn:
            raise errors.ConfigurationError("Flora cannot be opened by with alone. Use async with Flora(...) as flora")

        def __exit__(self, *exc_info: object) -> None:
            """Exist, since Python looks for it before it calls ``__enter__``."""

    async def close(self) -> None:
        """Close the client's connections. Again is fine, also on another event loop or in another thread.

        Waits and requests under way, in a pause or in a queue end in :class:`ClientClosedError` at once. Runs that were
        started go on at FLORA.
        """
        await self._transport.close(self._poller.close)

    async def aclose(self) -> None:
        """Close the client as :meth:`close` does, under the name that ``contextlib.aclosing`` calls."""
        await self.close()

    async def wait_for_run(
        self,
        run: RunLike,
        *,
        timeout: float | None = 600.0,
        on_update: OnUpdate | None = None,
        poll: PollFactory | None = None,
    ) -> Run:
        """Wait until *run* has completed and return it with its outputs.

        Looks when the run is expected to be done, then more and more rarely: never more often than every 2 seconds, as
        FLORA advises, and at most 13 seconds late. A run that this client did not just start is looked at at once; a
        finished one is returned without a request. Cancelling stops the looking, not the run: FLORA has no way to call
        a run off.

        Args:
            run: what ``create`` returned, any record of the run, or its id.
            timeout: seconds for all of it, a hanging request included; ``None``: no limit.
            on_update: called with each change of the run, the last one included; what it raises ends the wait.
            poll: a schedule for this wait, in place of the client's. Where several waits for one run have schedules of
                their own, the run is polled whenever one of them is due; a wait that ends takes its schedule along.

        Raises:
            RunFailedError: FLORA gave the run up; ``error.run`` says why. Failed runs are not charged.
            RunTimeoutError: *timeout* seconds have passed; await the same run again to go on.
            NotFoundError: there is no such run, 10 seconds after its creation (bare id: after the first look).
            BadRequestError, AuthenticationError, PermissionDeniedError: the run may not be polled.
            APIConnectionError: a redirect, an untrusted certificate or an oversized response, which no retry fixes. No
                other error between here and FLORA ends the wait.
        """
        if on_update is not None:
            check_callback("on_update", on_update, "a Run")
        finished = await wait_for_run(
            self._poller,
            self._wait_target(run),
            poll=_checked_poll(poll) or self._poll,
            timeout=check_timeout(timeout),
            on_update=on_update,
        )
        recovered = isinstance(run, StartedRun | Run) and run.recovered
        return replace(finished, recovered=True) if recovered else finished

    def watch_run(self, run: RunLike | Iterable[RunLike], *, timeout: float | None = None) -> RunWatch:
        """Watch a run change, or many: ``async for seen in flora.watch_run(run)``; the finished run is its last item.

        Looks as often as ``wait_for_run``, and ends on the same errors, but for a failed run, which is an item like
        others. What tells nothing new is left out, and progress never goes backwards. *timeout* counts from the first
        item that is asked for.
        """
        return RunWatch(self._poller, self._wait_targets(run), poll=self._poll, timeout=check_timeout(timeout))

    def as_completed(self, runs: Iterable[RunLike], *, timeout: float | None = None) -> RunOutcomes:
        """Hand out runs as they finish: ``async for outcome in flora.as_completed(runs)``.

        Each :data:`Outcome` has a ``run_id``, no order, and either the completed ``run`` or the ``error``, a
        :class:`RunFailedError` if FLORA gave it up, a :class:`RunTimeoutError` if *timeout* seconds from the first item
        were not enough. A thousand runs cost few requests more than ten: the history tells of a hundred at once.
        """
        return RunOutcomes(self._poller, self._wait_targets(runs), poll=self._poll, timeout=check_timeout(timeout))

    def generate_many(
        self,
        orders: Iterable[OrderT] | AsyncIterable[OrderT],
        *,
        concurrency: int = 32,
        max_cost: float | None = None,
    ) -> Outcomes[OrderT]:
        """Order many generations, and hand them out as they finish.

        Each :data:`Outcome` has the caller's own ``order`` and either the completed ``run`` or the ``error``;
        ``outcome.result()`` returns the one or raises the other. No failure touches the others. Orders are read one by
        one, as there is room; each run is waited for as ``wait_for_run`` does, for 600 seconds.

        Args:
            orders: what to generate; any iterable, or an asynchronous one. An asynchronous generator is closed at the
                end.
            concurrency: how many orders may be started and not yet yielded.
            max_cost: USD. No order is started that would pass it together with those before. Prices are learned by type
                and model from what runs are charged, so the first order of each starts alone; until its charge is known
                its quote counts fourfold. Failed runs are free. A create with an unknown outcome counts as billed.
                Orders that are not started have no outcome. A 402 ends the starting too; ``outcomes.stop_reason`` tells
                which it was, ``outcomes.unstarted`` is an order that was read in vain.

        Raises:
            ConfigurationError: *orders* is not iterable, or yields something else than an Order.
        """
        if self._poll is not None:
            check_schedule(self._poll)
        runner = OrderRunner(
            orders,
            start=self._start,
            finish=self.wait_for_run,
            concurrency=check_count("concurrency", concurrency, least=1),
            max_cost=None if max_cost is None else check_usd("max_cost", max_cost),
        )
        return Outcomes(runner)

    @overload
    async def generate(
        self,
        order: Order,
        /,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = 600.0,
        on_update: OnUpdate | None = None,
        poll: PollFactory | None = None,
    ) -> Run: ...

    @overload
    async def generate(
        self,
        /,
        *,
        type: GenerationType,
        prompt: str,
        workspace_id: str,
        project_id: str,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = 600.0,
        on_update: OnUpdate | None = None,
        poll: PollFactory | None = None,
    ) -> Run: ...

    async def generate(
        self,
        order: Order | None = None,
        /,
        *,
        type: GenerationType | None = None,
        prompt: str | None = None,
        workspace_id: str | None = None,
        project_id: str | None = None,
        model: str | None = None,
        params: Mapping[str, Any] | None = None,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
        timeout: float | None = 600.0,
        on_update: OnUpdate | None = None,
        poll: PollFactory | None = None,
    ) -> Run:
        """Start a generation and wait for it: ``generations.create`` and ``wait_for_run`` in one, with their errors.

        Takes an Order, or its fields: ``generate(order)``, or ``generate(type=..., prompt=..., ...)``.

        Every error after the start has the ``run_id``: the run is paid for, and can be awaited again.
        """
        check_timeout(timeout)
        if on_update is not None:
            check_callback("on_update", on_update, "a Run")
        schedule = _checked_poll(poll) or self._poll
        if schedule is not None:
            check_schedule(schedule)
        order = order_of(
            order,
            {
                "type": type,
                "prompt": prompt,
                "workspace_id": workspace_id,
                "project_id": project_id,
                "model": model,
                "params": params,
                "callback_url": callback_url,
            },
        )
        started = await self.generations.create(order, idempotency_key=idempotency_key)
        try:
            return await self.wait_for_run(started, timeout=timeout, on_update=on_update, poll=poll)
        except errors.FloraError as error:
            error.run_id = started.run_id
            raise
        except (Exception, asyncio.CancelledError) as error:  # a cancellation, or what on_update has raised
            error.add_note(f"{started.run_id} was started and continues at FLORA: flora.wait_for_run() awaits it again")
            raise

    def inbox(self, secret: str | None = None) -> Inbox:
        """Take FLORA's call-backs: create runs with a ``callback_url``, and feed what comes there to the inbox.

        From here on, waits for such runs are settled by their call-backs, and polling is a safety net: the first look
        comes a minute, or twice the estimate, after the create, the next ones ever more rarely.

        Args:
            secret: the endpoint's, ``whsec_...``; else ``FLORA_WEBHOOK_SECRET``.
        """
        found = resolve_setting("secret", secret, "FLORA_WEBHOOK_SECRET")
        if not found:
            raise errors.ConfigurationError("no webhook secret: pass secret=..., or set FLORA_WEBHOOK_SECRET")
        self._has_inbox = True
        return Inbox(self._poller.notify_finished, found)

    async def recover_create(
        self,
        error: errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError,
        *,
        known: Iterable[RunLike] = (),
    ) -> StartedRun:
        """Find out what became of a create whose answer was lost, and return its run, as far as it is known.

        Within half an hour of the first attempt the order is sent once more under its own key, which FLORA answers with
        the run, or by saying that it exists; later it is only looked for. It is returned, with ``recovered`` true, if
        it can be no other (see ``Flora(recover=...)``). The error may come from another process: it pickles.

        Args:
            error: what ``create`` raised.
            known: runs that are accounted for: whatever else was started in that project at that time. The client
                knows those that it has started itself.

        Raises:
            CreateOutcomeUnknownError: still nobody knows; ``error.candidates`` names the runs that it could be.
        """
        return await self._recovery.recover(_unresolved(error), {target.run_id for target in self._wait_targets(known)})

    async def download(
        self,
        source: Run | Output,
        folder: str | os.PathLike[str],
        *,
        on_existing: Literal["error", "skip", "replace"] = "error",
    ) -> list[Path]:
        """Save the outputs of a run, or one output, in *folder*, which is made if need be; return the paths.

        Files are named ``{run_id}_{output_id}.{ext}``, by the content type that their host gives; text outputs become
        ``.txt``. A digest follows where ids are unsafe as names, too long or ambiguous, and for a lone output, because
        outputs of other runs have the same id: ``{output_id}-{digest}.{ext}``. A file has its name only when it is
        whole, and the API key is not sent. A transfer that breaks is resumed, ``max_retries`` times; an expired URL is
        looked up once more, through the run. Output URLs do not live forever: save what you keep. A cancelled download
        waits for the disk, and leaves no part behind.

        Args:
            source: a finished run, a generation, or one of their outputs.
            folder: outputs are saved in it, never outside of it.
            on_existing: what becomes of an output whose file exists: ``"error"`` raises; ``"skip"`` returns its path
                and requests nothing, so that an interrupted call can be repeated; ``"replace"`` replaces the file
                when the new one is whole.

        Raises:
            DownloadError: an output was not saved; ``error.saved`` has the paths of those before it.
            ConfigurationError: *source* has not finished, or is no run or output.
        """
        if on_existing not in ("error", "skip", "replace"):
            raise errors.ConfigurationError(f"on_existing must be 'error', 'skip' or 'replace', not {on_existing!r}")
        found, path = _downloadable(source), check_path("folder", folder)
        if isinstance(found, Generation) and lacks_outputs(found):
            found = await self.generations.retrieve(found.run_id)  # the history can show a finished run without them
        return await self._downloads.save(found, path, on_existing)

    @overload
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float | bool] | None = None,
        json: object = None,
        idempotency_key: str | None = None,
    ) -> Response[dict[str, object]]: ...

    @overload
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float | bool] | None = None,
        json: object = None,
        decode_as: type[T],
        idempotency_key: str | None = None,
    ) -> Response[T]: ...

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float | bool] | None = None,
        json: object = None,
        decode_as: type[object] = dict,
        idempotency_key: str | None = None,
    ) -> Response[Any]:
        """Send any request of FLORA's API that this package has no method for, like ``request("GET", "/models")``.

        *path* lies below the base URL; *params* become its query, *json* its body; the answer is decoded as
        *decode_as*, any type that msgspec knows. GETs are tried again like all reads. Anything else is sent once,
        unless it has an *idempotency_key*. A POST without *json* sends ``{}``.

        Raises:
            ConfigurationError: an argument cannot be used, *decode_as* included; nothing was sent.
        """
        request = custom_request(self._origin, method, path, params=params, json=json, idempotency_key=idempotency_key)
        check_decodable(decode_as)
        return await self._transport.send(request, partial(parse_response, decode_as))

    async def _start(self, order: Order) -> StartedRun:
        return await self.generations.create(order)

    def _may_connect(self, address: str) -> bool:
        if self._allow_private_hosts or urls.is_public(address):
            return True
        return self._origin.loopback and urls.is_loopback(address)

    def _wait_targets(self, runs: RunLike | Iterable[RunLike]) -> list[WaitTarget]:
        if isinstance(runs, str | StartedRun | Run):
            return [self._wait_target(runs)]
        try:
            each = iter(runs)
        except TypeError:
            name = type(runs).__name__
            raise errors.ConfigurationError(f"runs must be an iterable of records or ids of runs, not {name}") from None
        return [self._wait_target(run) for run in each]

    def _wait_target(self, run: object) -> WaitTarget:
        run_id = check_run("run", run)
        if isinstance(run, StartedRun):
            origin = run.origin
            if origin is None:
                return WaitTarget(run_id, poll_url=run.poll_url, estimate=run.estimated_seconds)
            self._awaited[run_id] = run
            if len(self._awaited) > AWAITED_RUNS:
                del self._awaited[next(iter(self._awaited))]
            age = max(0.0, self._recovery.now() - origin.created_at)
            ours = self._recovery.has_created(run_id) and age < PLAUSIBLE_AGE
            return WaitTarget(
                run_id,
                poll_url=run.poll_url,
                loop_created=self._transport.time() - age if ours else None,
                age=age if age < PLAUSIBLE_AGE else None,
                estimate=self._estimates.predict(origin.type, origin.model, run.estimated_seconds),
                scope=(origin.workspace_id, origin.project_id),
                created=origin.created_at,
                webhook_expected=self._has_inbox and origin.has_callback,
            )
        if isinstance(run, Run):
            incomplete = isinstance(run, Generation) and lacks_outputs(run)
            return WaitTarget(
                run_id,
                poll_url=run.poll_url,
                age=_age(run, time.time()),
                run=None if incomplete else run,
                scope=(run.workspace_id, run.project_id) if isinstance(run, Generation) else (None, None),
                created=run.created.timestamp(),
            )
        return WaitTarget(run_id)

    def _resolve_poll_url(self, run_id: str, poll_url: str) -> str | None:
        """Say where *poll_url* may be asked; ``None`` if that is nowhere, or the run's own address anyway."""
        target = urls.poll_target(self._origin, poll_url)
        if target is None and not self._told_foreign:
            self._told_foreign = True
            where = self._origin.url
            log.warning("a poll_url leads away from %s and is not used; said once", where, extra={"run_id": run_id})
        return None if target == retrieve_request(self._origin, run_id).url else target

    def _update_estimate(self, run: Run, age: float) -> None:
        started = self._awaited.pop(run.run_id, None)
        if started is not None and started.origin is not None and run.succeeded:
            took = (run.completed - run.created).total_seconds() if run.completed else age
            self._estimates.update(started.origin.type, started.origin.model, started.estimated_seconds, took)

    async def _read_page(
        self, cursor: str | None, scope: tuple[str | None, str | None], turn: float | None = None
    ) -> GenerationPage:
        workspace_id, project_id = scope
        request = list_request(
            self._origin, cursor=cursor, limit=100, project_id=project_id, status=None, workspace_id=workspace_id
        )
        return await self._transport.send(request, parse_page, retries=0, lane=self._transport.polls, turn=turn)

    async def _retrieve_run(self, run_id: str, target: str | None, turn: float) -> PollResult:
        own = retrieve_request(self._origin, run_id)
        request = own if target is None else Request(method="GET", url=target)
        read = partial(_parse_poll_result, run_id)
        return await self._transport.send(request, read, retries=0, lane=self._transport.polls, turn=turn)


def _parse_poll_result(run_id: str, answer: RawResponse) -> PollResult:
    run = parse_run(run_id, answer)
    return PollResult(run, _age(run, http_date(answer.headers.get("date", "")) or time.time()))


def _age(run: Run, now: float) -> float:
    age = now - run.created.timestamp()
    return age if 0 <= age <= PLAUSIBLE_AGE else 0.0


def _unresolved(error: object) -> errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError:
    if not isinstance(error, errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError):
        raise errors.ConfigurationError(
            "recover_create takes a CreateOutcomeUnknownError or an IdempotencyConflictError, "
            f"not {type(error).__name__}"
        )
    return error


def _download_fix(source: object) -> str:
    if isinstance(source, CompletedOutcome):
        return ". Pass outcome.run"
    if isinstance(source, str) and "://" in source:
        return ". Pass the Output with that URL, one of run.outputs, or the run for all of them"
    if isinstance(source, StartedRun | str):
        return ". Wait for the run first: await flora.wait_for_run(...)"
    if iscoroutine(source):
        return ". Await it first"
    return ". Call it once for each" if isinstance(source, list | tuple) else ""


def _downloadable(source: object) -> Run | Output:
    if not isinstance(source, Run | Output):
        raise errors.ConfigurationError(
            f"download takes a Run, a Generation or an Output, not {type(source).__name__}{_download_fix(source)}"
        )
    if isinstance(source, Run) and not source.finished:
        raise errors.ConfigurationError(
            f"{source.run_id} is {source.status}. Wait for it before the download: await flora.wait_for_run(...)"
        )
    return source


def _checked_poll(poll: PollFactory | None) -> PollFactory | None:
    if poll is not None and not callable(poll):
        raise errors.ConfigurationError(
            "poll must be a function that gives a fresh wait generator, like lambda: backoff.constant(interval=2)"
        )
    return poll
