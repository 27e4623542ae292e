"""The house: imports go one way, and each room keeps to its own."""

import ast
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

import aiohttp
import pyarrow
import pytest

import flora_async
from flora_async import export

ORDER = """
    _version _lazy _render models errors _outcomes _aio _events _arguments _addresses _wire _pacing _clock _costs
    _sweep
    _matching webhooks _closing _limiter _sessions _transport _entries _waits _watcher _polling _many _inbox _history
    _saving _catalogue _file_names _downloads _recovery _generations _client __init__ export telemetry durable sandbox
    _virtual cli
"""
ROOMS = ORDER.split()
"""The order: a room imports only from rooms before it. A new room takes its place here."""

SANDBOX_MAY = {"sandbox", "_aio", "_render", "models", "errors", "webhooks"}
AIOHTTP_MAY = {"_sessions", "sandbox"}
LATE = {("_transport", "_sessions"), ("cli.commands", "sandbox")}
"""The imports that wait until they are needed, and may stand under TYPE_CHECKING: aiohttp comes with them."""


def sources() -> dict[str, str]:
    """Read the package: each module's name, dotted below the package, and its text."""
    root = Path(flora_async.__file__).parent
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }


def room_of(module: str) -> str:
    """Say which room a module is in."""
    return module.partition(".")[0]


def imports(tree: ast.AST, *, typing_only: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Give each import: module, name, and whether it stands under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        guarded = typing_only or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, "", guarded
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield "." * node.level + (node.module or ""), alias.name, guarded
        else:
            yield from imports(node, typing_only=guarded)


def faults(modules: Mapping[str, str]) -> list[str]:
    """Say what is wrong with the imports of a package."""
    found: list[str] = []
    edges: dict[str, set[str]] = {}
    for module, text in modules.items():
        room = room_of(module)
        if room not in ROOMS:
            found.append(f"{room} is a new room: give it its place in ROOMS")
            continue
        for source, name, guarded in imports(ast.parse(text)):
            if source.startswith("."):
                found.append(f"{module} imports relatively")
            if source.partition(".")[0] != "flora_async":
                continue
            below = source.removeprefix("flora_async").removeprefix(".")
            target = below or (name if name in ROOMS else "__init__")
            edges.setdefault(module, set()).add(target)
            if guarded and (module, target) not in LATE:
                found.append(f"{module} imports {target} for its types only")
            if room_of(target) != room and ROOMS.index(room_of(target)) > ROOMS.index(room):
                found.append(f"{module} imports {target}, which comes later")
            if room == "sandbox" and room_of(target) not in SANDBOX_MAY:
                found.append(f"{module} imports {target}, which a sandbox must not know")
    return found + [f"{module} is in a circle" for module in edges if _reaches(edges, module, module)]


def _reaches(edges: Mapping[str, set[str]], start: str, end: str) -> bool:
    seen: set[str] = set()
    ahead = list(edges.get(start, ()))
    while ahead:
        module = ahead.pop()
        if module == end:
            return True
        if module not in seen:
            seen.add(module)
            ahead.extend(edges.get(module, ()))
    return False


def test_imports_go_one_way() -> None:
    """In the order of the rooms, without a circle, without a detour for types."""
    assert faults(sources()) == []


@pytest.mark.parametrize(
    ("planted", "fault"),
    [
        ({"models": "from flora_async import errors"}, "models imports errors, which comes later"),
        ({"models": "from flora_async.errors import FloraError"}, "models imports errors, which comes later"),
        ({"_wire": "def f():\n    import flora_async._client"}, "_wire imports _client, which comes later"),
        ({"errors": "from flora_async import Flora"}, "errors imports __init__, which comes later"),
        ({"_wire": "from . import errors"}, "_wire imports relatively"),
        ({"_attic": ""}, "_attic is a new room: give it its place in ROOMS"),
        (
            {"cli": "if TYPE_CHECKING:\n    from flora_async.models import Run"},
            "cli imports models for its types only",
        ),
        (
            {"sandbox.server": "from flora_async import _wire"},
            "sandbox.server imports _wire, which a sandbox must not know",
        ),
        (
            {
                "sandbox.a": "from flora_async.sandbox.b import x",
                "sandbox.b": "from flora_async.sandbox.a import y",
            },
            "sandbox.a is in a circle",
        ),
    ],
)
def test_the_check_finds_what_it_is_for(planted: dict[str, str], fault: str) -> None:
    """Each kind of fault, planted."""
    assert fault in faults(planted)


def test_only_one_room_knows_aiohttp() -> None:
    """And nobody enters it before a client is opened."""
    for module, text in sources().items():
        tree = ast.parse(text)
        names = {source.partition(".")[0] for source, _, guarded in imports(tree) if not guarded}
        if names & {"aiohttp", "yarl", "multidict"}:
            assert room_of(module) in AIOHTTP_MAY, module
        top = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert "flora_async._sessions" not in top, module


def foreign_threads(text: str) -> list[str]:
    """Return the calls in a module that run in the threads of asyncio or anyio."""
    tree = ast.parse(text)
    names = [name for source, name, _ in imports(tree) if source.endswith("to_thread") or source == "asyncio"]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in names if name in ("run_sync", "to_thread", "run_in_executor")]


@pytest.mark.parametrize(
    "text",
    [
        "import anyio\nawait anyio.to_thread.run_sync(f)",
        "from anyio import to_thread\nawait to_thread.run_sync(f)",
        "from anyio.to_thread import run_sync",
        "import asyncio\nawait asyncio.to_thread(f)",
        "from asyncio import to_thread",
        "await asyncio.get_running_loop().run_in_executor(None, f)",
    ],
)
def test_foreign_threads_are_found(text: str) -> None:
    """Each way to use the threads of asyncio or anyio, planted."""
    assert foreign_threads(text)


def test_threads_are_those_of_this_package() -> None:
    """All blocking calls run in ``_aio.run_in_thread``: pools that callers share can be full of callers."""
    found = {module for module, text in sources().items() if foreign_threads(text)}
    assert found <= {"_aio", "_virtual"}  # where threads are made, and the loop that passes them on


def test_importing_the_package_loads_neither_aiohttp_nor_an_extra() -> None:
    """Only an open client needs the one, only those who ask for them the others."""
    loaded = "import sys, flora_async; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    extras = {
        "rich",
        "shtab",
        "PIL",
        "av",
        "sqlalchemy",
        "pyarrow",
        "pandas",
        "polars",
        "opentelemetry",
        "pytest",
    }
    assert not {"aiohttp", "yarl", "argparse", *extras} & set(output.split())


def public_callables() -> Iterator[Callable[..., object]]:
    """Find the functions of the public modules, and the methods of their classes."""
    for path in ("", ".export", ".webhooks", ".telemetry", ".sandbox", ".durable", ".errors", ".models", ".cli"):
        module = import_module(f"flora_async{path}")
        for name, thing in vars(module).items():
            members = inspect.getmembers(thing, inspect.isfunction) if inspect.isclass(thing) else [(name, thing)]
            for member, function in members:
                ours = inspect.isfunction(function) and function.__module__.startswith("flora_async")
                if ours and (member == "__init__" or not member.startswith("_")):
                    yield function


def test_annotations_of_public_callables_resolve() -> None:
    """Dependency injection and tool decorators can ask for the types of every public function and method."""
    found = set(public_callables())
    assert {flora_async.Flora.__init__, flora_async.Flora.generate, export.to_pandas} <= found
    for function in found:
        assert typing.get_type_hints(function) is not None
    assert typing.get_type_hints(flora_async.Flora.__init__)["session"] == aiohttp.ClientSession | None
    assert typing.get_type_hints(export.to_arrow)["return"] is pyarrow.Table


def test_annotations_resolve_without_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pandas is not installed, a function that returns a frame returns Any."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert typing.get_type_hints(export.to_pandas)["return"] is typing.Any


def test_every_module_says_what_lives_there() -> None:
    """In its first line."""
    for module, text in sources().items():
        assert ast.get_docstring(ast.parse(text)), module


def test_the_front_door_hands_on_all_that_is_public() -> None:
    """Sorted, complete, and nothing that begins with an underscore but the version."""
    names = flora_async.__all__
    assert len(set(names)) == len(names)
    assert [name for name in names if name.startswith("_")] == ["__version__"]
    assert all(hasattr(flora_async, name) for name in names)
    for module in (flora_async.models, flora_async.errors, flora_async._events):
        public = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert public <= set(names), module
