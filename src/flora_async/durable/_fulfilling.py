"""One order of a batch, from wherever it stands to its end: created once, whatever crashes, and waited for."""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from flora_async import Flora, StartedRun, errors
from flora_async._pacing import PollFactory
from flora_async.durable import _deciding, _plain
from flora_async.durable._ledger import ENDED, Change, Item, Ledger
from flora_async.models import Order, Run

log = logging.getLogger("flora_async")

LOOK_AGAIN = 1.0
"""Seconds between looks at what somebody else has to change: another process, a stopped batch."""
MONEY_AGAIN = 0.1
"""Seconds between looks at what the creates under way have cost."""

_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


class Fulfilling:
    """The orders that one process sees to; at most *concurrency* at once."""

    def __init__(self, flora: Flora, ledger: Ledger, *, concurrency: int, poll: PollFactory | None) -> None:
        self._flora = flora
        self._ledger = ledger
        self._room = asyncio.Semaphore(concurrency)
        self._poll = poll
        self._failures = 0
        self._open_at = 0.0
        self._creating = 0
        self.creates_end = asyncio.Event()
        self.creates_end.set()
        self.closing: bool = False
        self.under_way: dict[str, int] = {}
        """How many runs are waited for, by batch."""
        self.trouble: str | None = None
        """What keeps FLORA from being asked at present."""

    async def fulfil(self, item: Item) -> None:
        """See an item to its end."""
        async with self._room:
            started: StartedRun | str | None = None
            while item.state not in ENDED:
                if item.state == "new":
                    granted = await self._claim(item)
                    started = await self._create(item, time.time(), doubtful=False) if granted else None
                elif item.state == "sent":
                    started = await self._adopted(item)
                if item.state == "started" or started is not None:
                    await self._wait(item, started or item.run_id or "")
                item = await self._ledger.item(item.batch, item.number)

    async def _claim(self, item: Item) -> bool:
        """Wait until the order may go out; false if another process has it."""
        pause = LOOK_AGAIN
        while True:
            await self._gate()
            grant = await self._ledger.claim(item.batch, item.number)
            if grant in ("granted", "taken"):
                return grant == "granted"
            pause = MONEY_AGAIN if grant == "unaffordable" else LOOK_AGAIN
            await asyncio.sleep(pause)

    async def _adopted(self, item: Item) -> StartedRun | str | None:
        """See to an order that was sent, and its answer never written down."""
        if item.owner is not None and await self._ledger.alive(process=item.owner) is not None:
            await asyncio.sleep(LOOK_AGAIN)  # its process will
            return None
        if not await self._ledger.take_over(item):
            return None
        return await self._create(item, item.sent or 0.0, doubtful=True)

    async def _create(self, item: Item, sent: float, *, doubtful: bool) -> StartedRun | str | None:
        """Send an order until FLORA has spoken; give the run. ``None``: it is written down that there is none."""
        order = _order.decode(item.body)
        while True:
            fresh = _deciding.key_is_fresh(sent, time.time())
            if doubtful and not fresh:
                old = _unknown(item, order, sent, "FLORA may have forgotten the key", accepted=False)
                return await self._recovered(item, old, sent)
            await self._gate()
            failure: errors.FloraError
            try:
                started = await self._posted(item, order)
            except errors.ClientClosedError:
                raise
            except errors.FloraError as error:
                failure = error
            else:
                self._failures, self.trouble = 0, None
                if await self._ledger.change(_started(item, started)):
                    return started
                if not started.recovered:
                    return None
                # The client did not know that this run is another order's: the database does.
                failure = _unknown(item, order, sent, "the answer was lost", accepted=True)
            verdict = _deciding.judge_failure(failure, doubtful=doubtful, fresh=fresh)
            if verdict == "recover":
                return await self._recovered(item, _accepted(failure, item, order, sent), sent)
            if verdict in ("refused", "unknown"):
                if verdict == "unknown" and not isinstance(failure, errors.CreateOutcomeUnknownError):
                    failure = _unknown(item, order, sent, str(failure), accepted=isinstance(failure, errors.APIError))
                await self._ended(item, verdict, None, failure)
                return None
            doubtful = doubtful or isinstance(failure, errors.CreateOutcomeUnknownError)
            if verdict == "stop":
                await self._ledger.stop(item.batch, str(failure))
            else:
                self._shut(failure)
            if not doubtful:
                # Nothing was let in: whoever sends it next begins a window of its own.
                await self._ledger.change(Change(item.batch, item.number, "new"))
                return None
            await asyncio.sleep(LOOK_AGAIN if verdict == "stop" else 0)

    async def _posted(self, item: Item, order: Order) -> StartedRun:
        self._creating += 1
        self.creates_end.clear()
        try:
            return await self._flora.generations.create(
                type=order.type,
                prompt=order.prompt,
                workspace_id=order.workspace_id,
                project_id=order.project_id,
                model=order.model,
                params=order.params,
                callback_url=order.callback_url,
                idempotency_key=item.key,
            )
        finally:
            self._creating -= 1
            if not self._creating:
                self.creates_end.set()

    async def _recovered(self, item: Item, unknown: errors.CreateOutcomeUnknownError, sent: float) -> str | None:
        """Look for the run of an order in the history; what is known to be another's is not taken."""
        for failures in range(1, _deciding.RECOVERY_TRIES + 1):
            known = await self._ledger.known_runs(sent - 2 * _deciding.CLOCK_SKEW)
            try:
                run = await self._flora.recover_create(unknown, known=known)
            except errors.CreateOutcomeUnknownError as error:
                unknown = error
            else:
                if await self._ledger.change(_started(item, run)):
                    return run.run_id
            if unknown.candidates or not unknown.accepted:
                break
            if failures < _deciding.RECOVERY_TRIES:
                await asyncio.sleep(_deciding.pause_after(failures + 2))
        await self._ended(item, "unknown", None, unknown)
        return None

    async def _wait(self, item: Item, started: StartedRun | str) -> None:
        """Wait for a run, however long it takes; safe to repeat."""
        under_way = self.under_way
        under_way[item.batch] = under_way.get(item.batch, 0) + 1
        try:
            run = await self._flora.wait_for_run(started, timeout=None, poll=self._poll)
            await self._ended(item, "completed", run, None)
        except errors.RunFailedError as error:
            await self._ended(item, "failed", None, error)
        except errors.ClientClosedError:
            raise
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            self.trouble = str(error)
            await self._ledger.stop(item.batch, self.trouble)
            await asyncio.sleep(LOOK_AGAIN)
        except errors.FloraError as error:
            await self._ended(item, "unknown", None, error)
        finally:
            under_way[item.batch] -= 1

    async def _ended(
        self, item: Item, state: _deciding.Ended, run: Run | None, error: errors.FloraError | None
    ) -> None:
        cost = None
        if isinstance(error, errors.RunFailedError):
            cost = error.run.charged_cost or 0.0  # failed runs are not charged
        ending = _plain.write_ending(run, error)
        await self._ledger.change(Change(item.batch, item.number, state, cost=cost, ending=ending))

    # -- while FLORA is away

    async def _gate(self) -> None:
        """Wait until it makes sense to ask FLORA for something."""
        while self.closing:
            await asyncio.sleep(LOOK_AGAIN)
        while (wait := self._open_at - time.monotonic()) > 0:
            await asyncio.sleep(wait)

    def _shut(self, failure: errors.FloraError) -> None:
        now = time.monotonic()
        if now < self._open_at:
            return  # one of those that went out before
        self._failures += 1
        pause = _deciding.pause_after(self._failures)
        self._open_at = now + pause
        self.trouble = str(failure)
        log.warning("FLORA takes no orders, they are tried again in %g s: %s", pause, type(failure).__name__)


def _started(item: Item, run: StartedRun | Run) -> Change:
    return Change(
        item.batch, item.number, "started", run_id=run.run_id, recovered=run.recovered, cost=run.charged_cost
    )


def _accepted(
    failure: errors.FloraError, item: Item, order: Order, sent: float
) -> errors.CreateOutcomeUnknownError:
    """Tell of an order that FLORA has said it knows, with the window that was written down."""
    unknown = _unknown(item, order, sent, str(failure), accepted=True)
    if isinstance(failure, errors.CreateOutcomeUnknownError):
        unknown.reason, unknown.attempts, unknown.run_id = failure.reason, failure.attempts, failure.run_id
    return unknown


def _unknown(
    item: Item, order: Order, sent: float, reason: str, *, accepted: bool
) -> errors.CreateOutcomeUnknownError:
    return errors.CreateOutcomeUnknownError(
        order=order,
        idempotency_key=item.key,
        window=(sent - _deciding.CLOCK_SKEW, time.time() + _deciding.CLOCK_SKEW),
        attempts=1,
        reason=reason,
        accepted=accepted,
    )
