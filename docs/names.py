"""The public names of the package, and the page that each of them has in the documentation."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from types import ModuleType

import command_line

import flora_async
from flora_async import errors, models

CHAPTERS = {
    "client": "The client",
    "models": "API data",
    "errors": "Errors",
    "webhooks": "Webhooks",
    "export": "Export",
    "telemetry": "Telemetry",
    "durable": "Durable batches",
    "sandbox": "The sandbox",
    "fixtures": "Fixtures for pytest",
}
"""By the module that they are about; a missing one has no chapter. `flora_async` re-exports the first three."""

_FRONT = {"client": flora_async, "models": models, "errors": errors}
_PLUGIN = entry_points(group="pytest11")["flora_async"].module
"""Where the fixtures are. Their names have no module."""
_OBVIOUS = "BaseException, Struct, AsyncCloseable"
"""Base classes whose members the pages omit."""


def public_names() -> dict[str, list[str]]:
    """Return the full names of each chapter."""
    names: dict[str, list[str]] = {chapter: [] for chapter in _FRONT}
    for name in flora_async.__all__:
        chapter = next((chapter for chapter in ("models", "errors") if name in _defined(_FRONT[chapter])), "client")
        names[chapter].append(f"flora_async.{name}")
    for chapter in CHAPTERS.keys() - _FRONT.keys() - {"fixtures"}:
        if find_spec(f"flora_async.{chapter}") is not None:
            names[chapter] = [f"flora_async.{chapter}.{name}" for name in _offered(_module(chapter))]
    names["fixtures"] = [name for name, value in vars(_module("fixtures")).items() if _is_fixture(value)]
    return {chapter: names[chapter] for chapter in CHAPTERS if chapter in names}


def linked_names() -> dict[str, str]:
    """Return the full name of each name that prose shows: the class of `Run`, and the methods of a client.

    A name that two modules have is not linked.
    """
    found: dict[str, str] = {}
    for names in public_names().values():
        for name in names:
            last = name.rpartition(".")[2]
            found[last] = "" if last in found else name
            found[name] = found[name.removeprefix("flora_async.")] = name
    found |= {name: f"flora_async.Flora.{name}" for name, value in vars(flora_async.Flora).items() if callable(value)}
    return {name: full for name, full in found.items() if "." in full and not name.startswith("_")}


def pages() -> dict[str, str]:
    """Write the index, and a page for each chapter and each name, in reStructuredText."""
    chapters = public_names()
    written = {"index": _index([*chapters, "command-line"]), "command-line": command_line.page()}
    for chapter, names in chapters.items():
        written[chapter] = _chapter(chapter, names)
        written |= {name: _page(name) for name in names}
    return written


def _index(chapters: Iterable[str]) -> str:
    listed = "".join(f"   {chapter}\n" for chapter in chapters)
    return (
        f"{_title('Reference')}\nEach public name has a page. ``flora_async`` re-exports the first three "
        f"chapters; the others are separate modules.\n\n.. toctree::\n   :maxdepth: 1\n\n{listed}"
    )


def _chapter(chapter: str, names: list[str]) -> str:
    module = _module(chapter)
    rows = "".join(f"   * - :py:obj:`~{name}`\n     - {_summary(name)}\n" for name in names)
    listed = "".join(f"   {name}\n" for name in names)
    return (
        f"{_title(CHAPTERS[chapter])}\n.. automodule:: {module.__name__}\n\n"
        f".. list-table::\n   :widths: 30 70\n\n{rows}\n.. toctree::\n   :hidden:\n\n{listed}"
    )


def _page(name: str) -> str:
    module, _, last = name.rpartition(".")
    value = getattr(import_module(module or _PLUGIN), last)
    head = f"{_title(last)}\n.. py:currentmodule:: {module or 'None'}\n\n"
    if isinstance(value, type):
        kind = "exception" if issubclass(value, BaseException) else "class"
        bases = "   :show-inheritance:\n" if kind == "exception" or value.__base__ in vars(flora_async).values() else ""
        members = f"   :members:\n   :undoc-members:\n   :inherited-members: {_OBVIOUS}\n"
        return f"{head}.. auto{kind}:: {name}\n{bases}{members}"
    node, text = _definition(name)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _is_fixture(value):
        return f"{head}.. autofunction:: {name}\n"
    return f"{head}{_directive(last, node)}\n{indent(text, '   ')}\n"


def _directive(name: str, node: ast.stmt) -> str:
    """Return the directive for an alias, a constant or a fixture, which autodoc does not support."""
    if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Subscript):
        return f".. py:data:: {name}\n   :type: {ast.unparse(node.returns.slice)}\n"
    value = ast.unparse(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else ""
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return f".. py:type:: {name}\n   :canonical: {value}\n"
    return f".. py:data:: {name}\n   :value: {value}\n"


def _summary(name: str) -> str:
    """Return the first sentence of a name's docstring."""
    paragraph = " ".join(_definition(name)[1].split("\n\n")[0].split())
    return re.sub(r":attr:`(\w+)`", r"``\1``", re.split(r"(?<=[.])\s", paragraph)[0])


def _title(text: str) -> str:
    shown = f"``{text}``" if text.startswith("_") else text
    return f"{shown}\n{'=' * len(shown)}\n"


def _module(chapter: str) -> ModuleType:
    return _FRONT.get(chapter) or import_module(_PLUGIN if chapter == "fixtures" else f"flora_async.{chapter}")


def _offered(module: ModuleType) -> list[str]:
    """Return the public names of a module: its `__all__`, else its names with a docstring."""
    listed: list[str] | None = getattr(module, "__all__", None)
    return listed or [name for name in _defined(module) if not name.startswith("_")]


def _is_fixture(value: object) -> bool:
    return type(value).__name__ == "FixtureFunctionDefinition"


def _definition(name: str) -> tuple[ast.stmt, str]:
    """Find the definition of a name, in its module or below."""
    module, _, last = name.rpartition(".")
    source = Path(inspect.getfile(import_module(module or _PLUGIN)))
    for path in [source, *sorted(source.parent.glob("*.py")), *sorted(source.parent.rglob("*.py"))]:
        found = _definitions(path).get(last)
        if found is not None:
            return found
    raise LookupError(f"{name} has no docstring")


def _defined(module: ModuleType) -> dict[str, tuple[ast.stmt, str]]:
    return _definitions(Path(inspect.getfile(module)))


@cache
def _definitions(path: Path) -> dict[str, tuple[ast.stmt, str]]:
    """Return the classes, functions and assignments of a file that have a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found: dict[str, tuple[ast.stmt, str]] = {}
    for node, following in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node, ast.get_docstring(node) or ""
        elif isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            target = (
                node.targets[0]
                if isinstance(node, ast.Assign)
                else node.target
                if isinstance(node, ast.AnnAssign)
                else None
            )
            if isinstance(target, ast.Name):
                found[target.id] = node, inspect.cleandoc(str(following.value.value))
    return {name: (node, text) for name, (node, text) in found.items() if text}


def signatures() -> str:
    """Write the page of all public callables, with the signature of each, in Markdown."""
    parts = [REFERENCE_HEAD]
    for chapter, names in public_names().items():
        if chapter == "fixtures":
            continue
        lines = [line for name in names for line in _callables(name) if not line.endswith(".to_dict()")]
        if lines:
            parts.append(f"## {CHAPTERS[chapter]}\n\n```text\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


REFERENCE_HEAD = """\
# Reference

The documentation as a site has a page for each public name, with types, units and errors: `nox -s docs` builds it.
This page lists all callables with their parameters. A parameter after `*` is passed by name; `...` is a default value.
"""


def _callables(name: str) -> list[str]:
    """Return a line for each function, constructor and public method of a name."""
    module, _, last = name.rpartition(".")
    value = getattr(import_module(module), last)
    if inspect.isfunction(value):
        return [_line(f"{'await ' if inspect.iscoroutinefunction(value) else ''}{module}.{last}", value, skip=0)]
    if not inspect.isclass(value) or issubclass(value, BaseException):
        return []
    lines = [_line(name, value.__init__, skip=1)] if "Args:" in (value.__doc__ or "") else []
    holder = _HOLDERS.get(last, last)
    for attribute, member in sorted(vars(value).items()):
        if attribute.startswith("_") or not inspect.isfunction(member):
            continue
        word = "await " if inspect.iscoroutinefunction(member) else ""
        lines.append(_line(f"{word}{holder}.{attribute}", member, skip=1))
    return lines


_ATTRIBUTES = vars(flora_async.Flora("documentation"))
_HOLDERS = {type(value).__name__: f"flora.{name}" for name, value in _ATTRIBUTES.items() if not name.startswith("_")}
_HOLDERS["Flora"] = "flora"
"""How a caller reaches the methods of a class."""


def _line(name: str, function: Callable[..., object], *, skip: int) -> str:
    """Return the call of a function, with the types of its parameters left to its own page."""
    parts: list[str] = []
    for parameter in list(inspect.signature(function).parameters.values())[skip:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        default = "" if parameter.default is parameter.empty else f"={_default(parameter.default)}"
        parts.append(f"{parameter.name}{default}")
    return f"{name}({', '.join(parts)})"


def _default(value: object) -> str:
    return repr(value) if isinstance(value, str | int | float | bool | None) else "..."
