"""The worker of one process: it gives signs of life and fills free places with orders, new ones and lost ones."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from contextlib import suppress
from functools import partial

from flora_async import Flora, errors
from flora_async._pacing import PollFactory
from flora_async.durable._store import heartbeats, orders
from flora_async.durable._store.database import Database
from flora_async.durable._store.orders import Item
from flora_async.durable._worker.processor import LOOK_INTERVAL, OrderProcessor
from flora_async.durable._worker.writer import ChangeWriter

log = logging.getLogger("flora_async")

CLAIM_LIMIT = 200
"""Orders that are claimed in one transaction."""
TAKE_OVER_INTERVAL = 2.0
CREATES_END_TIMEOUT = 10.0
"""Seconds for which closing waits for creates in flight."""
FAULT_PAUSE = 5.0


class Worker:
    """Works on the orders of a database, at most *concurrency* at once."""

    def __init__(
        self,
        flora: Flora,
        database: Database,
        executor: str,
        concurrency: int,
        poll: PollFactory | None,
        only: str | None,
    ) -> None:
        self.process: str = f"{executor}/{uuid.uuid4().hex}"
        self._executor = executor
        self._database = database
        self._concurrency = concurrency
        self._only = only
        self._writer = ChangeWriter(database, self.process)
        self.processor: OrderProcessor = OrderProcessor(flora, database, self._writer, self.process, poll, self.wake)
        self.in_hand: Counter[str] = Counter()
        """Number of orders in progress, by batch."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._turn = 0
        self._outages = 0

    async def start(self) -> None:
        """Give the first sign of life, and begin to work."""
        await self._beat()
        create_task = asyncio.get_running_loop().create_task
        self._loops = [create_task(self._keep_beating()), create_task(self._keep_filling())]

    def wake(self) -> None:
        """Look for orders now."""
        self._wake.set()

    async def close(self) -> None:
        """Begin nothing more, wait for creates in flight, and release the other orders."""
        self.processor.closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(CREATES_END_TIMEOUT):
                while self.processor.creating:  # noqa: ASYNC110 - at most ten seconds
                    await asyncio.sleep(0.01)
        ending = [*self._loops, *self._tasks.values()]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        with suppress(TimeoutError, errors.DatabaseError):  # else others take the orders over when they miss the signs
            async with asyncio.timeout(CREATES_END_TIMEOUT):
                await self._writer.flush()
                await self._database.write(lambda c: heartbeats.remove(c, self.process))

    async def _beat(self) -> None:
        await self._database.write(lambda c: heartbeats.beat(c, self.process, self._executor))

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(heartbeats.BEAT_INTERVAL)
            with suppress(errors.DatabaseError):
                await self._beat()

    async def _keep_filling(self) -> None:
        looked = 0.0
        while True:
            self._wake.clear()
            pause = LOOK_INTERVAL
            try:
                if self._free() and time.monotonic() - looked > TAKE_OVER_INTERVAL:
                    looked = time.monotonic()
                    await self._take_over()
                if self._free() and self.processor.pause <= 0:
                    pause = await self._claim()
            except errors.DatabaseError as error:
                log.error("no orders could be claimed: %s", error)  # noqa: TRY400 - the database's message is enough
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
        limit, unreadable = self._free(), frozenset(self.processor.unreadable)
        items = await self._database.write(
            lambda c: orders.take_over(c, limit, self.process, only=self._only, unreadable=unreadable)
        )
        for item in items:
            self._begin(item)

    async def _claim(self) -> float:
        """Claim orders of one batch after the other; return when to look again, in seconds."""
        pause = LOOK_INTERVAL
        found = await self._database.read(lambda c: orders.claimable_batches(c, self._only))
        self._turn += 1
        for batch in found[self._turn % len(found) :] + found[: self._turn % len(found)] if found else ():
            limit = min(self._free(), CLAIM_LIMIT)
            if limit < 1:
                break
            claim = await self._database.write(
                partial(orders.claim, batch=batch, limit=max(1, limit // len(found)), process=self.process)
            )
            for item in claim.items:
                self._begin(item)
            if claim.retry_after is not None:
                pause = min(pause, claim.retry_after)
            elif claim.items:
                pause = 0.0
        return pause

    def _begin(self, item: Item) -> None:
        one = item.batch, item.number
        if one in self._tasks:
            return
        self.in_hand[item.batch] += 1
        self._tasks[one] = asyncio.get_running_loop().create_task(self._process(item))

    async def _process(self, item: Item) -> None:
        try:
            await self.processor.process(item)
        except Exception as error:
            log.exception("an order of %s failed here, it is tried again", item.name, exc_info=error)
            await asyncio.sleep(FAULT_PAUSE)
            with suppress(errors.DatabaseError):
                await self._database.write(lambda c: orders.release(c, item, self.process))
        finally:
            del self._tasks[item.batch, item.number]
            self.in_hand[item.batch] -= 1
            self.wake()
