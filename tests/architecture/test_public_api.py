"""What no linter holds: import time, threads, annotations and the public names. Import directions are contracts."""

import ast
import inspect
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import aiohttp
import pyarrow
import pytest

import flora_async
from flora_async.export import to_arrow, to_pandas


def sources() -> dict[str, str]:
    """Read the package: each module's name, dotted below the package, and its text."""
    root = Path(flora_async.__file__).parent
    return {
        ".".join(path.relative_to(root).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(root.rglob("*.py"))
    }


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


def test_aiohttp_is_imported_when_the_first_request_is_sent() -> None:
    """No module imports the module with the sockets at its top."""
    for module, text in sources().items():
        top = [node.module for node in ast.parse(text).body if isinstance(node, ast.ImportFrom)]
        assert "flora_async._http.session" not in top, module


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
    assert found <= {"_aio", "sandbox._virtual_time"}  # where threads are made, and the loop that passes them on


def test_importing_the_package_loads_no_dependency_but_msgspec_and_no_extra() -> None:
    """Only an open client needs aiohttp, anyio and backoff, only those who ask for them the extras."""
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
    assert not {"aiohttp", "yarl", "anyio", "backoff", "shutil", "argparse", *extras} & set(output.split())


def test_closing_an_unused_client_imports_anyio_in_a_thread() -> None:
    """The import takes a tenth of a second or more, for which it would block the event loop."""
    program = """
import asyncio, sys, threading
from flora_async import Flora

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if name == "anyio._backends._asyncio":
            print(threading.current_thread() is threading.main_thread())

async def main():
    flora = Flora("sk_live_unused")
    sys.meta_path.insert(0, Recorder())
    await flora.close()

asyncio.run(main())
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False"]


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
    assert {flora_async.Flora.__init__, flora_async.Flora.generate, to_pandas} <= found
    for function in found:
        assert typing.get_type_hints(function) is not None
    assert typing.get_type_hints(flora_async.Flora.__init__)["session"] == aiohttp.ClientSession | None
    assert typing.get_type_hints(to_arrow)["return"] is pyarrow.Table


def test_annotations_resolve_without_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pandas is not installed, a function that returns a frame returns Any."""
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert typing.get_type_hints(to_pandas)["return"] is typing.Any


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
    for module in (flora_async.models, flora_async.errors, flora_async.events):
        public = {
            name
            for name, value in vars(module).items()
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_")
        }
        assert public <= set(names), module
