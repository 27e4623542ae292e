"""What the commands do. Each returns its exit code, or raises what :func:`flora_async.cli.main` knows."""

from __future__ import annotations

import argparse
import asyncio
import signal
import webbrowser
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flora_async import Flora, Generation, Order, Run, errors
from flora_async.cli import demo, gallery, parsing, showing

if TYPE_CHECKING:
    from flora_async.sandbox import Sandbox

Command: TypeAlias = Callable[[argparse.Namespace, "Session"], Coroutine[Any, Any, int]]

PATIENCE = 600.0
"""Seconds."""


class Session:
    """What a command has begun, so that it can be told whatever ends it."""

    def __init__(self) -> None:
        self.running: dict[str, None] = {}
        self.ordering: dict[str, None] = {}
        self.notes: list[str] = []

    def flora(self, options: argparse.Namespace) -> Flora:
        """Open a client whose orders are noted before they go out."""
        return Flora(options.api_key, on_create=self._note)

    def _note(self, key: str, _order: Order) -> None:
        self.ordering[key] = None

    def started(self, run_id: str) -> None:
        """Note that a run was accepted."""
        self.ordering.clear()
        self.running[run_id] = None

    def ended(self, run_id: str) -> None:
        """Note that it needs nobody any more."""
        self.running.pop(run_id, None)

    def doubtful(self) -> list[str]:
        """Say what may have been ordered, and paid for, before anybody could be told."""
        return [f"an order under idempotency key {key} may have been accepted" for key in self.ordering]

    def going_on(self) -> list[str]:
        """Say what goes on without us."""
        if self.notes or not self.running:
            return self.notes
        return [f"still at FLORA, wait for it again: flora-async wait {' '.join(self.running)}"]


async def _generations(options: argparse.Namespace, session: Session) -> int:
    operations: dict[str, Command] = {"create": _create, "retrieve": _retrieve, "list": _list}
    return await operations[options.operation](options, session)


async def _create(options: argparse.Namespace, session: Session) -> int:
    params = parsing.read_params(options.params)
    async with session.flora(options) as flora:
        started = await flora.generations.create(
            type=options.type,
            prompt=options.prompt,
            workspace_id=options.workspace_id,
            project_id=options.project_id,
            model=options.model,
            params=params,
            callback_url=options.callback_url,
            idempotency_key=options.idempotency_key,
        )
        session.started(started.run_id)
        if not (options.wait or options.download):
            showing.show(showing.plain(started, estimated_seconds=started.estimated_seconds))
            return 0
        with showing.progress() as move:
            move(started.run_id, "ordered", 0)
            run = await flora.wait_for_run(started, timeout=_patience(options), on_update=showing.moving(move))
        session.ended(run.run_id)
        await _save(flora, run, options.download)
        showing.show(showing.plain(run))
    return 0


def _patience(options: argparse.Namespace) -> float:
    return PATIENCE if options.timeout is None else options.timeout


async def _save(flora: Flora, run: Run, folder: Path | None) -> None:
    if folder is not None:
        for path in await flora.download(run, folder):
            showing.tell(f"saved {path}")


async def _retrieve(options: argparse.Namespace, session: Session) -> int:
    async with session.flora(options) as flora:
        showing.show(showing.plain(await flora.generations.retrieve(options.run_id)))
    return 0


async def _list(options: argparse.Namespace, session: Session) -> int:
    async with session.flora(options) as flora:
        listing = flora.generations.list(
            cursor=options.cursor,
            limit=100 if options.all and options.limit is None else options.limit,
            project_id=options.project_id,
            status=options.status,
            workspace_id=options.workspace_id,
        )
        async with listing:
            pages = listing.pages()
            if options.format == "json" and not options.all:
                page = await anext(pages)
                showing.show(
                    {"generations": [showing.plain(one) for one in page.generations], "meta": showing.plain(page.meta)}
                )
                return 0
            rows = showing.Rows(options.format, showing.RUN_COLUMNS) if options.format in ("csv", "table") else None
            if options.all:
                async for generation in listing:
                    _show_item(generation, rows)
            else:
                for generation in (await anext(pages)).generations:
                    _show_item(generation, rows)
            if rows is not None:
                rows.end()
    return 0


def _show_item(generation: Generation, rows: showing.Rows | None) -> None:
    if rows is None:
        showing.show_line(showing.plain(generation))
    else:
        rows.add(showing.row_of(generation))


async def _wait(options: argparse.Namespace, session: Session) -> int:
    """Print each run as it ends; what goes wrong with one does not touch the others."""
    for run_id in options.run:
        session.started(run_id)
    codes: set[int] = set()
    async with session.flora(options) as flora:

        async def one(run_id: str) -> None:
            try:
                run = await flora.wait_for_run(run_id, timeout=_patience(options), on_update=on_update)
                await _save(flora, run, options.download)
            except errors.RunFailedError as error:
                run = error.run
                codes.add(1)
            except errors.ConfigurationError:
                raise
            except errors.FloraError as error:
                showing.tell(f"{run_id}: {error}")
                codes.add(4 if isinstance(error, errors.RunTimeoutError) else 3)
                return
            session.ended(run_id)
            (showing.show if len(options.run) == 1 else showing.show_line)(showing.plain(run))

        with showing.progress() as move:
            on_update = showing.moving(move)
            await asyncio.gather(*map(one, dict.fromkeys(options.run)))
    if 4 in codes:
        showing.tell(*session.going_on())
    return next((code for code in (3, 4, 1) if code in codes), 0)


async def _watch(options: argparse.Namespace, session: Session) -> int:
    failed = False
    for run_id in options.run:
        session.started(run_id)
    async with session.flora(options) as flora:
        async for seen in flora.watch_run(dict.fromkeys(options.run), timeout=options.timeout):
            showing.show_line(showing.plain(seen))
            if seen.finished:
                session.ended(seen.run_id)
                failed = failed or not seen.succeeded
                if seen.succeeded:
                    await _save(flora, seen, options.download)
    return 1 if failed else 0


async def _models(options: argparse.Namespace, session: Session) -> int:
    async with session.flora(options) as flora:
        showing.show_list("models", await flora.models.list(type=options.type), options.format)
    return 0


async def _workspaces(options: argparse.Namespace, session: Session) -> int:
    async with session.flora(options) as flora:
        showing.show_list("workspaces", await flora.workspaces.list(), options.format)
    return 0


async def _projects(options: argparse.Namespace, session: Session) -> int:
    async with session.flora(options) as flora:
        listed = await flora.projects.list(workspace_id=options.workspace_id)
        showing.show_list("projects", listed, options.format)
    return 0


async def _gallery(options: argparse.Namespace, session: Session) -> int:
    prompts = {} if options.prompts is None else gallery.read_prompts(options.prompts)
    async with session.flora(options) as flora:
        listing = flora.generations.list(
            limit=100,
            project_id=options.project_id,
            status=options.status,
            workspace_id=options.workspace_id,
        )
        path = await gallery.write(listing, options.out, limit=options.limit, prompts=prompts)
    print(path)
    if options.open and not webbrowser.open(path.as_uri()):
        showing.tell("no browser was found to open it with")
    return 0


def _sandbox(options: argparse.Namespace, _session: Session) -> Coroutine[Any, Any, int]:
    # Here, since aiohttp is a quarter of a second of imports, which no event loop should stand still for.
    from flora_async.sandbox import Sandbox

    any_key = options.api_key is None
    return _serve(Sandbox(port=options.port, api_key=options.api_key, any_key=any_key, time_scale=options.time_scale))


async def _serve(sandbox: Sandbox) -> int:
    async with sandbox:
        print(f"export FLORA_BASE_URL={sandbox.base_url}\nexport FLORA_API_KEY={sandbox.api_key}")
        print(f"export FLORA_WEBHOOK_SECRET={sandbox.webhook_secret}", flush=True)
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        await stopped.wait()
    return 0


async def _demo(options: argparse.Namespace, _session: Session) -> int:
    await demo.show(options.prompt)
    return 0


async def _batch(options: argparse.Namespace, session: Session) -> int:
    # Here, since DBOS is half a second of imports.
    from flora_async.cli import batch

    return await batch.run(options, session)


async def _completion(options: argparse.Namespace, _session: Session) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise showing.missing("cli", "shell completion needs shtab") from None
    print(shtab.complete(parsing.parser(), shell=options.shell))
    return 0


COMMANDS: dict[str, Command] = {
    "generations": _generations,
    "wait": _wait,
    "watch": _watch,
    "batch": _batch,
    "models": _models,
    "workspaces": _workspaces,
    "projects": _projects,
    "gallery": _gallery,
    "sandbox": _sandbox,
    "demo": _demo,
    "completion": _completion,
}
