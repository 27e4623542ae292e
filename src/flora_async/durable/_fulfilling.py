"""One order of a batch, from wherever it stands to its end: created once, whatever crashes, and waited for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import msgspec

from flora_async import Flora, StartedRun, _wire, errors
from flora_async._pacing import PollFactory
from flora_async.durable import _deciding, _plain
from flora_async.durable._ledger import ENDED, Change, Item, Ledger
from flora_async.durable._presence import Presence
from flora_async.models import Order, Run

log = logging.getLogger("flora_async")

LOOK_AGAIN = 1.0
"""Seconds between looks at what somebody else has to change: another process, a stopped batch."""
MONEY_AGAIN = 0.1
"""Seconds between looks at what the creates under way have cost."""

_order: msgspec.json.Decoder[Order] = msgspec.json.Decoder(Order)


class Fulfilling:
    """The orders that one process sees to; at most *concurrency* at once."""

    def __init__(
        self, flora: Flora, ledger: Ledger, presence: Presence, *, concurrency: int, poll: PollFactory | None
    ) -> None:
        self._flora = flora
        self._ledger = ledger
        self._presence = presence
        self._room = asyncio.Semaphore(concurrency)
        self._poll = poll
        self._failures = 0
        self._open_at = 0.0
        self._creating = 0
        self.creates_end: asyncio.Event = asyncio.Event()
        self.creates_end.set()
        self.closing: bool = False
        self._in_hand: set[tuple[str, int]] = set()
        self.under_way: Counter[str] = Counter()
        """How many orders are out or waited for, by batch."""
        self.trouble: str | None = None
        """What keeps FLORA from being asked at present."""

    async def fulfil(self, item: Item) -> None:
        """See an item to its end."""
        one = item.batch, item.number
        async with self._room:
            while one in self._in_hand:  # its chunk was given out twice, which is rare
                await asyncio.sleep(LOOK_AGAIN)
                item = await self._ledger.item(*one)
            self._in_hand.add(one)
            try:
                while item.state not in ENDED:
                    if await self._may_begin(item):
                        self.under_way[item.batch] += 1
                        try:
                            await self._step(item)
                        finally:
                            self.under_way[item.batch] -= 1
                    item = await self._ledger.item(*one)
            finally:
                self._in_hand.discard(one)

    async def _may_begin(self, item: Item) -> bool:
        """Wait until something can be done about an item; false if it is to be looked at again."""
        if item.state == "new":
            return await self._claim(item)
        if item.state == "sent":
            owner = item.owner
            mine = owner == self._ledger.process
            busy = not mine and owner is not None and await self._presence.alive(process=owner) is not None
            if busy or await self._ledger.is_stopped(item.batch):
                await asyncio.sleep(LOOK_AGAIN)
                return False
            return mine or await self._ledger.take_over(item)
        return True

    async def _step(self, item: Item) -> None:
        started: StartedRun | str | None = item.run_id
        if item.state == "new":
            started = await self._create(item, time.time(), doubtful=False)
        elif item.state == "sent":
            started = await self._create(item, item.sent or 0.0, doubtful=True)
        if started is not None:
            await self._wait(item, started)

    async def _claim(self, item: Item) -> bool:
        """Wait until the order may go out; false if another process has it."""
        while True:
            await self._gate()
            grant = await self._ledger.claim(item.batch, item.number)
            if grant in ("granted", "taken"):
                return grant == "granted"
            await asyncio.sleep(MONEY_AGAIN if grant == "unaffordable" else LOOK_AGAIN)

    async def _create(self, item: Item, sent: float, *, doubtful: bool) -> StartedRun | str | None:
        """Send an order until FLORA has spoken; give the run. ``None``: it is written down what became of it."""
        order = _order.decode(item.body)
        while True:
            fresh = _deciding.key_is_fresh(sent, time.time())
            if doubtful and not fresh:
                old = _unknown(item, order, sent, "FLORA may have forgotten the key", accepted=False)
                return await self._recovered(item, old, sent)
            await self._gate()
            try:
                started = await self._posted(item, order)
            except errors.ClientClosedError:
                raise
            except errors.FloraError as error:
                failure = error
            else:
                self._failures, self.trouble = 0, None
                return await self._accepted(item, order, sent, started)
            verdict = _deciding.judge_failure(failure, doubtful=doubtful, fresh=fresh)
            if verdict != "again" and verdict != "stop":
                return await self._concluded(item, order, sent, failure, verdict)
            doubtful = doubtful or isinstance(failure, errors.CreateOutcomeUnknownError)
            if verdict == "stop":
                await self._ledger.stop(item.batch, str(failure))
            else:
                self._shut(failure)
            if not doubtful:
                # Nothing was let in: whoever sends it next begins a window of its own.
                await self._ledger.change(Change(item.batch, item.number, "new"))
            if not doubtful or verdict == "stop":
                return None

    async def _accepted(self, item: Item, order: Order, sent: float, started: StartedRun) -> StartedRun | str | None:
        if await self._ledger.change(_started(item, started)):
            return started
        if not started.recovered:
            return None
        # The client did not know that this run is another order's: the database does.
        return await self._recovered(item, _unknown(item, order, sent, "the answer was lost", accepted=True), sent)

    async def _concluded(
        self, item: Item, order: Order, sent: float, failure: errors.FloraError, verdict: _deciding.Verdict
    ) -> str | None:
        """Do what follows from a create that is not sent again."""
        if verdict == "recover":
            return await self._recovered(item, _known(failure, item, order, sent), sent)
        if verdict == "unknown":
            if not isinstance(failure, errors.CreateOutcomeUnknownError):
                failure = _unknown(item, order, sent, str(failure), accepted=isinstance(failure, errors.APIError))
            await self._ended(item, "unknown", None, failure)
        else:
            await self._ended(item, "refused", None, failure)
        return None

    async def _posted(self, item: Item, order: Order) -> StartedRun:
        self._creating += 1
        self.creates_end.clear()
        try:
            return await self._flora.generations.create(**_wire.order_fields(order), idempotency_key=item.key)
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
        try:
            run = await self._flora.wait_for_run(started, timeout=None, poll=self._poll)
        except errors.ClientClosedError:
            raise
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            self.trouble = str(error)
            await self._ledger.stop(item.batch, self.trouble)
            await asyncio.sleep(LOOK_AGAIN)
        except errors.FloraError as error:
            await self._ended(item, "failed" if isinstance(error, errors.RunFailedError) else "unknown", None, error)
        else:
            await self._ended(item, "completed", run, None)

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
        while self.closing:  # noqa: ASYNC110 - until it is cancelled
            await asyncio.sleep(LOOK_AGAIN)
        while (wait := self._open_at - time.monotonic()) > 0:  # noqa: ASYNC110 - it may be put off again
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
    return Change(item.batch, item.number, "started", run_id=run.run_id, recovered=run.recovered, cost=run.charged_cost)


def _known(failure: errors.FloraError, item: Item, order: Order, sent: float) -> errors.CreateOutcomeUnknownError:
    """Tell of an order that FLORA has said it knows, with the window that was written down."""
    unknown = _unknown(item, order, sent, str(failure), accepted=True)
    if isinstance(failure, errors.CreateOutcomeUnknownError):
        unknown.reason, unknown.attempts, unknown.run_id = failure.reason, failure.attempts, failure.run_id
    return unknown


def _unknown(item: Item, order: Order, sent: float, reason: str, *, accepted: bool) -> errors.CreateOutcomeUnknownError:
    return errors.CreateOutcomeUnknownError(
        order=order,
        idempotency_key=item.key,
        window=(sent - _deciding.CLOCK_SKEW, time.time() + _deciding.CLOCK_SKEW),
        attempts=1,
        reason=reason,
        accepted=accepted,
    )
