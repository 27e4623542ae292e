"""Arguments of the command: FLORA's own commands and flags by their names, and additional ones."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, get_args

from flora_async import CheckParams, GenerationType, __version__, errors
from flora_async.cli import output
from flora_async.cli.demo import PROMPTS
from flora_async.cli.output import FORMATS
from flora_async.export._checkpoint import not_replaceable

SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")
ON_EXISTING = ("error", "skip", "replace")
SANDBOX_PORT = 8765
"""The sandbox's own port; the examples listen on others."""
STATUSES = ("pending", "running", "completed", "failed")

KEY_PAGE = "https://app.flora.ai/projects?openSettings=true&initialTab=apiKeys"
"""FLORA's page for API keys. Source: developer.flora.ai, Authentication."""

_KEY = re.compile(r"sk_\w+")


class UsageError(ValueError):
    """The arguments are invalid. No request was sent."""


class _Parser(argparse.ArgumentParser):
    """A parser whose help ends with examples, and whose errors show no API key."""

    def format_help(self) -> str:
        """Return the help text."""
        lines = [f"flora-async {line}" for line in EXAMPLES.get(" ".join(self.prog.split()[1:]), ())]
        if lines:
            self.formatter_class = _HelpFormatter
            self.epilog = "\n  ".join(["examples:" if len(lines) > 1 else "example:", *lines])
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        # An API key in the wrong place is not shown.
        if message.startswith("unrecognized arguments:"):
            words = message.partition(":")[2].split()
            names = [word.partition("=")[0] for word in words if word.startswith("-")]
            message = f"unrecognized arguments{': ' if names else ''}{' '.join(names)}"
        super().error(_KEY.sub("sk_***", message))


class _HelpFormatter(argparse.HelpFormatter):
    """Wraps the description, and leaves the examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example") else super()._fill_text(text, width, indent)


_ORDER = "--type image --prompt 'a ceramic mug' --workspace-id ws_demo --project-id prj_demo"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": ("models --format table", "generations create --help"),
    "generations": ("generations list --limit 20",),
    "generations create": (
        f"generations create {_ORDER}",
        f"generations create {_ORDER} --params seed=7 --download out",
        f"generations create {_ORDER} --params image_url=@photo.png",
    ),
    "generations retrieve": ("generations retrieve --run-id run_abc123",),
    "generations list": ("generations list --all --status completed --format csv > runs.csv",),
    "wait": ("wait run_abc123 --download out --timeout 900",),
    "watch": ("watch run_abc123 --download out",),
    "assets": ("assets upload photo.png --workspace-id ws_demo",),
    "assets upload": ("assets upload photo.png --workspace-id ws_demo",),
    "assets list": ("assets list --workspace-id ws_demo --format table",),
    "assets retrieve": ("assets retrieve --asset-id asset_abc123",),
    "models": ("models --type image --format table",),
    "models check": ("models check orders.csv", "models check --model sandbox-image --params seed=7"),
    "models stubs": ("models stubs > flora_models.py",),
    "workspaces": ("workspaces --format table",),
    "projects": ("projects --workspace-id ws_demo --format csv",),
    "projects create": ("projects create --name Mugs --workspace-id ws_demo",),
    "techniques": ("techniques list",),
    "techniques list": ("techniques list --query poster",),
    "techniques retrieve": ("techniques retrieve --technique-id tech_poster",),
    "techniques run": (
        "techniques run --technique-id tech_poster --inputs subject='a mug' --workspace-id ws_demo --wait",
    ),
    "actions": ("actions list",),
    "actions list": ("actions list",),
    "actions retrieve": ("actions retrieve --action-id flip-image",),
    "actions run": (
        "actions run --action-id flip-image --input image=@photo.png --workspace-id ws_demo --project-id prj_demo",
    ),
    "canvas": ("canvas run node_abc123 --workspace-id ws_demo --project-id prj_demo",),
    "canvas run": ("canvas run node_abc123 --workspace-id ws_demo --project-id prj_demo --wait",),
    "feedback": ("feedback --kind bug --summary 'a summary' --detail 'what happened'",),
    "batch": ("batch run orders.csv --out results.jsonl",),
    "batch run": ("batch run orders.csv --out results.jsonl --max-cost 20",),
    "batch resume": ("batch resume --batch orders-1a2b3c",),
    "batch retry-failed": ("batch retry-failed --batch orders-1a2b3c",),
    "batch status": ("batch status --batch orders-1a2b3c",),
    "batch worker": ("batch worker --database postgresql://flora@db/flora",),
    "batch list": ("batch list",),
    "batch cancel": ("batch cancel --batch orders-1a2b3c",),
    "batch skip": ("batch skip --batch orders-1a2b3c 3 4",),
    "batch delete": ("batch delete --batch orders-1a2b3c",),
    "batch reassign": ("batch reassign --executor host-1",),
    "costs": ("costs --since 30d --by day --draw",),
    "gallery": ("gallery --out failed.html --status failed --open",),
    "sandbox": ("sandbox --port 0", "sandbox -- pytest tests"),
    "demo": ("demo 'a heron at dawn'",),
    "doctor": ("doctor",),
    "completion": ("completion fish > ~/.config/fish/completions/flora-async.fish",),
}
"""The examples at the end of each command's help."""


FIRST_STEPS = f"""\
FLORA at the terminal: images, video, audio and text.

Without a key, on a local FLORA server (pip install 'flora-async[demo]'):
  flora-async demo                     generate one of each
  flora-async sandbox -- COMMAND       run a program against it

With a key, from {KEY_PAGE}
  export FLORA_API_KEY=sk_live_...
  flora-async doctor                   check the key, the network and the clock
  flora-async projects                 list the ids that an order names
  flora-async generations create --type image --prompt 'a mug' \\
      --workspace-id ws_... --project-id prj_... --download out

All commands: flora-async --help
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command, those of the process by default.

    The words after ``sandbox --`` belong to another program; argparse does not parse them.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if not typed:
        output.write(FIRST_STEPS)
        raise SystemExit(0)
    program: list[str] | None = None
    if typed[:1] == ["sandbox"] and "--" in typed:
        typed, program = typed[: typed.index("--")], typed[typed.index("--") + 1 :]
    options = build_parser().parse_args(typed)
    options.program = program
    if program == []:
        raise UsageError("sandbox --: there is no command after --")
    _check_numbers(options)
    return options


# -- values


_NUMBERS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "port": ("a whole number from 0 to 65535", lambda number: 0 <= number <= 65535),
    "time_scale": ("a number above 0", lambda number: number > 0),
    "timeout": ("a number of seconds above 0", lambda number: number > 0),
    "concurrency": ("at least 1", lambda number: number >= 1),
    "rate": ("a number above 0", lambda number: number > 0),
    "run_timeout": ("a number of seconds above 0", lambda number: number > 0),
    "retry_failed": ("a whole number from 0 on", lambda number: number >= 0),
    "max_cost": ("an amount of USD from 0 on", lambda number: number >= 0),
}
"""The valid ranges of numeric options."""


def _check_numbers(options: argparse.Namespace) -> None:
    for name, (wanted, fits) in _NUMBERS.items():
        number = getattr(options, name, None)
        if number is not None and not (math.isfinite(number) and fits(number)):
            raise UsageError(f"--{name.replace('_', '-')} must be {wanted}, not {number}")


def check_folder(flag: str, folder: Path | None) -> None:
    """Check that files can be saved to a folder, before an order is sent.

    Raises:
        UsageError: a part of its path is a file or is not writable.
    """
    if folder is None:
        return
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise UsageError(f"{flag} {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {folder}: no file can be written to {there}")


def open_stdin() -> BinaryIO:
    """Return standard input as bytes.

    Raises:
        UsageError: it is closed, or no stream of bytes.
    """
    stream: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise UsageError("- is standard input, which is closed. Name a file")
    return stream


def check_output_file(flag: str, path: Path, *inputs: Path | None) -> None:
    """Check that an output file is no folder, link or device, and none of the command's *inputs*.

    Raises:
        UsageError: the path is one of these, or its folder does not exist or cannot be written to.
    """
    for read in inputs:
        if read is None:
            continue
        if path.absolute() == read.absolute() or (path.exists() and read.exists() and path.samefile(read)):
            raise UsageError(f"{flag} {path}: it would replace {read}, which this command reads. Choose another file")
    if reason := not_replaceable(path):
        raise UsageError(f"{flag} must be a file of its own: {path} is {reason}")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}")
    if not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"{flag} {path}: the folder {path.parent} cannot be written to")


def use_flag_names(error: Exception, options: argparse.Namespace | None) -> str:
    """Return an error's message, with the command's flags in place of Python arguments."""
    message = str(error)
    if options is None or not isinstance(error, errors.ConfigurationError):
        return message
    message = message.replace("api_key=...", "--api-key KEY").replace("base_url (or FLORA_BASE_URL)", "FLORA_BASE_URL")
    message = message.replace("api_key or FLORA_API_KEY", "--api-key or FLORA_API_KEY")
    message = message.replace(". allow_insecure=True permits it", "")
    message = message.replace(". port 0 is", ". --port 0 is")
    for name in sorted(vars(options).keys() - _POSITIONALS, key=len, reverse=True):
        # A plain word ("type", "limit") is an argument only where the message begins with it.
        where = rf"(?<![\w-]){name}(?![\w(])" if "_" in name else rf"^{name}(?= must | is |\[| cannot )"
        message = re.sub(where, f"--{name.replace('_', '-')}", message)
    return message


_POSITIONALS = {"index", "node", "indexes", "numbers", "command", "operation", "program", "run", "orders", "shell"}


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command."""
    whole = _Parser(
        prog="flora-async",
        description="FLORA from the terminal. Exit codes: 0 done, 1 a run failed, 2 usage, settings or a file, 3 FLORA "
        "or the connection, 4 a wait timed out, 130 interrupted, 141 the reader of a pipe has gone, 143 terminated.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_generations(
        commands.add_parser(
            "generations",
            help="FLORA's operations: create, retrieve, list",
            allow_abbrev=False,
        )
    )
    _add_resources(commands)
    _add_kinds(commands)
    _add_assets(commands.add_parser("assets", help="upload files, and list the uploaded ones", allow_abbrev=False))
    _add_batch(
        commands.add_parser(
            "batch",
            help="orders by the thousand, that outlive this process",
            allow_abbrev=False,
        )
    )
    _add_costs(
        commands.add_parser(
            "costs",
            help="sum up the costs of the history",
            parents=[_api_key_parser()],
            allow_abbrev=False,
        )
    )
    _add_gallery(
        commands.add_parser(
            "gallery",
            help="write the history as a page to look at, and print its path",
            parents=[_api_key_parser()],
            allow_abbrev=False,
        )
    )
    _add_sandbox(
        commands.add_parser(
            "sandbox",
            help="serve a local FLORA for tests and demos, or run a program against one",
            usage="%(prog)s [-h] [--port PORT] [--api-key KEY] [--time-scale X] [-- COMMAND ...]",
            description="Serves a local FLORA until it is interrupted, and prints the variables that lead a program to "
            "it. With -- COMMAND, it runs the command with these variables set, and returns its exit code.",
            allow_abbrev=False,
        )
    )
    demo = commands.add_parser(
        "demo",
        help="generate images, videos, sounds and texts on a sandbox, without a key",
        allow_abbrev=False,
    )
    demo.add_argument("prompt", nargs="*", default=list(PROMPTS), metavar="PROMPT", help="what to generate")
    commands.add_parser(
        "doctor",
        help="check the key, the network, the clock and the versions",
        description="Checks the versions, the key, the address, the certificate and the clock, and sends a free read. "
        "It prints a line for each, with a fix, and never the key. Exit codes: 0 all is well, 2 key or address, "
        "3 the connection or FLORA.",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )
    completion = commands.add_parser(
        "completion",
        help="print the completion script of a shell",
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=SHELLS)
    return whole


def _add_costs(costs: argparse.ArgumentParser) -> None:
    costs.add_argument("--by", choices=("model", "project", "day"), default="model", help="the rows (default: model)")
    costs.add_argument(
        "--since", metavar="TIME", help="runs from then on: 24h, 30d, 4w, or a date like 2026-11-25 (default: all)"
    )
    costs.add_argument("--project-id", metavar="prj_...")
    costs.add_argument("--workspace-id", metavar="ws_...")
    costs.add_argument("--draw", action="store_true", help="draw a bar for each row")
    costs.add_argument("--format", choices=FORMATS, default="table", help="how to print it (default: table)")


def _add_sandbox(sandbox: argparse.ArgumentParser) -> None:
    sandbox.add_argument(
        "--port",
        type=int,
        help=f"0: any free one (default: {SANDBOX_PORT}; with a COMMAND, any free one)",
    )
    sandbox.add_argument("--api-key", metavar="KEY", help="accept this key only (default: any)")
    sandbox.add_argument(
        "--time-scale", type=float, default=1.0, metavar="X", help="how long runs take: 0.1 is ten times faster"
    )


def _add_generations(generations: argparse.ArgumentParser) -> None:
    operations = generations.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
    create = operations.add_parser(
        "create",
        help="start a generation",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )
    create.add_argument("--project-id", required=True, metavar="prj_...")
    create.add_argument("--prompt", required=True)
    create.add_argument("--type", required=True, choices=get_args(GenerationType))
    create.add_argument("--workspace-id", required=True, metavar="ws_...")
    create.add_argument("--model", help="a model's endpoint id; `flora-async models` lists them")
    create.add_argument(
        "--params",
        action="append",
        metavar="JSON|NAME=VALUE",
        help="the model's parameters: a JSON object, or NAME=VALUE as often as needed (VALUE is JSON, @FILE or text)",
    )
    _add_check_params(create)
    create.add_argument("--callback-url", metavar="URL", help="where FLORA sends a webhook when the run has ended")
    create.add_argument("--dry-run", action="store_true", help="check the order, estimate its cost, and order nothing")
    create.add_argument(
        "--quote",
        action="store_true",
        help="with --dry-run: request FLORA's quote, by a parameter that FLORA does not document",
    )
    _add_run_options(create)
    retrieve = operations.add_parser(
        "retrieve",
        help="get a run",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )
    retrieve.add_argument("--run-id", required=True, metavar="run_...")
    history = operations.add_parser(
        "list",
        help="list the history, one page",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )
    history.add_argument("--cursor", help="where the page begins: another page's next_cursor")
    history.add_argument("--limit", type=int, metavar="N", help="how many on a page, 1 to 100")
    _add_filters(history)
    history.add_argument("--all", action="store_true", help="all pages from there on")
    _add_format(history)


def _add_resources(commands: argparse._SubParsersAction[_Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    for name, words, patience in (
        ("wait", "wait for runs, and print each as it ends", "600 for each run"),
        ("watch", "print each change of runs", "no limit"),
    ):
        waits = commands.add_parser(
            name,
            help=words,
            parents=[_api_key_parser()],
            allow_abbrev=False,
        )
        waits.add_argument("run", nargs="+", metavar="RUN", help="a run's id")
        _add_wait_options(waits, patience)
    for name in ("models", "workspaces", "projects"):
        listing = commands.add_parser(
            name,
            help=f"list the {name}",
            parents=[_api_key_parser()],
            allow_abbrev=False,
        )
        if name == "models":
            listing.add_argument("--type", choices=get_args(GenerationType))
            _add_model_operations(listing)
        if name == "projects":
            listing.add_argument("--workspace-id", metavar="ws_...", help="of this workspace only")
        _add_format(listing)
        if name == "projects":
            operations = listing.add_subparsers(dest="operation", metavar="[create]", parser_class=_Parser)
            create = operations.add_parser(
                "create", help="create a project", parents=[_api_key_parser()], allow_abbrev=False
            )
            create.add_argument("--name", required=True)
            create.add_argument("--workspace-id", required=True, metavar="ws_...")


def _add_kinds(commands: argparse._SubParsersAction[_Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    from flora_async.cli import kinds

    adders: dict[str, tuple[str, Callable[[kinds.AddParser], None]]] = {
        "techniques": ("saved workflows: list, retrieve, run", partial(_add_runs, kinds.add_techniques)),
        "actions": ("fixed transformations: list, retrieve, run", partial(_add_runs, kinds.add_actions)),
        "canvas": ("start the nodes of a project", kinds.add_canvas),
    }
    for name, (words, add_operations) in adders.items():
        command = commands.add_parser(name, help=words, allow_abbrev=False)
        operations = command.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
        add_operations(partial(operations.add_parser, parents=[_api_key_parser()], allow_abbrev=False))
    kinds.add_feedback(
        commands.add_parser("feedback", help="send a message to FLORA", parents=[_api_key_parser()], allow_abbrev=False)
    )


def _add_runs(
    add_operations: Callable[[Callable[..., argparse.ArgumentParser], Callable[[argparse.ArgumentParser], None]], None],
    add: Callable[..., argparse.ArgumentParser],
) -> None:
    add_operations(add, _add_run_options)


def _add_run_options(run: argparse.ArgumentParser) -> None:
    run.add_argument("--idempotency-key", metavar="KEY", help="order once only under this key (default: a new one)")
    run.add_argument("--wait", action="store_true", help="wait for the run, and print it as it ended")
    _add_wait_options(run, "600")


def _add_assets(assets: argparse.ArgumentParser) -> None:
    operations = assets.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
    upload = operations.add_parser("upload", help="upload files", parents=[_api_key_parser()], allow_abbrev=False)
    upload.add_argument("file", nargs="+", metavar="FILE", help="a path, an https URL, or - for standard input")
    upload.add_argument("--workspace-id", required=True, metavar="ws_...")
    upload.add_argument("--project-id", metavar="prj_...", help="put it on the canvas of this project")
    upload.add_argument("--folder", help="folder of the library")
    upload.add_argument("--content-type", metavar="TYPE", help="like image/png (default: by its bytes or its name)")
    upload.add_argument("--file-name", metavar="NAME", help="its name (default: that of the file)")
    upload.add_argument("--timeout", type=float, metavar="S", help="seconds for one file (default: by its size)")
    listing = operations.add_parser("list", help="list assets", parents=[_api_key_parser()], allow_abbrev=False)
    listing.add_argument("--query", metavar="TEXT", help="search for this")
    listing.add_argument("--limit", type=int, metavar="N", help="so many at most, the newest (default: 100)")
    listing.add_argument("--project-id", metavar="prj_...")
    listing.add_argument("--workspace-id", metavar="ws_...")
    _add_format(listing)
    retrieve = operations.add_parser("retrieve", help="get an asset", parents=[_api_key_parser()], allow_abbrev=False)
    retrieve.add_argument("--asset-id", required=True, metavar="asset_...")


def _add_model_operations(models: argparse.ArgumentParser) -> None:
    operations = models.add_subparsers(dest="operation", metavar="OPERATION", parser_class=_Parser)
    check = operations.add_parser(
        "check",
        help="compare orders, or parameters, with what the models declare; nothing is ordered",
        description="Prints the errors of the orders in a file, or of --params for a --model. Nothing is ordered. Exit "
        "codes: 0 no errors, 1 some.",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )
    check.add_argument("orders", nargs="?", type=Path, metavar="FILE", help="orders: JSON Lines or CSV, - is stdin")
    check.add_argument("--model", help="check --params for this model, in place of a file")
    check.add_argument("--params", action="append", metavar="JSON|NAME=VALUE", help="as for `generations create`")
    check.add_argument("--type", choices=get_args(GenerationType), help="type of the orders that name none")
    operations.add_parser(
        "stubs",
        help="print Python types of all models' parameters, for editors and type checkers",
        parents=[_api_key_parser()],
        allow_abbrev=False,
    )


def _add_check_params(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--check-params",
        choices=get_args(CheckParams),
        help="an order that its model does not accept: send it, warn and send it, or refuse it (default: refuse)",
    )


def _add_batch(batch: argparse.ArgumentParser) -> None:
    operations = batch.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
    where = _Parser(add_help=False)
    where.add_argument(
        "--database",
        default="sqlite:///flora-batch.db",
        metavar="URL",
        help="sqlite:///FILE, or postgresql://USER@HOST/NAME for many machines (default: sqlite:///flora-batch.db)",
    )
    common = _Parser(add_help=False, parents=[where])
    common.add_argument("--batch", metavar="ID", help="which batch, if there are several")
    works = _Parser(add_help=False)
    works.add_argument("--executor", metavar="ID", help="name of this process, shown to people (default: host)")
    works.add_argument("--concurrency", type=int, default=1000, metavar="N", help="orders in flight (default: 1000)")
    writes = _Parser(add_help=False)
    writes.add_argument("--max-cost", type=float, metavar="USD", help="stop before an order that could cost more")
    writes.add_argument("--download", type=Path, metavar="DIR", help="save the outputs there")
    writes.add_argument("--as-finished", action="store_true", help="write the results in completion order")
    run = operations.add_parser(
        "run",
        help="order all lines of a file",
        epilog="example: flora-async batch run products.csv --out results.jsonl --type image --prompt 'a {name}'",
        parents=[_api_key_parser(), common, works, writes],
        allow_abbrev=False,
    )
    run.add_argument(
        "orders",
        type=Path,
        help="JSON Lines, or CSV with a header; - is standard input; {column} in a prompt is filled in",
    )
    run.add_argument("--out", required=True, metavar="FILE", help="file for the results, one line each; - is stdout")
    _add_check_params(run)
    run.add_argument("--rate", type=float, metavar="N", help="orders a second, on all machines together")
    run.add_argument(
        "--run-timeout",
        type=float,
        metavar="S",
        help="seconds until a run is not waited for any longer (default: none)",
    )
    run.add_argument(
        "--retry-failed",
        type=int,
        default=0,
        metavar="N",
        help="order a failed run again, at most N times, if FLORA's code allows it (default: 0)",
    )
    run.add_argument("--dry-run", action="store_true", help="check the lines, estimate the cost, and order nothing")
    for name in ("type", "prompt", "model", "workspace-id", "project-id"):
        kinds = get_args(GenerationType) if name == "type" else None
        run.add_argument(f"--{name}", choices=kinds, help="for lines without it")
    resume = operations.add_parser(
        "resume",
        help="continue where it stands",
        parents=[_api_key_parser(), common, works, writes],
        allow_abbrev=False,
    )
    retry = operations.add_parser(
        "retry-failed",
        help="order again what failed",
        parents=[_api_key_parser(), common, works, writes],
        allow_abbrev=False,
    )
    for again in (resume, retry):
        again.add_argument("--out", metavar="FILE", help="file for the results (default: as before)")
    operations.add_parser("list", help="list all batches", parents=[where], allow_abbrev=False)
    operations.add_parser("status", help="print where it stands", parents=[common], allow_abbrev=False)
    operations.add_parser("cancel", help="send no more orders", parents=[common], allow_abbrev=False)
    skip = operations.add_parser("skip", help="skip orders that were not sent", parents=[common], allow_abbrev=False)
    skip.add_argument("number", type=int, nargs="+", metavar="N", help="the order's index in the results")
    operations.add_parser("delete", help="delete it from the database", parents=[common], allow_abbrev=False)
    operations.add_parser(
        "worker",
        help="work on it from this machine too",
        parents=[_api_key_parser(), common, works],
        allow_abbrev=False,
    )
    reassign = operations.add_parser(
        "reassign",
        aliases=["adopt"],
        help="release the orders of a lost machine now, not after 15 s",
        parents=[common],
        allow_abbrev=False,
    )
    reassign.add_argument("--executor", required=True, metavar="ID", help="name of the lost process")


def hide_password(url: str) -> str:
    """Return a database URL without its password."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _add_gallery(gallery: argparse.ArgumentParser) -> None:
    gallery.add_argument(
        "--out", type=Path, default=Path("gallery.html"), metavar="FILE", help="where to (default: gallery.html)"
    )
    gallery.add_argument("--open", action="store_true", help="open it in a browser")
    gallery.add_argument("--limit", type=int, metavar="N", help="so many runs at most, the newest (default: all)")
    _add_filters(gallery)
    gallery.add_argument(
        "--local",
        type=Path,
        metavar="DIR",
        help="show outputs that were saved in DIR from there, not from FLORA",
    )
    gallery.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="prompts of the runs, which FLORA's history lacks: JSON objects, one a line, with run_id and prompt",
    )


def _api_key_parser() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--api-key", metavar="KEY", help="the API key (default: FLORA_API_KEY)")
    return common


def _add_wait_options(command: argparse.ArgumentParser, patience: str) -> None:
    command.add_argument("--download", type=Path, metavar="DIR", help="wait, and save the outputs there")
    command.add_argument(
        "--on-existing",
        choices=ON_EXISTING,
        default="skip",
        help="of an output whose file exists: skip it, fail with an error, or replace the file (default: skip)",
    )
    command.add_argument("--timeout", type=float, metavar="S", help=f"seconds to wait (default: {patience})")


def _add_filters(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project-id", metavar="prj_...")
    command.add_argument("--status", choices=STATUSES)
    command.add_argument("--workspace-id", metavar="ws_...")


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="json", help="how to print it (default: json)")


def parse_params(given: Sequence[str] | None, flag: str = "--params") -> dict[str, Any] | None:
    """Parse ``--params``, or a similar *flag*: JSON objects or single parameters; the last value of a name counts."""
    if given is None:
        return None
    params: dict[str, Any] = {}
    for text in given:
        if text.lstrip().startswith("{"):
            try:
                params |= json.loads(text)
            except ValueError as error:
                raise UsageError(f"{flag} is no JSON object: {error}") from None
            continue
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag} takes a JSON object or NAME=VALUE, not {text[:80]!r}")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = _parse_text(value)
    return params


def _parse_text(value: str) -> str | Path:
    """Return the path of ``@FILE``, and any other text as it is; ``@@`` stands for an ``@`` at its beginning."""
    if not value.startswith("@"):
        return value
    if value.startswith("@@"):
        return value[1:]
    path = Path(value[1:])
    if not path.is_file():
        raise UsageError(f"--params: there is no file {value[1:80]!r}; @@ stands for an @ at the beginning of a text")
    return path
