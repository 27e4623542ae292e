"""One order, from its stored state to its end: sent once, whatever crashes, and waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from flora_async import Flora, errors
from flora_async._pacing import PollFactory
from flora_async.durable._store import batches, orders
from flora_async.durable._store.database import Database
from flora_async.durable._store.heartbeats import LOST_AFTER
from flora_async.durable._store.orders import Change, Item
from flora_async.durable._store.outcomes import encode_outcome
from flora_async.durable._store.schema import State
from flora_async.durable._worker import policy
from flora_async.durable._worker.writer import ChangeWriter
from flora_async.models import Order, Run, StartedRun

log = logging.getLogger("flora_async")

LOOK_INTERVAL = 0.25
"""Seconds between looks at changes that other orders or processes make."""
RECOVERY_TRIES = 3
"""How often the run of an accepted create is looked for while the history shows no candidate."""
CHARGE_PAUSES = (1.0, 4.0, 10.0, 20.0, 30.0)
"""Seconds between polls of a completed run of unknown price that shows no charge yet."""
MAX_FORBIDDEN = 5
"""Number of orders that are refused with 403, and none accepted, after which the key is taken to be refused."""

_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


class OrderProcessor:
    """Processes the orders that one process holds."""

    def __init__(
        self,
        flora: Flora,
        database: Database,
        writer: ChangeWriter,
        process: str,
        poll: PollFactory | None,
        on_place_free: Callable[[], None],
    ) -> None:
        self._flora = flora
        self._database = database
        self._writer = writer
        self._process = process
        self._poll = poll
        self._on_place_free = on_place_free
        self._failures = 0
        self._open_at = 0.0
        self._accepted = False
        self.forbidden: dict[str, dict[int, str]] = {}
        """Orders, by batch, that were refused with 403 while it is unknown whether the key is; with type and model."""
        self.unreadable: set[str] = set()
        """Batches whose runs this client's key may not read."""
        self.creating = 0
        self.ending = 0
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
        run: StartedRun | str | None = item.run_id
        if item.state == "sending":
            run = await self._create(item)
        if run is not None:
            await self._wait(item, run)

    # -- create

    async def _create(self, item: Item) -> StartedRun | str | None:
        """Send an order until FLORA's answer is clear; return its run. ``None``: its new state is recorded."""
        order = _order.decode(item.body)
        doubtful, held_since = item.claimed == 0.0, item.claimed or time.time()
        while True:
            fresh = policy.key_is_fresh(item.sent, time.time())
            if doubtful and not fresh:
                return await self._recover(item, _unknown(item, order, "FLORA may have forgotten the key"))
            if not await self._may_send(item, held_since, doubtful=doubtful):
                return None
            started = await self._send(item, order)
            if not isinstance(started, errors.FloraError):
                return started
            verdict = policy.judge_failure(started, doubtful=doubtful, fresh=fresh)
            if verdict == "recover":
                return await self._recover(item, _unknown(item, order, str(started), started))
            if verdict != "again":
                await self._conclude(item, order, started, verdict, doubtful=doubtful)
                return None
            self._pause(started)
            doubtful, held_since = True, 0.0

    async def _may_send(self, item: Item, held_since: float, *, doubtful: bool) -> bool:
        """Wait until orders can be sent; false if this one is not this process's to send any more."""
        while self.pause > 0 or self.closing:  # noqa: ASYNC110 - it may be put off again
            await asyncio.sleep(max(LOOK_INTERVAL, self.pause))
        if time.time() - held_since < LOST_AFTER / 3:  # longer also after this machine was suspended
            return True
        held = await self._database.write(lambda c: orders.renew(c, item, self._process))
        if held != "held":
            await self._put_back(item, doubtful=doubtful or held == "lost")
        return held == "held"

    async def _conclude(
        self, item: Item, order: Order, failure: errors.FloraError, verdict: policy.Verdict, *, doubtful: bool
    ) -> None:
        """Record the consequence of a create that failed and is not sent again from here."""
        if verdict == "forbidden":
            verdict = await self._judge_forbidden(item, order)
        if verdict == "refused":
            await self._end(item, "refused", error=failure)
            return
        if verdict == "stop":
            await self._database.write(lambda c: batches.stop(c, item.batch, str(failure)))
        else:
            self._pause(failure)
        await self._put_back(item, doubtful=doubtful)

    async def _send(self, item: Item, order: Order) -> StartedRun | str | errors.FloraError | None:
        self.creating += 1
        try:
            fields = {name: getattr(order, name) for name in Order.__struct_fields__}
            started = await self._flora.generations.create(**fields, idempotency_key=item.key)
        except errors.ClientClosedError:
            raise
        except errors.FloraError as error:
            return error
        finally:
            self.creating -= 1
        self._failures, self.trouble, self._accepted = 0, None, True
        if await self._writer.write(_started(item, started)):
            return started
        if not started.recovered:
            log.error("FLORA accepted the order under key %s twice: %s is not recorded", item.key, started.run_id)
            return None
        # The client did not know that this run is another order's: the database does.
        return await self._recover(item, _unknown(item, order, "the response was lost", accepted=True))

    async def _put_back(self, item: Item, *, doubtful: bool) -> None:
        """Let the order wait again, or, if it may have been accepted, leave it to be sent again under its key."""
        if doubtful:
            await self._database.write(lambda c: orders.release(c, item, self._process))
        else:
            await self._writer.write(Change(item.batch, item.number, "waiting"))

    async def _judge_forbidden(self, item: Item, order: Order) -> policy.Verdict:
        """Return whether a 403 concerns this order or the key: wait for what FLORA says to other orders."""
        suspects = self.forbidden.setdefault(item.batch, {})
        suspects[item.number] = f"{order.type} {order.model}"
        try:
            while not self._accepted:
                if len(set(suspects.values())) > 1 or len(suspects) >= MAX_FORBIDDEN:
                    return "stop"
                if not self.creating and not await self._database.read(lambda c: orders.has_waiting(c, item.batch)):
                    return "stop" if len(suspects) > 1 else "refused"
                await asyncio.sleep(LOOK_INTERVAL)
            return "refused"
        finally:
            asyncio.get_running_loop().call_later(2 * LOOK_INTERVAL, suspects.pop, item.number, None)

    async def _recover(self, item: Item, unknown: errors.CreateOutcomeUnknownError) -> str | None:
        """Look for the run of an order in the history. A run of another order in the database is not taken."""
        for failures in range(1, RECOVERY_TRIES + 1):
            known = await self._database.read(lambda c: orders.known_runs(c, item.sent - 2 * policy.CLOCK_SKEW))
            if not unknown.accepted and not await self._may_send(item, 0.0, doubtful=True):
                return None
            try:
                run = await self._flora.recover_create(unknown, known=known)
            except errors.CreateOutcomeUnknownError as error:
                unknown = error
            else:
                if await self._writer.write(_started(item, run)):
                    return run.run_id
            if unknown.candidates or not unknown.accepted:
                break
            if failures < RECOVERY_TRIES:
                await asyncio.sleep(policy.pause_after(failures + 2))
        await self._end(item, "unknown", error=unknown)
        return None

    # -- wait and settle

    async def _wait(self, item: Item, started: StartedRun | str) -> None:
        """Wait for a run; safe to repeat."""
        timeout = None if item.run_timeout is None else max(0.01, item.sent + item.run_timeout - time.time())
        try:
            run = await self._flora.wait_for_run(started, timeout=timeout, poll=self._poll)
            if run.charged_cost is None and not (
                started.charged_cost if isinstance(started, StartedRun) else item.quoted
            ):
                run = await self._settle(run)
        except errors.ClientClosedError:
            raise
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            self.trouble = reason = str(error)
            self.unreadable.add(item.batch)
            await self._database.write(lambda c: batches.stop(c, item.batch, reason))
            await self._put_back(item, doubtful=True)
        except errors.RunFailedError as error:
            await self._end(item, "failed", error=error, charged=error.run.charged_cost or 0.0)
        except errors.FloraError as error:
            await self._end(item, "unknown", error=error)
        else:
            await self._end(item, "completed", run, charged=run.charged_cost)

    async def _settle(self, run: Run) -> Run:
        """Poll a completed run until it shows its charge, which can take a minute."""
        for pause in CHARGE_PAUSES:
            if run.charged_cost is not None:
                break
            await asyncio.sleep(pause)
            try:
                run = await self._flora.generations.retrieve(run.run_id)
            except errors.APIError:
                break
        return run

    async def _end(
        self,
        item: Item,
        state: State,
        run: Run | None = None,
        *,
        error: errors.FloraError | None = None,
        charged: float | None = None,
    ) -> None:
        change = Change(item.batch, item.number, state, charged=charged, outcome=encode_outcome(run, error))
        self.ending += 1
        self._on_place_free()
        try:
            await self._writer.write(change)
        finally:
            self.ending -= 1

    def _pause(self, failure: errors.FloraError) -> None:
        """Send no order for a while."""
        if self.pause > 0:
            return  # an order that was sent before the others failed
        self._failures += 1
        pause = policy.pause_after(self._failures)
        self._open_at = time.monotonic() + pause
        self.trouble = str(failure)
        log.warning("FLORA takes no orders, trying again in %g s: %s", pause, type(failure).__name__)


def _started(item: Item, run: StartedRun | Run) -> Change:
    quoted = run.charged_cost or None
    return Change(item.batch, item.number, "running", run_id=run.run_id, recovered=run.recovered, quoted=quoted)


def _unknown(
    item: Item, order: Order, reason: str, failure: errors.FloraError | None = None, *, accepted: bool = False
) -> errors.CreateOutcomeUnknownError:
    """Return the error of a create whose outcome is unknown, with the window that is stored."""
    unknown = errors.CreateOutcomeUnknownError(
        order=order,
        idempotency_key=item.key,
        window=(item.sent - policy.CLOCK_SKEW, time.time() + policy.CLOCK_SKEW),
        attempts=1,
        reason=reason,
        accepted=accepted or (isinstance(failure, errors.APIError) and failure.status == 409),
    )
    if isinstance(failure, errors.CreateOutcomeUnknownError):
        unknown.reason, unknown.attempts, unknown.run_id = failure.reason, failure.attempts, failure.run_id
        unknown.accepted = failure.accepted
    return unknown
