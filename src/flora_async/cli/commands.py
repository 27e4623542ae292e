"""The commands. Each returns its exit code, or raises an error that :func:`flora_async.cli.main` handles."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import webbrowser
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from flora_async import AnyOrder, Flora, Model, Order, Project, Run, Workspace, errors
from flora_async.cli import arguments, assets, costs, demo, gallery, kinds, model_checks, output
from flora_async.cli.started import report_started, save_outputs, wait_timeout
from flora_async.export._tables import COLUMNS

if TYPE_CHECKING:
    from flora_async.sandbox import Sandbox

Command: TypeAlias = Callable[[argparse.Namespace, "CommandContext"], Coroutine[Any, Any, int]]

EXIT_SETTINGS, EXIT_UNREACHABLE = 2, 3
"""Exit codes of `doctor`: settings that cannot be used, and FLORA that cannot be reached."""
EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE, EXIT_SIGNAL_BASE = 127, 126, 128
"""Exit codes of a shell: program not found, program not executable, and the base for a program ended by a signal."""


class CommandContext:
    """The orders and runs of a command, reported when the command ends early."""

    def __init__(self) -> None:
        self.running: dict[str, None] = {}
        self.ordering: dict[str, None] = {}
        self.notes: list[str] = []
        self._created: list[str] = []

    def open_client(self, options: argparse.Namespace) -> Flora:
        """Open a client that records each order before it is sent."""
        return Flora(options.api_key, on_create=self._record_order)

    def _record_order(self, key: str, _order: AnyOrder) -> None:
        self.ordering[key] = None

    def record_created(self, run_id: str) -> None:
        """Record a run that this command ordered."""
        self.ordering.clear()
        self._created.append(run_id)
        self.running[run_id] = None

    def record_awaited(self, run_ids: Iterable[str]) -> None:
        """Record the runs that this command waits for."""
        self.running.update(dict.fromkeys(run_ids))

    def record_finished(self, run_id: str) -> None:
        """Record that a run has finished."""
        self.running.pop(run_id, None)

    def uncertain_orders(self) -> list[str]:
        """Return a message for each order that may have been accepted and billed."""
        return [f"an order under idempotency key {key} may have been accepted" for key in self.ordering]

    def unfinished_runs(self) -> list[str]:
        """Return messages about the runs that continue."""
        if self.notes or not self.running:
            return self.notes
        return [f"still at FLORA, wait for it again: flora-async wait {' '.join(self.running)}"]

    def unprinted_runs(self) -> list[str]:
        """Return messages about ordered runs, for a command whose output could not be written."""
        return [f"ordered, and not printed: flora-async wait {' '.join(self._created)}"] if self._created else []


def handle_signal(number: signal.Signals, call: Callable[[], object]) -> bool:
    """Call a function on a signal. Return ``False`` on Windows and outside the main thread, where loops handle none."""
    try:
        asyncio.get_running_loop().add_signal_handler(number, call)
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


async def _generations(options: argparse.Namespace, context: CommandContext) -> int:
    operations: dict[str, Command] = {"create": _create, "retrieve": _retrieve, "list": _list}
    return await operations[options.operation](options, context)


async def _create(options: argparse.Namespace, context: CommandContext) -> int:
    params = arguments.parse_params(options.params)
    arguments.check_folder("--download", options.download)
    async with context.open_client(options) as flora:
        order = Order(
            type=options.type,
            prompt=options.prompt,
            workspace_id=options.workspace_id,
            project_id=options.project_id,
            model=options.model,
            params=params,
            callback_url=options.callback_url,
        )
        if options.dry_run:
            mode = options.check_params or flora.check_params
            await flora.models.check_order(flora.generations.validate(order), mode)
            estimate = await flora.estimate(order, quote=options.quote)
            output.print_json(costs.estimate_to_dict(estimate))
            return 0
        started = await flora.generations.create(
            order, idempotency_key=options.idempotency_key, check_params=options.check_params
        )
        return await report_started(flora, started, options, context)


async def _retrieve(options: argparse.Namespace, context: CommandContext) -> int:
    async with context.open_client(options) as flora:
        output.print_json(output.run_to_dict(await flora.generations.retrieve(options.run_id)))
    return 0


async def _list(options: argparse.Namespace, context: CommandContext) -> int:
    printed = _RunPrinter(options.format)
    code = 0
    meta: dict[str, object] = {"next_cursor": None}
    async with context.open_client(options) as flora:
        listing = flora.generations.list(
            cursor=options.cursor,
            limit=100 if options.all and options.limit is None else options.limit,
            project_id=options.project_id,
            status=options.status,
            workspace_id=options.workspace_id,
        )
        async with listing:
            if options.all:
                try:
                    async for generation in listing:
                        printed.add(generation)
                except errors.ResponseDecodeError as error:
                    if not (error.field or "").startswith("$.generations["):
                        raise
                    output.print_status(f"skipped an item that cannot be parsed: {error}")
                    code = 3
            else:
                page = await anext(listing.pages())
                meta = output.to_dict(page.meta)
                for generation in page.generations:
                    printed.add(generation)
                for broken in page.broken:
                    output.print_status(f"skipped an item that cannot be parsed: {broken.reason} at {broken.field}")
                    code = 3
            printed.end(meta)
    return code


class _RunPrinter:
    """Prints the history in one of the formats while it is read."""

    def __init__(self, form: str) -> None:
        self._document = output.Document("generations") if form == "json" else None
        self._form = form
        columns = {"csv": COLUMNS, "table": output.TABLE_COLUMNS}
        self._rows = output.Rows(form, columns[form]) if form in columns else None

    def add(self, run: Run) -> None:
        """Print a run."""
        if self._document is not None:
            self._document.add(output.to_dict(run))
        elif self._rows is not None:
            self._rows.add(output.to_row(run, self._form))
        else:
            output.print_json_line(output.to_dict(run))

    def end(self, meta: dict[str, object]) -> None:
        """Print the end of the document; *meta* is the record of the last page."""
        if self._document is not None:
            self._document.end(meta=meta)
        elif self._rows is not None:
            self._rows.end()


async def _wait(options: argparse.Namespace, context: CommandContext) -> int:
    """Print each run when it finishes. The failure of one does not affect the others."""
    arguments.check_folder("--download", options.download)
    context.record_awaited(options.run)
    codes: set[int] = set()
    show = output.print_json if len(options.run) == 1 else output.print_json_line
    async with context.open_client(options) as flora:

        async def one(run_id: str) -> None:
            try:
                run = await flora.wait_for_run(run_id, timeout=wait_timeout(options), on_update=on_update)
            except errors.RunFailedError as error:
                run = error.run
                codes.add(1)
            except errors.ConfigurationError:
                context.running.clear()  # one of them is no id of a run: no wait was begun
                raise
            except errors.FloraError as error:
                output.print_status(f"{run_id}: {error}")
                codes.add(4 if isinstance(error, errors.RunTimeoutError) else 3)
                return
            context.record_finished(run_id)
            try:
                if run.succeeded:
                    codes.add(await _save_or_report(flora, run, options))
            finally:
                show(output.run_to_dict(run))

        with output.show_progress() as report:
            on_update = output.progress_callback(report)
            waits = [asyncio.ensure_future(one(run_id)) for run_id in dict.fromkeys(options.run)]
            try:
                await asyncio.gather(*waits)
            finally:  # a wait that failed, or whose run cannot be printed, ends the others without a message
                for wait in waits:
                    wait.cancel()
    if 4 in codes:
        output.print_status(*context.unfinished_runs())
    return next((code for code in (3, 4, 1) if code in codes), 0)


async def _save_or_report(flora: Flora, run: Run, options: argparse.Namespace) -> int:
    """Save the outputs of one of several runs. Return the exit code, and report an error on stderr."""
    try:
        await save_outputs(flora, run, options)
    except errors.FloraError as error:
        output.print_status(f"{run.run_id}: {error}")
        return 3
    return 0


async def _watch(options: argparse.Namespace, context: CommandContext) -> int:
    arguments.check_folder("--download", options.download)
    codes = {0}
    async with context.open_client(options) as flora:
        watch = flora.watch_run(dict.fromkeys(options.run), timeout=options.timeout)
        context.record_awaited(options.run)
        async for seen in watch:
            output.print_json_line(output.run_to_dict(seen))
            if seen.finished:
                context.record_finished(seen.run_id)
                codes.add(await _save_or_report(flora, seen, options) if seen.succeeded else 1)
    return max(codes)


async def _models(options: argparse.Namespace, context: CommandContext) -> int:
    async with context.open_client(options) as flora:
        if options.operation == "check":
            return await model_checks.check(options, flora)
        if options.operation == "stubs":
            return await model_checks.write_stubs(flora)
        output.print_list("models", await flora.models.list(type=options.type), Model, options.format)
    return 0


async def _workspaces(options: argparse.Namespace, context: CommandContext) -> int:
    async with context.open_client(options) as flora:
        output.print_list("workspaces", await flora.workspaces.list(), Workspace, options.format)
    return 0


async def _assets(options: argparse.Namespace, context: CommandContext) -> int:
    async with context.open_client(options) as flora:
        await assets.run(flora, options)
    return 0


async def _projects(options: argparse.Namespace, context: CommandContext) -> int:
    async with context.open_client(options) as flora:
        if options.operation == "create":
            created = await flora.projects.create(name=options.name, workspace_id=options.workspace_id)
            output.print_json(output.to_dict(created))
            return 0
        listed = await flora.projects.list(workspace_id=options.workspace_id)
        output.print_list("projects", listed, Project, options.format)
    return 0


async def _gallery(options: argparse.Namespace, context: CommandContext) -> int:
    arguments.check_output_file("--out", options.out, options.prompts)
    prompts = {} if options.prompts is None else gallery.read_prompts(options.prompts)
    async with context.open_client(options) as flora:
        listing = flora.generations.list(
            limit=100,
            project_id=options.project_id,
            status=options.status,
            workspace_id=options.workspace_id,
        )
        path = await gallery.write(listing, options.out, limit=options.limit, prompts=prompts, local=options.local)
    output.write(f"{path}\n", flush=True)
    if options.open and not webbrowser.open(path.as_uri()):
        output.print_status("cannot open the page: no browser was found")
    return 0


def _sandbox(options: argparse.Namespace, _context: CommandContext) -> Coroutine[Any, Any, int]:
    # Imported here, outside the event loop: aiohttp takes a quarter of a second to import.
    from flora_async.sandbox import Sandbox

    port = options.port if options.port is not None else 0 if options.program else arguments.SANDBOX_PORT
    any_key = options.api_key is None
    sandbox = Sandbox(port=port, api_key=options.api_key, any_key=any_key, time_scale=options.time_scale)
    return _serve(sandbox) if options.program is None else _run_program(sandbox, options.program)


def _environment_of(sandbox: Sandbox) -> dict[str, str]:
    return {
        "FLORA_BASE_URL": sandbox.base_url,
        "FLORA_API_KEY": sandbox.api_key,
        "FLORA_WEBHOOK_SECRET": sandbox.webhook_secret,
    }


async def _serve(sandbox: Sandbox) -> int:
    async with sandbox:
        output.write(
            "".join(f"export {name}={value}\n" for name, value in _environment_of(sandbox).items()), flush=True
        )
        output.print_status(
            "a local FLORA for tests and demos: nothing is billed, nothing is kept; Ctrl-C ends it",
            "to use it, set the variables above in another terminal and start a program there;",
            "or start one with them: flora-async sandbox -- COMMAND",
            f"its runs: {sandbox.base_url.removesuffix('api/v1')}",
        )
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            handle_signal(number, stopped.set)
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C where the loop handles no signals
            await stopped.wait()
    return 0


async def _run_program(sandbox: Sandbox, program: Sequence[str]) -> int:
    """Run a program against a sandbox. Return its exit code as a shell does."""
    async with sandbox:
        try:
            process = await asyncio.create_subprocess_exec(*program, env={**os.environ, **_environment_of(sandbox)})
        except OSError as error:
            output.print_status(f"cannot run {program[0]}: {error.strerror or error}")
            return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
        # The terminal sends Ctrl-C to the program too, and the program decides how to handle it.
        handle_signal(signal.SIGINT, lambda: None)
        handle_signal(signal.SIGTERM, lambda: _terminate(process))
        try:
            code = await process.wait()
        finally:
            _terminate(process)
    return EXIT_SIGNAL_BASE - code if code < 0 else code


def _terminate(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()


async def _demo(options: argparse.Namespace, _context: CommandContext) -> int:
    await demo.show(options.prompt)
    return 0


async def _batch(options: argparse.Namespace, context: CommandContext) -> int:
    # Imported here: SQLAlchemy takes long to import.
    from flora_async.cli import batch

    return await batch.run(options, context)


async def _costs(options: argparse.Namespace, context: CommandContext) -> int:
    since = costs.parse_since(options.since)
    async with context.open_client(options) as flora:
        table = await flora.costs(
            since=since, by=options.by, project_id=options.project_id, workspace_id=options.workspace_id
        )
    costs.print_table(table, options)
    return 3 if table.broken else 0


async def _completion(options: argparse.Namespace, _context: CommandContext) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise output.missing_extra("cli", "shell completion needs shtab") from None
    output.write(f"{shtab.complete(arguments.build_parser(), shell=options.shell)}\n")
    return 0


async def _doctor(options: argparse.Namespace, _context: CommandContext) -> int:
    from flora_async.cli import doctor  # Only this command needs it.

    findings = await doctor.run_checks(options.api_key)
    output.write("".join(f"{finding}\n" for finding in findings))
    failed = {finding.subject for finding in findings if finding.state == "FAIL"}
    return EXIT_SETTINGS if failed & {"key", "address", "packages"} else EXIT_UNREACHABLE if failed else 0


COMMANDS: dict[str, Command] = {
    "generations": _generations,
    "wait": _wait,
    "watch": _watch,
    "batch": _batch,
    "models": _models,
    "workspaces": _workspaces,
    "projects": _projects,
    "assets": _assets,
    "techniques": kinds.techniques,
    "actions": kinds.actions,
    "canvas": kinds.canvas,
    "feedback": kinds.feedback,
    "costs": _costs,
    "gallery": _gallery,
    "sandbox": _sandbox,
    "demo": _demo,
    "doctor": _doctor,
    "completion": _completion,
}
