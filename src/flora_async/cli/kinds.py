"""``techniques``, ``actions``, ``canvas`` and ``feedback``: their arguments and commands."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from flora_async import Action, ActionOrder, FeedbackKind, Technique, TechniqueOrder, errors
from flora_async.cli import arguments, output
from flora_async.cli.started import report_started, wait_timeout

if TYPE_CHECKING:
    from flora_async.cli.commands import CommandContext

AddParser = Callable[..., argparse.ArgumentParser]


def add_techniques(add: AddParser, add_run_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the operations of ``techniques``."""
    listing = add("list", help="list the techniques")
    listing.add_argument("--query", metavar="TEXT", help="search for this")
    listing.add_argument("--workspace-id", metavar="ws_...")
    retrieve = add("retrieve", help="get a technique, with its inputs")
    retrieve.add_argument("--technique-id", required=True, metavar="tech_...", help="its id or its slug")
    run = add("run", help="start a technique")
    run.add_argument("--technique-id", required=True, metavar="tech_...")
    run.add_argument(
        "--inputs",
        action="append",
        required=True,
        metavar="JSON|NAME=VALUE",
        help="its inputs: a JSON object, or NAME=VALUE as often as needed (VALUE is JSON, @FILE or text)",
    )
    run.add_argument("--workspace-id", required=True, metavar="ws_...", help="the workspace that pays")
    run.add_argument("--callback-url", metavar="URL", help="where FLORA sends a webhook when the run has ended")
    add_run_options(run)


def add_actions(add: AddParser, add_run_options: Callable[[argparse.ArgumentParser], None]) -> None:
    """Add the operations of ``actions``."""
    add("list", help="list the actions")
    add("retrieve", help="get an action, with its parameters").add_argument("--action-id", required=True)
    run = add("run", help="start an action")
    run.add_argument("--action-id", required=True)
    run.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="JSON|TYPE=VALUE",
        help="an input, as often as needed: a JSON object, or like image=URL, image=@FILE, text=WORDS",
    )
    run.add_argument("--params", action="append", metavar="JSON|NAME=VALUE", help="the action's parameters")
    run.add_argument("--workspace-id", required=True, metavar="ws_...")
    run.add_argument("--project-id", required=True, metavar="prj_...")
    add_run_options(run)


def add_canvas(add: AddParser) -> None:
    """Add the operations of ``canvas``."""
    run = add("run", help="start 1 to 50 nodes, and print a run or a reason for each")
    run.add_argument("node", nargs="+", metavar="NODE", help="a node's id")
    run.add_argument("--workspace-id", required=True, metavar="ws_...")
    run.add_argument("--project-id", required=True, metavar="prj_...")
    run.add_argument("--wait", action="store_true", help="wait for the started runs, and print each as it ends")
    run.add_argument("--timeout", type=float, metavar="S", help="seconds to wait (default: 600)")


def add_feedback(feedback: argparse.ArgumentParser) -> None:
    """Add the arguments of ``feedback``."""
    feedback.add_argument("--kind", required=True, choices=get_args(FeedbackKind))
    feedback.add_argument("--summary", required=True)
    feedback.add_argument("--detail", required=True)
    feedback.add_argument("--workspace-id", metavar="ws_...")
    feedback.add_argument("--project-id", metavar="prj_...")
    feedback.add_argument("--run-id", metavar="run_...")


async def techniques(options: argparse.Namespace, context: CommandContext) -> int:
    """Run ``techniques OPERATION``."""
    if options.operation == "run":
        order = TechniqueOrder(
            technique_id=options.technique_id,
            inputs=arguments.parse_params(options.inputs, "--inputs") or {},
            workspace_id=options.workspace_id,
            callback_url=options.callback_url,
        )
        return await _run(order, options, context)
    async with context.open_client(options) as flora:
        if options.operation == "list":
            listed = await flora.techniques.list(query=options.query, workspace_id=options.workspace_id)
            output.print_list("techniques", listed, Technique, "json")
        else:
            output.print_json(output.to_dict(await flora.techniques.retrieve(options.technique_id)))
    return 0


async def actions(options: argparse.Namespace, context: CommandContext) -> int:
    """Run ``actions OPERATION``."""
    if options.operation == "run":
        order = ActionOrder(
            action_id=options.action_id,
            inputs=_parse_inputs(options.input),
            workspace_id=options.workspace_id,
            project_id=options.project_id,
            params=arguments.parse_params(options.params),
        )
        return await _run(order, options, context)
    async with context.open_client(options) as flora:
        if options.operation == "list":
            output.print_list("actions", await flora.actions.list(), Action, "json")
        else:
            output.print_json(output.to_dict(await flora.actions.retrieve(options.action_id)))
    return 0


async def _run(order: TechniqueOrder | ActionOrder, options: argparse.Namespace, context: CommandContext) -> int:
    arguments.check_folder("--download", options.download)
    async with context.open_client(options) as flora:
        started = await flora.start_run(order, idempotency_key=options.idempotency_key)
        return await report_started(flora, started, options, context)


def _parse_inputs(given: Sequence[str]) -> list[dict[str, Any]]:
    inputs: list[dict[str, Any]] = []
    for text in given:
        fields = arguments.parse_params([text], "--input") or {}
        if "type" in fields:
            inputs.append(fields)
            continue
        inputs += [{"type": kind, "text" if kind == "text" else "url": value} for kind, value in fields.items()]
    return inputs


async def canvas(options: argparse.Namespace, context: CommandContext) -> int:
    """Run ``canvas run``: 1 if a node was not started, or a run failed."""
    async with context.open_client(options) as flora:
        found = await flora.canvas.run_nodes(
            options.node, workspace_id=options.workspace_id, project_id=options.project_id
        )
        runs = [each.run for each in found if each.run is not None]
        for run in runs:
            context.record_created(run.run_id)
        output.print_json({"runs": [msgspec.to_builtins(each) for each in found]})
        code = 0 if len(runs) == len(found) else 1
        if not options.wait:
            return code
        async for outcome in flora.as_completed(runs, timeout=wait_timeout(options)):
            if isinstance(outcome.error, errors.RunTimeoutError):
                output.print_status(str(outcome.error))
                code = 4
                continue
            context.record_finished(outcome.run_id)
            output.print_json_line(outcome.to_dict())
            code = code or int(outcome.error is not None)
    return code


async def feedback(options: argparse.Namespace, context: CommandContext) -> int:
    """Run ``feedback``."""
    async with context.open_client(options) as flora:
        receipt = await flora.feedback.record(
            kind=options.kind,
            summary=options.summary,
            detail=options.detail,
            workspace_id=options.workspace_id,
            project_id=options.project_id,
            run_id=options.run_id,
        )
        output.print_json(output.to_dict(receipt))
    return 0
