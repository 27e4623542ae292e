"""One order, from its stored state to its end: sent once, whatever crashes, and waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from flora_async import Flora, PollFactory, errors
from flora_async._failures import ReorderPolicy
from flora_async._http.transport import check_before_post
from flora_async.durable._store import batches, orders
from flora_async.durable._store.batches import BatchSettings
from flora_async.durable._store.database import Database, select
from flora_async.durable._store.orders import Item
from flora_async.durable._store.outcomes import decode_attempts, decode_order, encode_outcome
from flora_async.durable._store.schema import State
from flora_async.durable._worker import policy
from flora_async.models import AnyOrder, Run, StartedRun, lacks_charge

log = logging.getLogger("flora_async")

RECOVERY_TRIES = 3
"""How often the run of an accepted create is looked for while the history shows no candidate."""
MAX_FORBIDDEN = 5
"""Number of orders that are refused with 403, and none accepted, after which the key is taken to be refused."""


class ClaimLostError(Exception):
    """The order is not this process's to send any more: another has it, the batch is stopped, or the process ends."""


class OrderProcessor:
    """Processes the orders that one process holds."""

    def __init__(
        self,
        flora: Flora,
        database: Database,
        worker_policy: policy.WorkerPolicy,
        poll: PollFactory | None,
        on_place_free: Callable[[], None],
    ) -> None:
        self._flora = flora
        self._policy = worker_policy
        self._database = database
        self._poll = poll
        self._on_place_free = on_place_free
        self._reorder_policy = ReorderPolicy()
        self._failures = 0
        self._open_at = 0.0
        self._accepted = False
        self.forbidden: dict[str, dict[int, str]] = {}
        """Orders, by batch, that were refused with 403 while it is unknown whether the key is; with type and model."""
        self.creating: int = 0
        self.ending: int = 0
        """Number of orders whose end is being recorded: their places are free."""
        self.closing: bool = False
        self.trouble: str | None = None
        """Why FLORA cannot be used at present."""

    @property
    def pause(self) -> float:
        """Seconds until orders can be sent again."""
        return self._open_at - time.monotonic()

    async def process(self, item: Item) -> None:
        """Process an order until its end, or until it is left to another process or a later time."""
        if item.run_id is not None:
            await self._wait(item, item.run_id)
            return
        held_since, sent = item.sent if item.is_new else 0.0, not item.is_new

        async def check() -> None:
            nonlocal held_since, sent
            if self.closing and not sent:
                raise ClaimLostError
            if time.time() - held_since > self._policy.renew_after:  # also after this machine was suspended
                held_since = time.time()
                if not await self._database.write(lambda c: orders.renew(c, item)):
                    raise ClaimLostError
            sent = True

        check_before_post.set(check)
        try:
            run = await self._create(item)
        except ClaimLostError:
            await self._leave(item, doubtful=sent)
        else:
            if run is not None:
                await self._wait(item, run)

    # -- create

    async def _create(self, item: Item) -> StartedRun | str | None:
        """Send an order until FLORA's answer is clear; return its run. ``None``: its new state is recorded."""
        order, doubtful = decode_order(item.body), not item.is_new
        while True:
            fresh = policy.key_is_fresh(item.sent, time.time())
            if doubtful and not fresh:
                return await self._recover(_unknown(item, order, "FLORA may have forgotten the key"), item)
            await self._wait_until_open()
            started = await self._send(item, order)
            if not isinstance(started, errors.FloraError):
                return started
            verdict = policy.judge_failure(started, doubtful=doubtful, fresh=fresh)
            if verdict == "recover":
                return await self._recover(_unknown(item, order, str(started), started), item)
            if verdict == "forbidden":
                verdict = await self._judge_forbidden(item, order)
            if verdict == "refused":
                await self._end(item, "refused", error=started)
                return None
            if verdict == "stop":
                await self._stop(item, str(started))
            else:
                self._pause(started)
            if verdict != "again":
                await self._leave(item, doubtful=doubtful)
                return None
            doubtful = True

    async def _wait_until_open(self) -> None:
        while self.pause > 0 or self.closing:  # noqa: ASYNC110 - it may be put off again
            await asyncio.sleep(max(self._policy.read_interval, self.pause))

    async def _send(self, item: Item, order: AnyOrder) -> StartedRun | str | errors.FloraError | None:
        self.creating += 1
        try:
            # The generations of a batch were compared with their models when it was stored.
            started = await self._flora.start_run(order, idempotency_key=item.key, check_params="off")
        except errors.ClientClosedError:
            raise
        except errors.FloraError as error:
            return error
        finally:
            self.creating -= 1
        self._failures, self.trouble, self._accepted = 0, None, True
        if await self._record_start(item, started):
            return started
        unknown = _unknown(item, order, "the response was lost", accepted=True)
        if started.recovered:  # the client did not know that this run is another order's: the database does
            return await self._recover(unknown, item)
        extra = {"idempotency_key": item.key, "run_id": started.run_id}
        log.error(
            "FLORA accepted the order under key %s twice, %s is not recorded", item.key, started.run_id, extra=extra
        )
        await self._end(item, "unknown", error=unknown)
        return None

    async def _record_start(self, item: Item, run: StartedRun) -> bool:
        quoted, recovered = run.charged_cost or None, run.recovered
        try:
            return await self._database.write(lambda c: orders.start(c, item, run.run_id, quoted, recovered=recovered))
        except errors.DatabaseError as error:
            error.add_note(f"FLORA accepted the order under key {item.key}: its run is {run.run_id}")
            raise

    async def _stop(self, item: Item, reason: str) -> None:
        await self._database.write(lambda c: batches.stop(c, item.batch, reason))

    async def _leave(self, item: Item, *, doubtful: bool) -> None:
        await self._database.write(lambda c: orders.leave(c, item, doubtful=doubtful))

    async def _judge_forbidden(self, item: Item, order: AnyOrder) -> policy.Verdict:
        """Return whether a 403 concerns this order or the key: wait for the responses to other orders."""
        waiting = "SELECT 1 FROM flora_orders WHERE batch = :batch AND state = 'waiting' LIMIT 1"
        suspects = self.forbidden.setdefault(item.batch, {})
        suspects[item.number] = f"{order.kind} {order.endpoint}"
        try:
            while not self._accepted:
                if len(set(suspects.values())) > 1 or len(suspects) >= MAX_FORBIDDEN:
                    return "stop"
                if not self.creating and not await self._database.read(lambda c: select(c, waiting, batch=item.batch)):
                    return "stop" if len(suspects) > 1 else "refused"
                await asyncio.sleep(self._policy.read_interval)
            return "refused"
        finally:
            asyncio.get_running_loop().call_later(2 * self._policy.read_interval, suspects.pop, item.number, None)

    async def _recover(self, unknown: errors.CreateOutcomeUnknownError, item: Item) -> str | None:
        """Look for the run of an order in the history. A run of another order in the database is not taken."""
        for failures in range(1, RECOVERY_TRIES + 1):
            known = await self._database.read(lambda c: orders.list_runs(c, item.sent - 2 * policy.CLOCK_SKEW))
            await self._wait_until_open()
            try:
                run = await self._flora.recover_create(unknown, known=known)
            except errors.CreateOutcomeUnknownError as error:
                unknown = error
            else:
                if await self._record_start(item, run):
                    return run.run_id
            if unknown.candidates or not unknown.accepted:
                break
            if failures < RECOVERY_TRIES:
                await asyncio.sleep(self._policy.pause_after(failures + 2))
        await self._end(item, "unknown", error=unknown)
        return None

    # -- wait and settle

    async def _wait(self, item: Item, started: StartedRun | str) -> None:
        """Wait for a run; safe to repeat."""
        settings = msgspec.json.decode(item.settings, type=BatchSettings)
        limit = settings.run_timeout
        timeout = None if limit is None else max(0.01, item.sent + limit - time.time())
        try:
            run = await self._flora.wait_for_run(started, timeout=timeout, poll=self._poll)
            if lacks_charge(run):
                run = await self._settle(run)
        except errors.ClientClosedError:
            raise
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            self.trouble = str(error)
            await self._stop(item, f"{orders.UNREADABLE}{error}")
            await self._leave(item, doubtful=True)
        except errors.RunFailedError as error:
            await self._end_failed(item, error, settings)
        except errors.FloraError as error:
            await self._end(item, "unknown", error=error)
        else:
            await self._end(item, "completed", run, charged=run.charged_cost)

    async def _settle(self, run: Run) -> Run:
        """Wait for the charge of a completed run. Its place is free meanwhile."""
        self.ending += 1
        self._on_place_free()
        try:
            return await self._flora.wait_for_run(run, timeout=None, poll=self._poll, settle=True)
        finally:
            self.ending -= 1

    async def _end_failed(self, item: Item, failure: errors.RunFailedError, settings: BatchSettings) -> None:
        """End an order whose run failed, or queue it again under a new key, in one transaction."""
        if failure.advice == "stop":
            await self._stop(item, str(failure))
        pause = self._reorder_policy.pause(failure, len(decode_attempts(item.attempts)), settings.retry_failed)
        if pause is None:
            await self._end(item, "failed", error=failure, charged=failure.run.charged_cost or 0.0)
        else:
            await self._database.write(lambda c: orders.order_again(c, item, failure, pause))

    async def _end(
        self,
        item: Item,
        state: State,
        run: Run | None = None,
        *,
        error: errors.FloraError | None = None,
        charged: float | None = None,
    ) -> None:
        outcome = encode_outcome(run, error)
        self.ending += 1
        self._on_place_free()
        try:
            await self._database.write(lambda c: orders.end(c, item, state, charged, outcome))
        finally:
            self.ending -= 1

    def _pause(self, failure: errors.FloraError) -> None:
        """Send no order for a while."""
        if self.pause > 0:
            return  # an order that was sent before the others failed
        self._failures += 1
        pause = self._policy.pause_after(self._failures)
        self._open_at = time.monotonic() + pause
        self.trouble = str(failure)
        extra = {"pause": pause, "error": type(failure).__name__}
        log.warning("cannot send orders, next attempt in %g s: %s", pause, type(failure).__name__, extra=extra)


def _unknown(
    item: Item, order: AnyOrder, reason: str, failure: errors.FloraError | None = None, *, accepted: bool = False
) -> errors.CreateOutcomeUnknownError:
    """Return the error of a create whose outcome is unknown, with the window that is stored."""
    known = failure if isinstance(failure, errors.CreateOutcomeUnknownError) else None
    unknown = errors.CreateOutcomeUnknownError(
        order=order,
        idempotency_key=item.key,
        window=(item.sent - policy.CLOCK_SKEW, time.time() + policy.CLOCK_SKEW),
        attempts=1 if known is None else known.attempts,
        reason=reason if known is None else known.reason,
        accepted=accepted or getattr(failure, "status", None) == 409 or (known is not None and known.accepted),
    )
    unknown.run_id = None if known is None else known.run_id
    return unknown
