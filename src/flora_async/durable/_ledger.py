"""What is known of each order: read and written here only. What is written at the same time is one transaction."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import sqlalchemy as sa
from anyio.to_thread import run_sync
from msgspec import Struct
from sqlalchemy import exc as sa_exc

from flora_async.durable import _deciding
from flora_async.durable._tables import batches, items, told_apart
from flora_async.errors import DatabaseError

T = TypeVar("T")

log = logging.getLogger("flora_async")

State: TypeAlias = Literal["new", "sent", "started", "completed", "failed", "refused", "unknown"]
ENDED: tuple[State, ...] = ("completed", "failed", "refused", "unknown")

Grant: TypeAlias = Literal["granted", "taken", "unaffordable", "stopped"]

OUT_OF_MONEY = "max_cost"
"""Why a batch is stopped whose next order would cost too much."""
OUTAGE_PAUSE = 1.0
OUTAGE_PATIENCE = 60.0
"""Seconds for which a write is tried again while the database is away."""


class Item(Struct, frozen=True):
    """An order of a batch, and where it stands."""

    batch: str
    number: int
    key: str
    body: str
    columns: str | None
    state: State
    owner: str | None
    sent: float | None
    run_id: str | None
    recovered: bool | None
    cost: float | None
    ending: str | None
    files: str | None
    place: int | None


_ITEM = [items.c[name] for name in Item.__struct_fields__]


class Change(Struct, frozen=True):
    """What became of an item, to be written: ``new`` again, ``started``, or one of its ends."""

    batch: str
    number: int
    state: State
    run_id: str | None = None
    recovered: bool = False
    cost: float | None = None
    ending: str | None = None


class _Wish(Struct, eq=False):
    """Something that waits for the next transaction, and for its answer."""

    what: Change | tuple[str, int]
    answer: asyncio.Future[Any]


class Ledger:
    """The items of all batches in a database, for one process and one event loop."""

    def __init__(self, engine: sa.Engine, process: str) -> None:
        self.engine = engine
        self.process = process
        self._wishes: list[_Wish] = []
        self._writer: asyncio.Task[None] | None = None

    async def ask(self, question: Callable[[sa.Connection], T]) -> T:
        """Read, or write something rare, in a transaction of its own."""

        def asked() -> T:
            with told_apart(), self.engine.begin() as connection:
                return question(connection)

        return await run_sync(asked)

    # -- what happens often, many at a time

    async def claim(self, batch: str, number: int) -> Grant:
        """Take an order that nobody has sent, and write down that it goes out now; ``granted`` is stored for good."""
        grant: Grant = await self._wish((batch, number))
        return grant

    async def change(self, change: Change) -> bool:
        """Write down what became of an item; false if it was not for this process to say."""
        said: bool = await self._wish(change)
        return said

    async def _wish(self, what: Change | tuple[str, int]) -> Any:  # noqa: ANN401 - each kind has its own answer
        wish = _Wish(what, asyncio.get_running_loop().create_future())
        self._wishes.append(wish)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())
        return await wish.answer

    async def _write(self) -> None:
        while self._wishes:
            wishes, self._wishes = self._wishes, []
            try:
                answers = await self._written([wish.what for wish in wishes])
            except BaseException as error:
                for wish in wishes:
                    if not wish.answer.done():
                        wish.answer.set_exception(error)
                        wish.answer.exception()  # told to whoever still waits
                if not isinstance(error, DatabaseError):
                    raise
                continue
            for wish, answer in zip(wishes, answers, strict=True):
                if not wish.answer.done():
                    wish.answer.set_result(answer)

    async def _written(self, wishes: Sequence[Change | tuple[str, int]]) -> list[object]:
        began = time.monotonic()
        while True:
            try:
                return await run_sync(self._transacted, wishes)
            except (sa_exc.OperationalError, sa_exc.InterfaceError) as error:
                if time.monotonic() - began > OUTAGE_PATIENCE:
                    raise DatabaseError(f"the database is away: {error.orig}") from None
                log.warning("the database is away, it is tried again: %s", error.orig)
                await asyncio.sleep(OUTAGE_PAUSE)

    def _transacted(self, wishes: Sequence[Change | tuple[str, int]]) -> list[object]:
        try:
            return self._transact(wishes)
        except (sa_exc.OperationalError, sa_exc.InterfaceError):
            raise
        except sa_exc.SQLAlchemyError:
            with told_apart():
                raise

    def _transact(self, wishes: Sequence[Change | tuple[str, int]]) -> list[object]:
        answers: list[object] = [None] * len(wishes)
        with self.engine.begin() as connection:
            for batch in sorted({_batch(wish) for wish in wishes}):  # in one order, so that nobody waits in a circle
                purse = _Purse(connection, batch)
                claims: list[int] = []
                for index, wish in enumerate(wishes):
                    if _batch(wish) != batch:
                        continue
                    if isinstance(wish, Change):
                        answers[index] = self._apply(connection, wish, purse)
                    else:
                        claims.append(index)
                if claims:
                    numbers = [wish[1] for index in claims if not isinstance(wish := wishes[index], Change)]
                    grants = self._grant(connection, batch, numbers, purse)
                    for index, number in zip(claims, numbers, strict=True):
                        answers[index] = grants[number]
                purse.close(connection)
        return answers

    def _grant(self, connection: sa.Connection, batch: str, numbers: list[int], purse: _Purse) -> dict[int, Grant]:
        if purse.stopped:
            return dict.fromkeys(numbers, "stopped")
        wanted = (items.c.batch == batch) & items.c.number.in_(numbers)
        free = sorted(connection.scalars(sa.select(items.c.number).where(wanted, items.c.state == "new")))
        granted = free[: purse.allows(len(free))]
        grants: dict[int, Grant] = dict.fromkeys(numbers, "taken")
        grants.update(dict.fromkeys(free[len(granted) :], "unaffordable"))
        if granted:
            connection.execute(
                sa.update(items)
                .where(items.c.batch == batch, items.c.number.in_(granted), items.c.state == "new")
                .values(state="sent", sent=time.time(), owner=self.process)
            )
            purse.sending += len(granted)
            grants.update(dict.fromkeys(granted, "granted"))
        elif free and not purse.sending:
            purse.stopped = OUT_OF_MONEY
            grants.update(dict.fromkeys(free, "stopped"))
        return grants

    def _apply(self, connection: sa.Connection, change: Change, purse: _Purse) -> bool:
        if change.recovered and _is_known(connection, change):
            return False
        row = connection.execute(
            sa.select(items.c.state, items.c.cost, items.c.owner).where(
                items.c.batch == change.batch, items.c.number == change.number
            )
        ).one()
        mine = row.owner == self.process
        # Who was told the run by FLORA itself knows better than whoever gave it up.
        if change.state == "started":
            fits = row.state == "sent" or (row.state == "unknown" and not change.recovered)
        elif change.state == "new":
            fits = row.state == "sent" and mine
        else:
            fits = row.state == "started" or (row.state == "sent" and mine)
        if not fits:
            return False
        values: dict[str, object] = {"state": change.state}
        cost = change.cost if change.cost is not None else row.cost
        if change.state == "started":
            values |= {"run_id": change.run_id, "recovered": change.recovered, "cost": cost}
            values |= {"ending": None, "place": None}
        elif change.state != "new":
            purse.endings += 1
            values |= {"place": purse.endings, "ending": change.ending, "cost": cost}
        connection.execute(
            sa.update(items).where(items.c.batch == change.batch, items.c.number == change.number).values(values)
        )
        if row.state == "sent":
            purse.sending -= 1
        if change.state == "unknown" and row.cost is None:
            purse.suppose()
        purse.spend(cost or 0.0, before=row.cost or 0.0)
        return True

    async def settled(self) -> None:
        """Wait until all that was to be written is."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    # -- what happens rarely

    async def unended(self, batch: str, round: int, first: int, last: int) -> list[Item]:
        """Give the items of a chunk that have no end yet; *round* is that of their present key."""
        chosen = (items.c.batch == batch, items.c.number.between(first, last - 1), items.c.round == round)
        query = sa.select(*_ITEM).where(*chosen, items.c.state.not_in(ENDED)).order_by(items.c.number)
        return await self.ask(lambda connection: [Item(*row) for row in connection.execute(query)])

    async def item(self, batch: str, number: int) -> Item:
        """Give an item as it stands."""
        query = sa.select(*_ITEM).where(items.c.batch == batch, items.c.number == number)
        return await self.ask(lambda connection: Item(*connection.execute(query).one()))

    async def page(self, batch: str, first: int, limit: int) -> list[Item]:
        """Give the items from a number on, whatever their state, in order."""
        chosen = (items.c.batch == batch, items.c.number >= first)
        query = sa.select(*_ITEM).where(*chosen).order_by(items.c.number).limit(limit)
        return await self.ask(lambda connection: [Item(*row) for row in connection.execute(query)])

    async def ended(self, batch: str, after: int, limit: int) -> list[Item]:
        """Give the items that have ended after a place, in the order in which they did."""
        chosen = (items.c.batch == batch, items.c.place > after)
        query = sa.select(*_ITEM).where(*chosen).order_by(items.c.place).limit(limit)
        return await self.ask(lambda connection: [Item(*row) for row in connection.execute(query)])

    async def saved(self, batch: str, number: int, files: str) -> None:
        """Write down where an item's outputs were saved."""
        change = sa.update(items).where(items.c.batch == batch, items.c.number == number).values(files=files)
        await self.ask(lambda connection: connection.execute(change))

    async def known_runs(self, since: float) -> list[str]:
        """Give the runs that were ordered from here since a time, for whichever batch."""
        query = sa.select(items.c.run_id).where(items.c.run_id.is_not(None), items.c.sent >= since)
        return await self.ask(lambda connection: list(connection.scalars(query)))

    async def take_over(self, item: Item) -> bool:
        """Take an item from a process that is gone; false if somebody else has."""

        def taken(connection: sa.Connection) -> bool:
            one = (items.c.batch == item.batch, items.c.number == item.number, items.c.state == "sent")
            held = sa.select(items.c.owner).where(*one).with_for_update()
            if connection.scalar(held) != item.owner:
                return False
            connection.execute(sa.update(items).where(*one).values(owner=self.process))
            return True

        return await self.ask(taken)

    async def is_stopped(self, batch: str) -> bool:
        """Say whether nothing more is to be ordered."""
        query = sa.select(batches.c.stopped).where(batches.c.batch == batch)
        return await self.ask(lambda connection: connection.scalar(query)) is not None

    async def stop(self, batch: str, reason: str | None) -> None:
        """Have nothing more ordered, on any machine; ``None``: have it ordered again."""
        change = sa.update(batches).where(batches.c.batch == batch).values(stopped=reason)
        await self.ask(lambda connection: connection.execute(change))


class _Purse:
    """What a batch may still cost, while its row is held."""

    def __init__(self, connection: sa.Connection, batch: str) -> None:
        self._batch = batches.c.batch == batch
        row = connection.execute(sa.select(batches).where(self._batch).with_for_update()).one()
        self.stopped: str | None = row.stopped
        self.sending: int = row.sending
        self.endings: int = row.endings
        self._max_cost: float | None = row.max_cost
        self._spent: float = row.spent
        self._dearest: float | None = row.dearest
        self._before = self._values()

    def _values(self) -> dict[str, object]:
        return {
            "stopped": self.stopped,
            "sending": self.sending,
            "endings": self.endings,
            "spent": self._spent,
            "dearest": self._dearest,
        }

    def allows(self, wanted: int) -> int:
        return _deciding.affordable(
            wanted, spent=self._spent, dearest=self._dearest, sending=self.sending, max_cost=self._max_cost
        )

    def spend(self, cost: float, *, before: float) -> None:
        self._spent += cost - before
        if cost > before:
            self._dearest = max(self._dearest or 0.0, cost)

    def suppose(self) -> None:
        self._spent += self._dearest or 0.0

    def close(self, connection: sa.Connection) -> None:
        values = self._values()
        if values != self._before:
            connection.execute(sa.update(batches).where(self._batch).values(values))


def _batch(wish: Change | tuple[str, int]) -> str:
    return wish.batch if isinstance(wish, Change) else wish[0]


def _is_known(connection: sa.Connection, change: Change) -> bool:
    """Say whether the run that was found is another order's."""
    found = sa.select(items.c.number).where(items.c.run_id == change.run_id)
    return connection.execute(found).first() is not None
