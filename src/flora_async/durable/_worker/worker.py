"""The worker of one process: it gives signs of life and fills free places with orders, new ones and lost ones."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from contextlib import suppress
from functools import partial

from flora_async import Flora, PollFactory, errors
from flora_async.durable._store import orders
from flora_async.durable._store.database import Database
from flora_async.durable._store.orders import Item
from flora_async.durable._worker.policy import WorkerPolicy
from flora_async.durable._worker.processor import OrderProcessor

log = logging.getLogger("flora_async")

CLAIM_LIMIT = 200
"""Orders that are claimed in one transaction."""
FAULT_PAUSE = 5.0


class Worker:
    """Works on the orders of a database, at most *concurrency* at once."""

    def __init__(
        self,
        flora: Flora,
        database: Database,
        policy: WorkerPolicy,
        executor: str,
        concurrency: int,
        poll: PollFactory | None,
        only: str | None,
    ) -> None:
        self.process: str = f"{executor}/{uuid.uuid4().hex}"
        self.flora = flora
        self._database = database
        self._policy = policy
        self._concurrency = concurrency
        self._only = only
        self.processor: OrderProcessor = OrderProcessor(flora, database, policy, poll, self.wake)
        self.in_hand: Counter[str] = Counter()
        """Number of orders in progress, by batch."""
        self.is_client_closed: bool = False
        """Whether the client was closed before these batches: this process can do nothing more."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._turn = 0
        self._outages = 0

    async def start(self) -> None:
        """Record the first heartbeat and start to work."""
        await self._database.write(lambda c: orders.beat(c, self.process))
        create_task = asyncio.get_running_loop().create_task
        self._loops = [create_task(self._keep_beating()), create_task(self._keep_filling())]

    def wake(self) -> None:
        """Look for orders now."""
        self._wake.set()

    async def close(self) -> None:
        """Begin nothing more, wait for creates in flight, and release the other orders."""
        loops, self._loops = self._loops, []
        if not loops:
            return
        self.processor.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._policy.close_timeout):
                while self.processor.creating:  # noqa: ASYNC110 - at most ten seconds
                    await asyncio.sleep(0.01)
        ending = [*loops, *self._tasks.values()]
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)
        with suppress(TimeoutError, errors.DatabaseError):  # else others take the orders over when they miss the signs
            async with asyncio.timeout(self._policy.close_timeout):
                await self._database.write(lambda c: orders.remove(c, self.process))

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(orders.BEAT_INTERVAL)
            with suppress(errors.DatabaseError):
                await self._database.write(lambda c: orders.beat(c, self.process))

    async def _keep_filling(self) -> None:
        looked = 0.0
        while True:
            self._wake.clear()
            pause = self._policy.read_interval
            try:
                if self._free() and time.monotonic() - looked > self._policy.take_over_interval:
                    looked = time.monotonic()
                    await self._take_over()
                if self._free() and self.processor.pause <= 0:
                    pause = await self._claim()
            except errors.DatabaseError as error:
                extra = {"error": type(error).__name__}
                log.error("cannot claim orders: %s", error, extra=extra)  # noqa: TRY400 - the message is enough
                pause = FAULT_PAUSE
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _free(self) -> int:
        suspects = sum(map(len, self.processor.forbidden.values()))  # they wait for the fate of other orders
        return 0 if self.processor.closing else self._concurrency + suspects + self.processor.ending - len(self._tasks)

    async def _take_over(self) -> None:
        if self._outages != self._database.outages:
            self._outages, in_hand = self._database.outages, set(self._tasks)
            await self._database.write(lambda c: orders.release_others(c, self.process, in_hand))
        take_over = partial(orders.take_over, limit=self._free(), process=self.process, only=self._only)
        self._begin(await self._database.write(take_over))

    async def _claim(self) -> float:
        """Claim orders of one batch after the other; return when to look again, in seconds."""
        pause = self._policy.read_interval
        found = await self._database.read(lambda c: orders.list_claimable(c, self._only))
        self._turn += 1
        for place in range(len(found)):
            limit = min(self._free(), CLAIM_LIMIT)
            if limit < 1:
                break
            batch = found[(self._turn + place) % len(found)]
            claim = partial(orders.claim, batch=batch, limit=max(1, limit // len(found)), process=self.process)
            items, retry_after = await self._database.write(claim)
            self._begin(items)
            if items or retry_after is not None:
                pause = min(pause, retry_after or 0.0)
        return pause

    def _begin(self, items: list[Item]) -> None:
        for item in items:
            if (item.batch, item.number) not in self._tasks:
                self.in_hand[item.batch] += 1
                task = asyncio.get_running_loop().create_task(self._process(item))
                self._tasks[item.batch, item.number] = task

    async def _process(self, item: Item) -> None:
        try:
            await self.processor.process(item)
        except errors.ClientClosedError:
            self.is_client_closed = self.processor.closing = True
            with suppress(errors.DatabaseError):
                await self._database.write(lambda c: orders.leave(c, item, doubtful=True))
        except Exception as error:
            extra = {"error": type(error).__name__}
            log.exception("an order of %s failed: it will be retried", item.name, exc_info=error, extra=extra)
            await asyncio.sleep(FAULT_PAUSE)
            with suppress(errors.DatabaseError):
                await self._database.write(lambda c: orders.leave(c, item, doubtful=True))
        finally:
            del self._tasks[item.batch, item.number]
            self.in_hand[item.batch] -= 1
            self.wake()
