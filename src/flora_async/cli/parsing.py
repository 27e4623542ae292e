"""What may be typed: FLORA's own commands and flags by their names, and ours beside them."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from flora_async import GenerationType, __version__
from flora_async.cli.demo import PROMPTS
from flora_async.cli.showing import FORMATS

SHELLS = ("bash", "zsh", "tcsh")
STATUSES = ("pending", "running", "completed", "failed")

_KEY = re.compile(r"sk_\w+")


class UsageError(ValueError):
    """What was typed makes no sense."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # A key that was typed in the wrong place is not shown.
        if message.startswith("unrecognized arguments:"):
            words = message.partition(":")[2].split()
            names = [word.partition("=")[0] for word in words if word.startswith("-")]
            message = f"unrecognized arguments{': ' if names else ''}{' '.join(names)}"
        super().error(_KEY.sub("sk_***", message))


def parser() -> argparse.ArgumentParser:
    """Give the parser of the whole command."""
    whole = _Parser(
        prog="flora-async",
        description="FLORA from the terminal. Exit codes: 0 done, 1 a run failed, 2 usage or settings, 3 FLORA or the "
        "connection, 4 too late, 130 interrupted.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _generations(commands.add_parser("generations", help="FLORA's operations: create, retrieve, list"))
    _flora(commands)
    _batch(commands.add_parser("batch", help="orders by the thousand, that outlive this process"))
    written = "write the history as a page to look at, and print its path"
    _gallery(commands.add_parser("gallery", help=written, parents=[_key()], allow_abbrev=False))
    sandbox = commands.add_parser("sandbox", help="serve a small FLORA on this machine until interrupted")
    sandbox.add_argument("--port", type=int, default=8080, help="0: any free one (default: 8080)")
    sandbox.add_argument("--api-key", help="take this key only (default: any)")
    sandbox.add_argument("--time-scale", type=float, default=1.0, help="how long runs take: 0.1 is ten times faster")
    demo = commands.add_parser("demo", help="generate images, videos, sounds and texts on a sandbox, without a key")
    demo.add_argument("prompt", nargs="*", default=list(PROMPTS), metavar="PROMPT", help="what to generate")
    completion = commands.add_parser("completion", help="print what a shell needs to complete this command")
    completion.add_argument("shell", choices=SHELLS)
    return whole


def _generations(generations: argparse.ArgumentParser) -> None:
    operations = generations.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
    create = operations.add_parser("create", help="start a generation", parents=[_key()], allow_abbrev=False)
    create.add_argument("--project-id", required=True, metavar="prj_...")
    create.add_argument("--prompt", required=True)
    create.add_argument("--type", required=True, choices=get_args(GenerationType))
    create.add_argument("--workspace-id", required=True, metavar="ws_...")
    create.add_argument("--model", help="a model's endpoint id; `flora-async models` lists them")
    create.add_argument(
        "--params",
        action="append",
        metavar="JSON|NAME=VALUE",
        help="the model's parameters: a JSON object, or NAME=VALUE as often as needed (VALUE is JSON, else text)",
    )
    create.add_argument("--callback-url", metavar="URL", help="where FLORA calls back when the run has ended")
    create.add_argument("--idempotency-key", metavar="KEY", help="order once only under this key (default: a new one)")
    create.add_argument("--wait", action="store_true", help="wait for the run, and print it as it ended")
    _waiting(create, "600")
    retrieve = operations.add_parser("retrieve", help="get a run", parents=[_key()], allow_abbrev=False)
    retrieve.add_argument("--run-id", required=True, metavar="run_...")
    history = operations.add_parser("list", help="list the history, one page", parents=[_key()], allow_abbrev=False)
    history.add_argument("--cursor", help="where the page begins: another page's next_cursor")
    history.add_argument("--limit", type=int, help="how many on a page, 1 to 100")
    _selection(history)
    history.add_argument("--all", action="store_true", help="all pages from there on")
    _format(history)


def _flora(commands: argparse._SubParsersAction[_Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    for name, words, patience in (
        ("wait", "wait for runs, and print each as it ends", "600 for each run"),
        ("watch", "print each change of runs", "no limit"),
    ):
        waits = commands.add_parser(name, help=words, parents=[_key()], allow_abbrev=False)
        waits.add_argument("run", nargs="+", metavar="RUN", help="a run's id")
        _waiting(waits, patience)
    models = commands.add_parser("models", help="list the models", parents=[_key()], allow_abbrev=False)
    models.add_argument("--type", choices=get_args(GenerationType))
    workspaces = commands.add_parser("workspaces", help="list the workspaces", parents=[_key()], allow_abbrev=False)
    projects = commands.add_parser("projects", help="list the projects", parents=[_key()], allow_abbrev=False)
    projects.add_argument("--workspace-id", metavar="ws_...", help="of this workspace only")
    for listing in (models, workspaces, projects):
        _format(listing)


def _batch(batch: argparse.ArgumentParser) -> None:
    operations = batch.add_subparsers(dest="operation", required=True, metavar="OPERATION", parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument(
        "--database",
        default="sqlite:///flora-batch.db",
        metavar="URL",
        help="sqlite:///FILE, or postgresql://USER@HOST/NAME for many machines (default: sqlite:///flora-batch.db)",
    )
    common.add_argument("--batch", metavar="ID", help="which one, where there are several")
    works = _Parser(add_help=False)
    works.add_argument("--executor", metavar="ID", help="this process's own, the same after a restart (default: host)")
    works.add_argument("--concurrency", type=int, default=1000, metavar="N", help="runs under way (default: 1000)")
    writes = _Parser(add_help=False)
    writes.add_argument("--max-cost", type=float, metavar="USD", help="stop before an order that would cost more")
    writes.add_argument("--download", type=Path, metavar="DIR", help="save the outputs there")
    writes.add_argument("--as-finished", action="store_true", help="write in the order in which they finish")
    run = operations.add_parser(
        "run", help="order all lines of a file", parents=[_key(), common, works, writes], allow_abbrev=False
    )
    run.add_argument("orders", type=Path, help="JSON Lines, or CSV with a header; {column} in a prompt is filled in")
    run.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the results go, one line each")
    run.add_argument("--rate", type=float, metavar="N", help="orders a second, on all machines together")
    run.add_argument("--dry-run", action="store_true", help="check the lines, estimate the cost, and order nothing")
    for name in ("type", "prompt", "model", "workspace-id", "project-id"):
        kinds = get_args(GenerationType) if name == "type" else None
        run.add_argument(f"--{name}", choices=kinds, help="for lines that do not say it")
    resume = operations.add_parser(
        "resume", help="go on where it stands", parents=[_key(), common, works, writes], allow_abbrev=False
    )
    retry = operations.add_parser(
        "retry-failed", help="order anew what failed", parents=[_key(), common, works, writes], allow_abbrev=False
    )
    for again in (resume, retry):
        again.add_argument("--out", type=Path, metavar="FILE", help="where the results go (default: as before)")
    operations.add_parser("status", help="say how it stands", parents=[common], allow_abbrev=False)
    operations.add_parser(
        "worker", help="work on it from this machine too", parents=[_key(), common, works], allow_abbrev=False
    )
    adopt = operations.add_parser("adopt", help="give others what a lost machine had begun", parents=[common])
    adopt.add_argument("--executor", required=True, metavar="ID", help="of the machine that is gone")


def _gallery(gallery: argparse.ArgumentParser) -> None:
    gallery.add_argument(
        "--out", type=Path, default=Path("gallery.html"), metavar="FILE", help="where to (default: gallery.html)"
    )
    gallery.add_argument("--open", action="store_true", help="open it in a browser")
    gallery.add_argument("--limit", type=int, metavar="N", help="so many runs at most, the newest (default: all)")
    _selection(gallery)
    gallery.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="what was ordered, which FLORA's history does not say: JSON objects, one a line, with run_id and prompt",
    )


def _key() -> _Parser:
    common = _Parser(add_help=False)
    common.add_argument("--api-key", metavar="KEY", help="the API key (default: FLORA_API_KEY)")
    return common


def _waiting(command: argparse.ArgumentParser, patience: str) -> None:
    command.add_argument("--download", type=Path, metavar="DIR", help="wait, and save the outputs there")
    command.add_argument("--timeout", type=float, metavar="S", help=f"seconds to wait (default: {patience})")


def _selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--project-id", metavar="prj_...")
    command.add_argument("--status", choices=STATUSES)
    command.add_argument("--workspace-id", metavar="ws_...")


def _format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format", choices=FORMATS, default="json", help="how to print it (default: json)")


def read_params(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Read ``--params``: JSON objects, or single parameters; the last word on a name counts."""
    if given is None:
        return None
    params: dict[str, Any] = {}
    for text in given:
        if text.lstrip().startswith("{"):
            try:
                params |= json.loads(text)
            except ValueError as error:
                raise UsageError(f"--params is no JSON object: {error}") from None
            continue
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--params takes a JSON object or NAME=VALUE, not {text[:80]!r}")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params
