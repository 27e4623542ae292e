"""DBOS: which process sees to which orders, and who takes over. The one workflow, its queues, and adoption."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any, TypeAlias, cast

import anyio
import sqlalchemy as sa
from anyio.to_thread import run_sync
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, EnqueueOptions, WorkflowSerializationFormat
from dbos import error as dbos_error
from msgspec import Struct

from flora_async import errors
from flora_async.durable._tables import told_apart

log = logging.getLogger("flora_async")

WORKFLOW = "flora_async.chunk"
APPLICATION = "flora-async"
VERSION = "flora-async-1"
"""Of the workflow: processes that share it take each other's work, whatever else was deployed."""
UNDER_WAY = ("ENQUEUED", "DELAYED", "PENDING")
"""What DBOS says of a workflow that has not ended."""
QUEUE_LOOKS = 0.1
"""Seconds between looks into a queue."""
ATTACHED_LOOKS = 0.5
FAULT_PAUSE = 5.0
"""Seconds until a chunk with which something went wrong on this side is tried again."""
ENDING_SECONDS = 5.0
"""For how long DBOS may take to write down what has ended."""
THREADS = 16
CLOSED = "these batches are not open: use `async with Batches(...)`"

Fulfil: TypeAlias = Callable[[str, int, int, int], Coroutine[Any, Any, None]]
"""Sees to the orders of a batch, in a round, from one number to before another."""


class Attached(Struct, frozen=True, eq=False):
    """Who sees to orders in this process, and on which event loop."""

    loop: asyncio.AbstractEventLoop
    fulfil: Fulfil
    chunks: dict[asyncio.Task[None], tuple[str, str]]
    """What is seen to at present: the names of its workflow and of its queue."""
    workflows: set[asyncio.Task[Any]]
    """DBOS's own tasks, on whichever loop, which have to tell it when a chunk has ended."""

    async def see_to(self, workflow_id: str, batch: str, round: int, first: int, last: int) -> None:
        """See to a chunk, in a task that can be cancelled: DBOS is then not told that it has ended."""
        task = self.loop.create_task(self.fulfil(batch, round, first, last))
        self.chunks[task] = workflow_id, queue_of(batch)
        try:
            await task
        finally:
            self.chunks.pop(task, None)


_attached: list[Attached] = []
_unattended: set[asyncio.Task[Any]] = set()
"""DBOS's tasks that wait for somebody to see to their chunks."""


@DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None, serialization_type=WorkflowSerializationFormat.PORTABLE)
async def _chunk(batch: str, round: int, first: int, last: int) -> int:
    """See to some orders; where they stand is in the database, so that doing it again does nothing twice.

    No error leaves it: DBOS would take it for the end of the chunk, and its orders would be left.
    """
    while True:
        try:
            await DBOS.run_step_async({"name": "fulfil"}, _fulfil, batch, round, first, last)
        except dbos_error.DBOSException as error:  # as it shuts down: the chunk is given back, or taken up at its start
            log.warning("orders %d to %d of %s are left for later: %r", first, last - 1, batch, error)
            raise asyncio.CancelledError from error
        except Exception as error:
            log.exception("orders %d to %d of %s are tried again", first, last - 1, batch, exc_info=error)
            await asyncio.sleep(FAULT_PAUSE)
        else:
            return last - first


async def _fulfil(batch: str, round: int, first: int, last: int) -> None:
    workflow = cast("asyncio.Task[Any]", asyncio.current_task())
    _unattended.add(workflow)
    try:
        while not _attached:  # noqa: ASYNC110 - a service whose client is not open yet, maybe on another loop
            await asyncio.sleep(ATTACHED_LOOKS)
    finally:
        _unattended.discard(workflow)
    here = _attached[0]
    work = here.see_to(DBOS.workflow_id or "", batch, round, first, last)
    here.workflows.add(workflow)
    workflow.add_done_callback(here.workflows.discard)
    if asyncio.get_running_loop() is here.loop:
        await work
    else:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, here.loop))


def queue_of(batch: str) -> str:
    """Name a batch's queue."""
    return f"flora:{batch}"


class Engine:
    """DBOS in this process: the service's own where it runs one, else one of ours, for as long as it is entered."""

    def __init__(self, database: sa.Engine, url: str, executor: str, only: str | None) -> None:
        self._database = database
        self._url = url
        self._executor = executor
        self._only = only
        self._ours = False
        self._client: DBOSClient | None = None
        self._here: Attached | None = None

    async def start(self, fulfil: Fulfil) -> None:
        """Take part: from here on, chunks are brought to *fulfil*."""
        if _attached:
            raise errors.ConfigurationError("this process has its batches open already: close them first")
        self._here = Attached(asyncio.get_running_loop(), fulfil, {}, set())
        with told_apart():
            if not await _is_launched():
                await run_sync(self._prepare)
                # On the loop's own thread, so that DBOS runs its workflows there; what takes long is done.
                DBOS.launch()
            _attached.append(self._here)
            self._client = await run_sync(self._connect)

    def _prepare(self) -> None:
        logging.getLogger("dbos").addHandler(logging.NullHandler())  # else it writes to stderr itself
        DBOS(
            config={
                "name": APPLICATION,
                "system_database_url": self._url,
                "system_database_engine": self._database,
                "executor_id": self._executor,
                "application_version": VERSION,
                "serializer": DBOSPortableJSONSerializer(),
                "log_level": "ERROR",
                "enable_otlp": False,
                "use_listen_notify": False,
                "notification_listener_polling_interval_sec": QUEUE_LOOKS,
                "max_executor_threads": THREADS,
            }
        )
        self._ours = True
        DBOS.migrate(self._url)
        if self._only is not None:
            self._make_queue(queue_of(self._only))
            DBOS.listen_queues([queue_of(self._only)])

    def _make_queue(self, queue: str) -> None:
        # Before the launch: afterwards DBOS looks for new ones once a second only.
        client = self._connect()
        client.register_queue(queue, worker_concurrency=1, polling_interval_sec=QUEUE_LOOKS, on_conflict="never_update")
        client.destroy()

    def _connect(self) -> DBOSClient:
        return DBOSClient(
            system_database_engine=self._database,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION if self._ours else None,
        )

    async def open_queue(self, batch: str, *, chunks: int, rate: float | None, chunk: int) -> None:
        """Make a batch's queue: at most so many *chunks* at once in a process, and a *rate* for all of them."""
        with told_apart():
            await DBOS.register_queue_async(
                queue_of(batch),
                worker_concurrency=chunks,
                limiter=None if rate is None else {"limit": 1, "period": chunk / rate},
                polling_interval_sec=QUEUE_LOOKS,
                on_conflict="always_update",
            )

    async def close_queue(self, batch: str) -> None:
        """Take away the queue of a batch that has ended: nobody need look into it."""
        with told_apart():
            await DBOS.delete_queue_async(queue_of(batch))

    def enqueue(self, connection: sa.Connection, batch: str, round: int, chunks: Iterable[tuple[int, int]]) -> None:
        """Put chunks into their batch's queue, as part of a transaction, unless they are there or are seen to."""
        if self._client is None:
            raise errors.ClientClosedError(CLOSED)
        there = self._client.list_workflows(
            workflow_id_prefix=f"flora:{batch}:{round}:", load_input=False, load_output=False
        )
        over = {workflow.workflow_id: workflow.status not in UNDER_WAY for workflow in there}
        for first, last in chunks:
            # DBOS begins nothing again that has ended, by an error or by somebody's hand: that gets a new name.
            names = (f"flora:{batch}:{round}:{first}" + f":{again}" * (again > 0) for again in count())
            name = next(name for name in names if not over.get(name))
            options: EnqueueOptions = {
                "workflow_name": WORKFLOW,
                "queue_name": queue_of(batch),
                "workflow_id": name,
                "app_version": DBOS.application_version,
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            }
            self._client.enqueue_in_transaction(connection, options, batch, round, first, last)

    def holders(self, batch: str) -> set[str]:
        """Name the executors that have begun chunks of a batch."""
        if self._client is None:
            raise errors.ClientClosedError(CLOSED)
        begun = self._client.list_workflows(
            queue_name=queue_of(batch), status="PENDING", load_input=False, load_output=False
        )
        return {workflow.executor_id for workflow in begun if workflow.executor_id is not None}

    async def stop(self) -> None:
        """Take part no longer, and give back what was begun here."""
        begun: dict[str, list[str]] = {}
        if self._here is not None and self._here in _attached:
            _attached.remove(self._here)
            for workflow_id, queue in self._here.chunks.values():
                begun.setdefault(queue, []).append(workflow_id)
            for task in list(self._here.chunks):
                task.cancel()
            with anyio.move_on_after(ENDING_SECONDS):
                while self._here.workflows:  # noqa: ASYNC110 - of another loop
                    await asyncio.sleep(0.01)
        with told_apart():
            if self._ours:
                # Where there is more to do it takes up nothing for a second first: what begins as it ends, complains.
                pause = 1 if begun or _unattended else 0
                await run_sync(partial(DBOS.destroy, workflow_completion_timeout_sec=pause))
                for task in list(_unattended):  # which would wait for whoever opens batches next
                    task.cancel()
                # DBOS has made its own threads the loop's, and they are gone.
                asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
                self._ours = False
                if self._client is not None:  # what it took from the queue as it ended, too
                    begun = await run_sync(_begun_by, self._client, self._executor)
            if self._client is not None:
                await run_sync(_requeue, self._client, begun)
                self._client.destroy()
                self._client = None


async def _is_launched() -> bool:
    try:
        await DBOS.list_application_versions_async()
    except dbos_error.DBOSException:
        return False
    return True


def _begun_by(client: DBOSClient, executor: str) -> dict[str, list[str]]:
    """List the chunks that an executor has begun, by queue."""
    begun: dict[str, list[str]] = {}
    for workflow in client.list_workflows(
        executor_id=executor, status="PENDING", name=WORKFLOW, load_input=False, load_output=False
    ):
        if workflow.queue_name is not None:
            begun.setdefault(workflow.queue_name, []).append(workflow.workflow_id)
    return begun


def _requeue(client: DBOSClient, begun: Mapping[str, list[str]]) -> None:
    for queue, workflow_ids in begun.items():
        client.resume_workflows(workflow_ids, queue_name=queue)


def adopt(database: sa.Engine, executor: str) -> int:
    """Put what an executor that is gone had begun back into its queues; say how many chunks that are."""
    with told_apart():
        client = DBOSClient(system_database_engine=database, serializer=DBOSPortableJSONSerializer())
        try:
            begun = _begun_by(client, executor)
            _requeue(client, begun)
            return sum(map(len, begun.values()))
        finally:
            client.destroy()
