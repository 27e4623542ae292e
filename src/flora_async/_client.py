"""Flora: reads settings, wires components, delegates."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from inspect import iscoroutine, iscoroutinefunction
from pathlib import Path
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, Self, TypeVar, overload

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async._bounded_dict import BoundedDict
from flora_async._budget import Budget, check_budget
from flora_async._costs import CostEntry, CostTracker
from flora_async._downloads import Downloads
from flora_async._failures import ReorderPolicy
from flora_async._generate_many import OrderRunner, Outcomes, start_order
from flora_async._http import urls
from flora_async._http.allowance import Allowance
from flora_async._http.auth import load_api_key
from flora_async._http.rate_limit import RateLimitPolicy
from flora_async._http.requests import (
    Request,
    custom_request,
    list_request,
    order_of,
    retrieve_request,
    with_timeout,
)
from flora_async._http.responses import RawResponse, check_decodable, http_date, parse_page, parse_response, parse_run
from flora_async._http.retry import RetryPolicy
from flora_async._http.settings import check_settings
from flora_async._http.transport import Transport
from flora_async._lazy import LazyModule
from flora_async._ordering import Ordering, Start, reserve_cost, start_counted
from flora_async._outcomes import CompletedOutcome, OrderT
from flora_async._polling.durations import DurationEstimator
from flora_async._polling.poller import Poller, PollOperations
from flora_async._polling.schedule import PollFactory, PollPolicy, check_schedule
from flora_async._polling.targets import PollResult, WaitTarget
from flora_async._polling.waiting import OnUpdate, RunOutcomes, RunWatch, add_charge_waiter, wait_for_run
from flora_async._resources.actions import Actions
from flora_async._resources.assets import Assets
from flora_async._resources.canvas import Canvas
from flora_async._resources.catalog import Models, Projects, Workspaces
from flora_async._resources.create_recovery import CreateRecovery, RecoveryPolicy
from flora_async._resources.declarations import Declarations
from flora_async._resources.gateway import Gateway
from flora_async._resources.generations import Generations
from flora_async._resources.library import Feedback, Library
from flora_async._resources.model_catalog import require_mode
from flora_async._resources.param_checks import CheckParams
from flora_async._resources.spending import (
    Catalogue,
    SeenPrices,
    check_cost_key,
    check_since,
    count_orders,
    estimate_costs,
    sum_history,
)
from flora_async._resources.starting import OnCreate, RunStarter
from flora_async._resources.techniques import TechniqueRuns, Techniques
from flora_async._validation import (
    check_callback,
    check_count,
    check_flag,
    check_path,
    check_run,
    check_timeout,
    check_usd,
    resolve_setting,
)
from flora_async.events import OnEvent, make_emitter
from flora_async.models import (
    ActionOrder,
    AnyOrder,
    CostTable,
    Estimate,
    Generation,
    GenerationPage,
    GenerationType,
    Model,
    Order,
    Output,
    PriceHistory,
    Response,
    Run,
    RunLike,
    StartedRun,
    TechniqueOrder,
    TechniqueRun,
    lacks_charge,
    lacks_outputs,
)
from flora_async.webhooks import Inbox

if TYPE_CHECKING:
    import aiohttp
else:
    aiohttp = LazyModule("aiohttp")

T = TypeVar("T")

UNSETTLED_RUNS = 100_000
"""Maximum number of runs that are not awaited and whose charge still counts in a budget when it is seen."""
AWAITED_RUNS = 10_000
"""Maximum number of awaited runs of this client whose duration is recorded when they finish."""
PLAUSIBLE_AGE = 86400.0
"""Seconds. The timestamp of an unfinished run with a higher or negative age is ignored."""

log = logging.getLogger("flora_async")


class Policies(Struct, frozen=True, kw_only=True):
    """Delays, rates and limits of a client that are no settings."""

    retry: RetryPolicy = RetryPolicy()
    rate_limit: RateLimitPolicy = RateLimitPolicy()
    poll: PollPolicy = PollPolicy()
    recovery: RecoveryPolicy = RecoveryPolicy()


class Flora:
    """A client of FLORA, for one event loop. Use it as ``async with Flora() as flora:``, or ``close()`` it.

    Args:
        api_key: the API key; by default ``FLORA_API_KEY``. It is sent to *base_url* only.
        base_url: URL of the API; by default ``FLORA_BASE_URL``, else FLORA's. https, or http on this machine.
        timeout: seconds for one HTTP exchange. A call can take ``max_retries + 1`` exchanges and the delays between.
        max_retries: maximum number of retries of a request; 0: one attempt, one POST.
        poll: returns a wait generator for each run, like ``lambda: backoff.constant(interval=2)``. The default polls at
            the expected end of the run, never more often than every 2 seconds (see ``wait_for_run``).
        session: an aiohttp session to carry the reads, and nothing else: creates and downloads use sessions of this
            client. It is not closed here. It is refused with a proxy, a connector other than ``aiohttp.TCPConnector``
            or headers of its own that come in the way of the key, and in another event loop than its own.
        proxy: URL of an HTTP proxy for everything; the environment's is not used.
        ssl: which servers are trusted, and this client's certificate: an ``ssl.SSLContext`` for reads, creates and
            downloads alike; else Python's default one, which reads ``SSL_CERT_FILE`` once, as the process starts.
            With *session*, reads go as that session says.
        default_headers: further headers of each API request, for a gateway. They go to *base_url* only, not to the
            hosts of outputs. Headers that this client sets itself, or that change how HTTP is read, are refused.
        max_response_bytes: largest response that is read, in bytes after decompression.
        max_download_bytes: largest output that is saved.
        batch_polling: poll several runs by one page of the history, if that needs fewer requests.
        recover: handling of an accepted create whose response was lost. ``"auto"`` returns the run from the history if
            no other run is possible. ``"strict"`` always raises an error with the candidates.
        on_create: called with the idempotency key and the order before each create. Store them, and you can recover the
            run after a crash or cancellation.
        check_params: comparison of an order with the declared parameters of its model, before it is sent. FLORA does
            not check them: an unknown value runs with the default, and is billed. ``"refuse"`` raises a
            ConfigurationError, ``"warn"`` logs a warning, ``"off"`` compares nothing. The list of models is read once
            an hour, and only if an order names a model. What the list cannot tell is logged, and never refused.
        on_event: called with each :class:`Event`: a request ended, a run was created, a wait began or ended. It must be
            a plain function that returns quickly. Its exceptions are ignored; the first is logged.
        allow_insecure: allow a *base_url* with http on another machine. Every host on the route can read the key.
        allow_private_hosts: download outputs from private addresses too.

    Raises:
        ConfigurationError: a setting is missing or invalid.
    """

    generations: Generations
    """Create, retrieve and list, as in FLORA's reference."""
    assets: Assets
    """Files as inputs of runs: upload, retrieve and list them."""
    workspaces: Workspaces
    """The workspaces of the key."""
    projects: Projects
    """The projects of these workspaces."""
    models: Models
    """The models and their parameters."""
    techniques: Techniques
    """Saved workflows."""
    technique_runs: TechniqueRuns
    """The history of techniques."""
    actions: Actions
    """Fixed transformations."""
    canvas: Canvas
    """The nodes of projects."""
    library: Library
    """Folders of saved pictures and texts."""
    feedback: Feedback
    """Messages to FLORA."""
    gateway: Gateway
    """Models under steady names."""
    check_params: CheckParams
    """How orders are compared with the declared parameters of their models, unless a call says otherwise."""
    _policies: ClassVar[Policies] = Policies()

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
        default_headers: Mapping[str, str] | None = None,
        max_response_bytes: int = 8 * 2**20,
        max_download_bytes: int = 2**30,
        batch_polling: bool = True,
        recover: Literal["auto", "strict"] = "auto",
        on_create: OnCreate | None = None,
        check_params: CheckParams = "refuse",
        on_event: OnEvent | None = None,
        allow_insecure: bool = False,
        allow_private_hosts: bool = False,
    ) -> None:
        key, fault = load_api_key(api_key)
        api_key = None  # A traceback with locals must not contain the key.
        if fault is not None:
            raise errors.ConfigurationError(fault)
        self._settings = check_settings(
            key=key,
            base_url=base_url,
            timeout=timeout,
            max_retries=max_retries,
            session=session,
            proxy=proxy,
            ssl=ssl,
            default_headers=default_headers,
            max_response_bytes=max_response_bytes,
            max_download_bytes=max_download_bytes,
            allow_insecure=allow_insecure,
            allow_private_hosts=allow_private_hosts,
            retry=self._policies.retry,
            rate_limit=self._policies.rate_limit,
        )
        self._origin = self._settings.origin
        if recover not in ("auto", "strict"):
            raise errors.ConfigurationError(f"recover must be 'auto' or 'strict', not {recover!r}")
        if on_create is not None:
            check_callback("on_create", on_create, "an idempotency key and an Order")
        self.check_params = require_mode(check_params)
        emit = make_emitter(on_event)
        self._poll = _check_poll(poll)
        self._transport = Transport(self._settings, emit=emit)
        self._awaited: BoundedDict[str, StartedRun] = BoundedDict(AWAITED_RUNS)
        self._unsettled: BoundedDict[str, CostEntry] = BoundedDict(UNSETTLED_RUNS)
        self._uncharged: BoundedDict[str, bool] = BoundedDict(AWAITED_RUNS)
        """Completed runs whose duration was counted, and whose charge was not seen."""
        self._prices = SeenPrices()
        self._reorder_policy = ReorderPolicy()
        self._estimates = DurationEstimator()
        self._poller = Poller(
            PollOperations(
                retrieve_run=self._retrieve_run,
                read_page=self._read_page if batch_polling else None,
                resolve_poll_url=self._resolve_poll_url,
                lane=self._transport.polls,
                clock=lambda: self._recovery.now(),
                on_finished=self._update_estimate,
                emit=emit,
                policy=self._policies.poll,
                retry_policy=self._policies.retry,
            )
        )
        self._warned_of_poll_url = False
        self._has_inbox = False
        self.assets = Assets(self._settings, self._transport)
        declarations = Declarations(self._origin, self._transport)
        self._recovery = CreateRecovery(
            self._origin, self._transport, declarations, self._policies.recovery, adopt=recover == "auto"
        )
        self.models = Models(self._origin, self._transport)
        self._starter = RunStarter(
            self._origin,
            self._transport,
            self._recovery,
            declarations,
            self.assets,
            on_create=on_create,
            emit=emit,
            check_order=self.models.check_order,
            check_params=self.check_params,
        )
        self.generations = Generations(self._origin, self._transport, self._starter)
        self.workspaces = Workspaces(self._origin, self._transport)
        self.projects = Projects(self._origin, self._transport, self.workspaces)
        self.techniques = Techniques(self._origin, self._transport, self._starter)
        self.technique_runs = TechniqueRuns(self._origin, self._transport)
        self.actions = Actions(self._origin, self._transport, self._starter)
        self.canvas = Canvas(self._origin, self._transport)
        self.library = Library(self._origin, self._transport)
        self.feedback = Feedback(self._origin, self._transport)
        self.gateway = Gateway(self._origin, self._transport)
        self._downloads = Downloads(self._settings, self._transport, self.generations.retrieve)

    @property
    def allowance(self) -> Allowance | None:
        """The rate limit that this client shares with others; ``None``: it adapts by its own 429s alone.

        Durable batches set one, which lies in their database, unless there is one already.
        """
        return self._transport.allowance

    @allowance.setter
    def allowance(self, allowance: Allowance | None) -> None:
        if allowance is not None and not iscoroutinefunction(getattr(allowance, "update", None)):
            raise errors.ConfigurationError("allowance must have async def update(base_url, change)")
        self._transport.allowance = allowance

    def __repr__(self) -> str:
        return f"Flora(base_url={self._origin.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        raise errors.ConfigurationError(
            "cannot pickle or copy a client: it holds an API key and belongs to one event loop. Open another"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    if not TYPE_CHECKING:  # Type checkers reject a plain with already.

        def __enter__(self) -> NoReturn:
            raise errors.ConfigurationError("Flora cannot be opened by with alone. Use async with Flora(...) as flora")

        def __exit__(self, *exc_info: object) -> None:
            """Do nothing: Python looks for this method before it calls ``__enter__``."""

    async def close(self) -> None:
        """Close the client's connections. Safe to call again, also on another event loop or in another thread.

        All waits and requests end in :class:`ClientClosedError` at once, also in a delay or a queue. Started runs
        continue at FLORA.
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
        settle: bool = False,
    ) -> Run:
        """Wait until *run* has completed and return it with its outputs.

        The first poll comes at the run's expected end, the next ones at growing intervals. The client polls at most
        every 2 seconds, as FLORA advises, and sees the end at most 13 seconds late. A run that this client did not just
        start is polled at once. A finished run is returned without a request. Cancelling ends the wait, not the run:
        FLORA cannot cancel runs.

        Args:
            run: the result of ``create``, any record of the run, or its id.
            timeout: seconds for the whole wait, a hanging request included; ``None``: no limit.
            on_update: called with each change of the run, the last one included. Its exceptions end the wait.
            poll: a schedule for this wait, in place of the client's. If several waits for one run have their own
                schedules, the run is polled whenever one of them is due. A wait that ends removes its schedule.
            settle: wait until the completed run shows its ``charged_cost`` too, which FLORA adds up to a minute after
                the end; at most 90 seconds after it, and not beyond *timeout*. Then the run is returned without it.

        Raises:
            RunFailedError: the run failed; ``error.run`` has the reason. Failed runs are not charged.
            RunTimeoutError: *timeout* seconds have passed. The run continues: await it again.
            NotFoundError: FLORA has no such run, 10 seconds after its creation (id only: at the first poll).
            BadRequestError, AuthenticationError, PermissionDeniedError: FLORA refuses the poll.
            APIConnectionError: a redirect, an untrusted certificate or an oversized response, which no retry fixes. No
                other connection error ends the wait.
        """
        if on_update is not None:
            check_callback("on_update", on_update, "a Run")
        finished = await wait_for_run(
            self._poller,
            self._wait_target(run),
            poll=_check_poll(poll) or self._poll,
            timeout=check_timeout(timeout),
            on_update=on_update,
            settle=check_flag("settle", settle),
        )
        recovered = isinstance(run, StartedRun | Run) and run.recovered
        return replace(finished, recovered=True) if recovered else finished

    def watch_run(self, run: RunLike | Iterable[RunLike], *, timeout: float | None = None) -> RunWatch:
        """Watch the changes of one run or many: ``async for state in flora.watch_run(run)``. The last item is finished.

        It polls as often as ``wait_for_run``, and raises the same errors, except that a failed run is yielded. A poll
        without a change yields nothing, and progress never decreases. *timeout* counts from the first iteration.
        """
        return RunWatch(self._poller, self._wait_targets(run), poll=self._poll, timeout=check_timeout(timeout))

    def as_completed(
        self, runs: Iterable[RunLike], *, timeout: float | None = None, settle: bool = False
    ) -> RunOutcomes:
        """Yield runs in completion order: ``async for outcome in flora.as_completed(runs)``.

        Each :data:`Outcome` has a ``run_id``, no order, and either the completed ``run`` or the ``error``. The error is
        a :class:`RunFailedError` if the run failed, a :class:`RunTimeoutError` *timeout* seconds after the first
        iteration. A thousand runs need few requests more than ten, because a page of the history has a hundred runs.
        With *settle*, a completed run is yielded with its ``charged_cost``, as in ``wait_for_run``.
        """
        return RunOutcomes(
            self._poller,
            self._wait_targets(runs),
            poll=self._poll,
            timeout=check_timeout(timeout),
            settle=check_flag("settle", settle),
        )

    def generate_many(
        self,
        orders: Iterable[OrderT] | AsyncIterable[OrderT],
        *,
        concurrency: int = 32,
        max_cost: float | None = None,
        budget: Budget | None = None,
        settle: bool = False,
        retry_failed: int = 0,
        timeout: float | None = 600.0,
        poll: PollFactory | None = None,
        check_params: CheckParams | None = None,
    ) -> Outcomes[OrderT]:
        """Start many orders, of any kinds, and yield their outcomes in completion order.

        Each :data:`Outcome` has the caller's own ``order`` and either the completed ``run`` or the ``error``.
        ``outcome.result()`` returns the run or raises the error. A failure does not affect the other orders. Orders are
        read one by one, as *concurrency* allows. Each run is awaited as in ``wait_for_run``.

        Args:
            orders: the orders; any iterable or asynchronous iterable. An asynchronous generator is closed at the end.
            concurrency: maximum number of orders that are started and not yet yielded.
            max_cost: limit in USD for the expected cost of all started orders. The price of a type and model is learned
                from the charges of its runs, so the first order of each starts alone. Before its charge is known, its
                quote counts fourfold. Failed runs are free. A create with an unknown outcome counts as billed. An order
                that is not started has no outcome. A 402, and a failed run with the advice ``"stop"``, stop further
                orders too: ``outcomes.stop_reason`` has the reason, ``outcomes.unstarted`` the order that was read but
                not started.
            budget: a limit that other calls share, by the same rule.
            settle: yield a completed run when its ``charged_cost`` is known, as in ``wait_for_run``.
            retry_failed: how often an order whose run failed is ordered again, under a new key, if the advice of the
                failure is ``"retry"``, or after a pause ``"retry_later"``. It costs as a new order does, within the
                same limits. ``outcome.attempts`` has the failures before. Nothing else is ordered again.
            timeout: seconds for the wait for each run; ``None``: no limit. Then its outcome is a
                :class:`RunTimeoutError`, and the run continues.
            poll: a schedule for these waits, in place of the client's.
            check_params: as in ``Flora``. An order that is refused has an outcome with the ConfigurationError.

        Raises:
            ConfigurationError: *orders* is not iterable, or yields an object that is not an Order.
        """
        check_timeout(timeout)
        if (schedule := _check_poll(poll) or self._poll) is not None:
            check_schedule(schedule)
        mode = None if check_params is None else require_mode(check_params)
        runner = OrderRunner(
            orders,
            ordering=partial(
                self._ordering,
                partial(self.wait_for_run, timeout=timeout, poll=poll, settle=check_flag("settle", settle)),
                check_count("retry_failed", retry_failed, least=0),
                start=partial(start_order, partial(self._starter.start, check_params=mode)),
            ),
            concurrency=check_count("concurrency", concurrency, least=1),
            max_cost=None if max_cost is None else check_usd("max_cost", max_cost),
            budget=check_budget(budget),
        )
        return Outcomes(runner)

    async def start_run(
        self,
        order: AnyOrder,
        *,
        idempotency_key: str | None = None,
        budget: Budget | None = None,
        timeout: float | None = None,
        check_params: CheckParams | None = None,
    ) -> StartedRun:
        """Start the run of any order exactly once, as ``generations.create`` does, with its errors.

        The inputs of a technique or an action are compared with the declared ones before anything is sent. In a
        *budget*, the run counts at its expected cost until a wait of this client sees its charge.

        A generation is compared with its model as *check_params* says; ``None``: as ``Flora(check_params=...)`` does.
        *timeout* are the seconds for one HTTP exchange, in place of the client's.

        Raises:
            ConfigurationError: the order is invalid, or its inputs do not match the declaration. Nothing was sent.
            BudgetExceededError: the order could exceed *budget*. Nothing was sent.
        """
        order, shared = order_of(order, {}), check_budget(budget)
        start = partial(self._starter.start, order, idempotency_key, timeout, check_params=check_params)
        if shared is None:
            return await start()
        entry = await reserve_cost([shared.tracker], order, self._transport.wait)
        return await start_counted(entry, start(), self._hold_entry)

    def _ordering(
        self,
        finish: Callable[[StartedRun], Coroutine[Any, Any, Run]],
        retry_failed: int,
        trackers: Sequence[CostTracker],
        *,
        start: Start | None = None,
    ) -> Ordering:
        return Ordering(
            start=start or self._starter.start,
            finish=finish,
            settle=lambda started, run: add_charge_waiter(self._poller, self._wait_target(started), run, self._poll),
            hold=self._hold_entry,
            trackers=trackers,
            retry_failed=retry_failed,
            policy=self._reorder_policy,
            sleep=self._transport.sleep,
            wait=self._transport.wait,
        )

    def _hold_entry(self, run_id: str, entry: CostEntry) -> None:
        """Keep the entry of a run without a charge, or of a create under its key: a later wait sees the charge."""
        self._unsettled[run_id] = entry

    @overload
    async def generate(
        self,
        order: AnyOrder,
        /,
        *,
        idempotency_key: str | None = None,
        timeout: float | None = 600.0,
        on_update: OnUpdate | None = None,
        poll: PollFactory | None = None,
        budget: Budget | None = None,
        settle: bool = False,
        retry_failed: int = 0,
        check_params: CheckParams | None = None,
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
        budget: Budget | None = None,
        settle: bool = False,
        retry_failed: int = 0,
        check_params: CheckParams | None = None,
    ) -> Run: ...

    async def generate(
        self,
        order: AnyOrder | None = None,
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
        budget: Budget | None = None,
        settle: bool = False,
        retry_failed: int = 0,
        check_params: CheckParams | None = None,
    ) -> Run:
        """Start a run and wait for it: ``start_run`` and ``wait_for_run`` in one, with their errors.

        Pass an order of any kind, or the fields of an :class:`Order`: ``generate(order)``, or ``generate(type=...,
        prompt=..., ...)``.

        Every error after the start has the ``run_id``: the run is billed, and can be awaited again. *budget*, *settle*,
        *retry_failed* and *check_params* are those of ``generate_many``; *timeout* counts for each attempt.

        Raises:
            BudgetExceededError: the order could exceed *budget*; nothing was sent.
        """
        check_timeout(timeout)
        check_flag("settle", settle)
        if check_params is not None:
            require_mode(check_params)
        check_count("retry_failed", retry_failed, least=0)
        shared = check_budget(budget)
        trackers = [] if shared is None else [shared.tracker]
        if on_update is not None:
            check_callback("on_update", on_update, "a Run")
        schedule = _check_poll(poll) or self._poll
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
        ordering = self._ordering(
            partial(self.wait_for_run, timeout=timeout, on_update=on_update, poll=poll, settle=settle),
            retry_failed,
            trackers,
            start=partial(self._starter.start, check_params=check_params),
        )
        entry = await reserve_cost(trackers, order, self._transport.wait)
        return await ordering.run(order, entry, key=idempotency_key, attempts=[])

    async def estimate(
        self,
        orders: AnyOrder | Iterable[AnyOrder] | AsyncIterable[AnyOrder],
        *,
        past: Mapping[tuple[str, str | None], PriceHistory] | None = None,
        quote: bool = False,
    ) -> Estimate:
        """Return the expected cost of one order or many in USD, and the duration, without starting anything.

        The source is, for each kind and model: the charges of the runs that this client has awaited, and *past*; else
        FLORA's catalogue (``estimated_credits`` of a model, at 0.001 USD each, from the list that the client keeps;
        ``run_cost`` of a technique; the cost of an action). ``estimate.basis`` and the range from ``low`` to ``high``
        show how sure it is. A price from the catalogue or a quote can be too low by 3.5, so ``high`` is four times as
        much.

        Args:
            orders: an order, or any iterable or asynchronous iterable of orders. It is read to its end.
            past: charges that were seen elsewhere, like ``await batches.past_costs()`` of durable batches.
            quote: request FLORA's quote for the first order of each type and model. This parameter of ``POST
                /generate`` is undocumented: if FLORA ignored it, the order would be started and billed.

        Raises:
            ConfigurationError: the first generation of a type and model is invalid.
            ResponseDecodeError: FLORA ignored *quote* and started a run; ``error.run_id`` is its id.
        """
        counts, samples = await count_orders(orders)
        for sample in samples.values():
            if isinstance(sample, Order):  # the ids of techniques and actions are checked as they are read
                self.generations.validate(sample)
        known: Mapping[tuple[str, str | None], PriceHistory] = past or {}
        return await estimate_costs(
            counts,
            samples,
            find_prices=lambda key: self._prices.find(key, known),
            durations=self._estimates,
            catalogue=Catalogue(
                model=self._find_model,
                cost=self._declared_cost,
                quote=self._request_quote if check_flag("quote", quote) else None,
            ),
        )

    async def _find_model(self, model_id: str) -> Model | None:
        return (await self.models.catalog()).models.get(model_id)

    async def _declared_cost(self, order: TechniqueOrder | ActionOrder) -> float | None:
        if isinstance(order, TechniqueOrder):
            return (await self.techniques.retrieve(order.technique_id)).run_cost
        return (await self.actions.retrieve(order.action_id)).charged_cost

    async def _request_quote(self, order: Order) -> float | None:
        """Return FLORA's quote; ``None`` if FLORA refuses the parameter. The request is sent once."""
        body = self.generations.validate(order).to_dict() | {"quote": True}
        try:
            response = await self.request("POST", "/generate", json={k: v for k, v in body.items() if v is not None})
        except errors.BadRequestError:
            return None
        run_id, quote = response.data.get("run_id"), response.data.get("estimated_cost")
        if isinstance(run_id, str):
            error = errors.ResponseDecodeError(
                "FLORA ignored quote and started the order, which is billed. Wait for its run",
                field="$.run_id",
                url=f"{self._origin.url}/generate",
                status=response.status,
                request_id=response.request_id,
                excerpt=run_id,
            )
            error.run_id = run_id
            raise error
        return float(quote) if isinstance(quote, int | float) and not isinstance(quote, bool) else None

    async def costs(
        self,
        *,
        since: datetime | timedelta | None = None,
        by: Literal["model", "project", "day"] = "model",
        project_id: str | None = None,
        workspace_id: str | None = None,
    ) -> CostTable:
        """Return the costs of the history of generations, summed up by model, project or day (UTC).

        It reads the pages of the history, a hundred runs each, and keeps the sums only. Runs of techniques and actions
        are not in this history. Reference: "List generation history".

        Args:
            since: count runs created from then on: a datetime with a time zone, or a timedelta before now; ``None``:
                all.
            by: the column of the rows.
            project_id: count the runs of this project only.
            workspace_id: count the runs of this workspace only.
        """
        key, start = check_cost_key(by), check_since(since)
        listing = self.generations.list(limit=100, since=start, project_id=project_id, workspace_id=workspace_id)
        return await sum_history(listing.pages(), key)

    def inbox(self, secret: str | None = None) -> Inbox:
        """Return an inbox for webhooks. Create runs with a ``callback_url``, and pass its requests to the inbox.

        From this call on, webhooks resolve the waits for such runs, and polling is the fallback. The first poll comes a
        minute, or twice the estimate, after the create, the next ones at growing intervals.

        Args:
            secret: the endpoint's secret, ``whsec_...``; by default ``FLORA_WEBHOOK_SECRET``.
        """
        resolved = resolve_setting("secret", secret, "FLORA_WEBHOOK_SECRET")
        if not resolved:
            raise errors.ConfigurationError("no webhook secret: pass secret=..., or set FLORA_WEBHOOK_SECRET")
        self._has_inbox = True
        return Inbox(self._poller.notify_finished, resolved)

    async def recover_create(
        self,
        error: errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError,
        *,
        known: Iterable[RunLike] = (),
    ) -> StartedRun:
        """Find the run of a create whose response was lost, and return it.

        Within half an hour of the first attempt, the order is sent again under the same key: FLORA responds with the
        run, or with a conflict that proves its existence. Later, the client only searches the history. It returns the
        run, with ``recovered`` true, if no other run is possible (see ``Flora(recover=...)``). The error may come from
        another process: it can be pickled.

        Args:
            error: the error that ``create`` raised.
            known: other runs that were started in the same project at that time. The client knows its own runs.

        Raises:
            CreateOutcomeUnknownError: the run is still unknown; ``error.candidates`` has the possible run ids.
        """
        started = await self._recovery.recover(
            _check_recoverable(error), {target.run_id for target in self._wait_targets(known)}
        )
        entry = self._unsettled.pop(error.idempotency_key or "", None)
        if entry is not None:
            entry.start(started.quoted_cost)
            entry.abandon()
            self._hold_entry(started.run_id, entry)
        return started

    async def download(
        self,
        source: Run | Output,
        folder: str | os.PathLike[str],
        *,
        on_existing: Literal["error", "skip", "replace"] = "error",
    ) -> list[Path]:
        """Save the outputs of a run, or one output, in *folder*, and return their paths. A missing folder is created.

        Files are named ``{run_id}_{output_id}.{ext}``. The extension follows the content type; text outputs become
        ``.txt``. A digest follows ids that are too long, ambiguous or unsafe as names. It always follows the id of a
        single output, because outputs of other runs have the same id: ``{output_id}-{digest}.{ext}``.

        A file gets its name only when it is complete. The API key is not sent. A broken transfer is resumed, at most
        ``max_retries`` times. The run is retrieved once to renew an expired URL. Output URLs expire: save the outputs
        that you need. A cancelled download waits for the disk and deletes its partial file.

        Args:
            source: a finished run, a generation, or one of their outputs.
            folder: outputs are saved in it, never outside of it.
            on_existing: handling of an output whose file exists. ``"error"`` raises. ``"skip"`` returns its path
                without a request, so that an interrupted call can be repeated. ``"replace"`` replaces the file when
                the new one is complete.

        Raises:
            DownloadError: an output was not saved; ``error.saved`` has the paths of the saved ones.
            ConfigurationError: *source* has not finished, or is not a run or output.
        """
        if on_existing not in ("error", "skip", "replace"):
            raise errors.ConfigurationError(f"on_existing must be 'error', 'skip' or 'replace', not {on_existing!r}")
        checked, path = _check_download(source), check_path("folder", folder)
        if isinstance(checked, Generation) and lacks_outputs(checked):
            checked = await self.generations.retrieve(checked.run_id)  # The history can omit the outputs.
        return await self._downloads.save(checked, path, on_existing)

    @overload
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int | float | bool] | None = None,
        json: object = None,
        idempotency_key: str | None = None,
        timeout: float | None = None,
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
        timeout: float | None = None,
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
        timeout: float | None = None,
    ) -> Response[Any]:
        """Send a request for which this package has no method, like ``request("GET", "/models")``.

        *path* is below the base URL, *params* is the query, *json* the body. The response is decoded as *decode_as*,
        any type that msgspec supports. GETs are retried like all reads. Other methods are sent once, unless the request
        has an *idempotency_key*. A POST without *json* sends ``{}``. *timeout* are the seconds for one HTTP exchange,
        in place of the client's.

        Raises:
            ConfigurationError: an argument is invalid, *decode_as* included; nothing was sent.
        """
        request = custom_request(self._origin, method, path, params=params, json=json, idempotency_key=idempotency_key)
        check_decodable(decode_as)
        return await self._transport.send(with_timeout(request, timeout), partial(parse_response, decode_as))

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
                return WaitTarget(
                    run_id, poll_url=run.poll_url, estimate=run.estimated_seconds, in_history=_is_in_history(run)
                )
            self._awaited[run_id] = run
            age = max(0.0, self._recovery.now() - origin.created_at)
            ours = self._recovery.has_created(run_id) and age < PLAUSIBLE_AGE
            return WaitTarget(
                run_id,
                poll_url=run.poll_url,
                loop_created=self._transport.time() - age if ours else None,
                age=age if age < PLAUSIBLE_AGE else None,
                estimate=self._estimates.predict(origin.type, origin.model, run.estimated_seconds),
                scope=(origin.workspace_id, origin.project_id),
                in_history=_is_in_history(run),
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
                in_history=not isinstance(run, TechniqueRun),
                scope=(run.workspace_id, run.project_id) if isinstance(run, Generation) else (None, None),
                created=run.created.timestamp(),
            )
        return WaitTarget(run_id)

    def _resolve_poll_url(self, run_id: str, poll_url: str) -> str | None:
        """Return the URL to poll; ``None`` if *poll_url* is not allowed, or is the run's own URL."""
        target = urls.poll_target(self._origin, poll_url)
        if target is None and not self._warned_of_poll_url:
            self._warned_of_poll_url = True
            extra = {"run_id": run_id}
            log.warning("ignored a poll_url outside %s: further ones are not logged", self._origin.url, extra=extra)
        return None if target == retrieve_request(self._origin, run_id).url else target

    def _update_estimate(self, run: Run, age: float) -> None:
        entry = self._unsettled.get(run.run_id)
        if entry is not None:
            entry.finish(run)
            if not lacks_charge(run):
                del self._unsettled[run.run_id]
        started = self._awaited.pop(run.run_id, None)
        if started is None or started.origin is None or not run.succeeded:
            return
        took = (run.completed - run.created).total_seconds() if run.completed else age
        kind, model = started.origin.type, started.origin.model
        if run.charged_cost is not None:
            self._prices.record((kind, model), run.charged_cost, took)
        if not self._uncharged.pop(run.run_id, False):
            self._estimates.update(kind, model, started.estimated_seconds, took)
        if lacks_charge(run):  # the record with the charge comes later, if it is awaited
            self._awaited[run.run_id], self._uncharged[run.run_id] = started, True

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


def _is_in_history(run: StartedRun) -> bool:
    """Return whether ``GET /generations`` can show the run: it does not list techniques and actions."""
    return run.type not in ("technique", "action")


def _parse_poll_result(run_id: str, response: RawResponse) -> PollResult:
    run = parse_run(run_id, response)
    return PollResult(run, _age(run, http_date(response.headers.get("date", "")) or time.time()))


def _age(run: Run, now: float) -> float:
    age = now - run.created.timestamp()
    return age if 0 <= age <= PLAUSIBLE_AGE else 0.0


def _check_recoverable(error: object) -> errors.CreateOutcomeUnknownError | errors.IdempotencyConflictError:
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


def _check_download(source: object) -> Run | Output:
    if not isinstance(source, Run | Output):
        raise errors.ConfigurationError(
            f"download takes a Run, a Generation or an Output, not {type(source).__name__}{_download_fix(source)}"
        )
    if isinstance(source, Run) and not source.finished:
        raise errors.ConfigurationError(
            f"{source.run_id} is {source.status}. Wait for it before the download: await flora.wait_for_run(...)"
        )
    return source


def _check_poll(poll: PollFactory | None) -> PollFactory | None:
    if poll is not None and not callable(poll):
        raise errors.ConfigurationError(
            "poll must be a function that returns a new wait generator, like lambda: backoff.constant(interval=2)"
        )
    return poll
