"""The reference of the command line: each command with its flags, from the parser itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from flora_async.cli.arguments import EXAMPLES, build_parser


def page() -> str:
    """Write the page, in reStructuredText."""
    head = "The command line\n================\n\nAll commands and flags of ``flora-async``.\n"
    return head + "".join(_command(name, parser, text) for name, parser, text in _commands(build_parser(), ""))


def _commands(
    parser: argparse.ArgumentParser, prefix: str, text: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    """Yield each command that can be run, with its name below ``flora-async`` and its help."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]  # noqa: SLF001
    if not groups:
        yield prefix, parser, text
    for group in groups:
        texts = {choice.dest: choice.help or "" for choice in group._choices_actions}  # noqa: SLF001
        for name, child in group.choices.items():
            yield from _commands(child, f"{prefix} {name}".strip(), texts.get(name, ""))


def _command(name: str, parser: argparse.ArgumentParser, text: str) -> str:
    lines = [f"\n{name}\n{'-' * len(name)}\n", f"{text[:1].upper()}{text[1:]}.\n" if text else ""]
    actions = [action for action in parser._actions if action.dest != "help"]  # noqa: SLF001
    if actions:
        lines.append(".. list-table::\n   :widths: 35 65\n")
        lines += [f"   * - {_call(action)}\n     - {_describe(action)}" for action in actions]
    examples = EXAMPLES.get(name, ())
    if examples:
        lines.append("\n.. code-block:: sh\n\n" + "\n".join(f"   flora-async {example}" for example in examples))
    return "\n".join(lines) + "\n"


def _call(action: argparse.Action) -> str:
    value = (
        "" if action.nargs == 0 else f" {action.metavar or '|'.join(map(str, action.choices or [action.dest.upper()]))}"
    )
    flags = [f"``{flag}{value}``" for flag in action.option_strings]
    return ", ".join(flags) or f"``{value.strip()}``"


def _describe(action: argparse.Action) -> str:
    needed = "required. " if action.required and action.option_strings else ""
    return f"{needed}{(action.help or '').replace('%(prog)s', 'flora-async').replace('*', chr(92) + '*')}" or "\\ "
