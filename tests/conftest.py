"""What all tests share."""

import os
import subprocess
import traceback
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from flora_async.sandbox._virtual_time import VirtualTimeLoop

OFFICIAL_CLIENT = "@flora-ai/flora@0.11.0"

_walk_stack = traceback.walk_stack


def _walk_near(f: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Walk the nearest frames only.

    In development mode each future keeps the stack that made it: with all of pytest's frames that is most of the work.
    """
    return islice(_walk_stack(f), 4)


traceback.walk_stack = _walk_near


SLOW = {
    *("durable", "docs", "e2e", "properties", "test_batch", "test_chaos", "test_export", "test_front_page"),
    *("test_gallery", "test_pytest_plugin", "test_terminal"),
}
"""Folders and modules that start processes, databases or long runs: `nox -s check` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of slow modules."""
    for item in items:
        if item.path.stem in SLOW or item.path.parent.name in SLOW:
            item.add_marker(pytest.mark.slow)


@cache
def _allow_any_time() -> None:
    """Let hypothesis set no deadline: a busy machine is no fault."""
    from hypothesis import settings  # here, for it takes a second, and most modules go without

    settings.register_profile("busy", deadline=None)
    settings.load_profile("busy")


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Set hypothesis up before the first module that uses it is imported."""
    if "from hypothesis" in module_path.read_text(encoding="utf-8"):
        _allow_any_time()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of the documentation in one process, where xdist's own marks are lost with pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "loadgroup":
        return None
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = lambda nodeid: "docs" if "test_guide.py" in nodeid else nodeid
    return scheduler


@pytest.fixture
def official_client(tmp_path: Path) -> Path:
    """Install FLORA's official npm client in a folder."""
    (tmp_path / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", OFFICIAL_CLIENT]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    return tmp_path


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run async tests on asyncio, the only kind of loop that aiohttp knows, by itself or as uvloop has it.

    Those that set seconds against seconds run in virtual time, where a machine that stands still changes nothing.
    """
    if request.node.get_closest_marker("virtual_time"):
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    return "asyncio", {"use_uvloop": os.environ.get("EVENT_LOOP") == "uvloop"}
