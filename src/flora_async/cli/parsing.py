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
    history.add_argument("--project-id", metavar="prj_...")
    history.add_argument("--status", choices=STATUSES)
    history.add_argument("--workspace-id", metavar="ws_...")
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


def _gallery(gallery: argparse.ArgumentParser) -> None:
    gallery.add_argument(
        "--out", type=Path, default=Path("gallery.html"), metavar="FILE", help="where to (default: gallery.html)"
    )
    gallery.add_argument("--open", action="store_true", help="open it in a browser")
    gallery.add_argument("--limit", type=int, metavar="N", help="so many runs at most, the newest (default: all)")
    gallery.add_argument("--project-id", metavar="prj_...")
    gallery.add_argument("--status", choices=STATUSES)
    gallery.add_argument("--workspace-id", metavar="ws_...")
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
