"""Hooks and fixtures of all tests."""

import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from msgspec.structs import replace

from flora_async import Flora
from flora_async.sandbox._virtual_time import VirtualTimeLoop

OFFICIAL_CLIENT = "@flora-ai/flora@0.11.0"


def _walk_nothing(f: FrameType | None) -> Iterator[tuple[FrameType, int]]:
    """Yield no frames, so that asyncio's debug mode stores no stack with each future: those cost a third of all CPU.

    All checks of the debug mode stay. To see where a future was created, comment out the next line.
    """
    return iter(())


traceback.walk_stack = _walk_nothing

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
def _load_hypothesis_profile() -> None:
    """Set the number of generated examples, and disable hypothesis's deadline, which a busy machine exceeds."""
    from hypothesis import settings  # imported here: the import takes a second, and few modules need it

    settings.register_profile("fast", deadline=None, max_examples=30)
    settings.register_profile("thorough", deadline=None)
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_pycollect_makemodule(module_path: Path) -> None:
    """Configure hypothesis before the first module that uses it is imported."""
    if "from hypothesis" in module_path.read_text(encoding="utf-8"):
        _load_hypothesis_profile()


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
def change_policies(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that changes fields of the policies of later clients: ``(poll={"jitter": 0.0})``."""

    def change(**changes: dict[str, Any]) -> None:
        policies = Flora._policies
        changed = {name: replace(getattr(policies, name), **fields) for name, fields in changes.items()}
        monkeypatch.setattr(Flora, "_policies", replace(policies, **changed))

    return change


@pytest.fixture
def fast_retries(change_policies: Callable[..., None]) -> None:
    """Shorten the pauses after errors to milliseconds."""
    pauses = ("first_delay", "rate_limit_pause", "resend_pause", "resend_pause_after_timeout")
    change_policies(
        retry=dict.fromkeys(pauses, 0.001),
        recovery={"pauses": (0.001, 0.001), "max_wait_for_others": 0.001},
        rate_limit={"min_rate": 1000.0},
    )


@pytest.fixture
def fast_polls(change_policies: Callable[..., None]) -> None:
    """Poll every ten milliseconds."""
    change_policies(poll={"min_delay": 0.01, "max_delay": 0.01})


@pytest.fixture
def change_worker_policy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that changes fields of the policy of later durable batches: ``(read_interval=0.02)``."""
    from flora_async.durable import Batches  # imported here: few modules need a database

    def change(**fields: float) -> None:
        monkeypatch.setattr(Batches, "_policy", replace(Batches._policy, **fields))

    return change


@pytest.fixture
def official_client(tmp_path: Path) -> Path:
    """Install FLORA's official npm client in a folder."""
    (tmp_path / "package.json").write_text('{"private": true}')
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", OFFICIAL_CLIENT]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    return tmp_path


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run async tests on asyncio, or on uvloop where ``EVENT_LOOP`` says so; aiohttp supports no other backend.

    Tests that compare durations run in virtual time, which a busy machine does not change.
    """
    if request.node.get_closest_marker("virtual_time"):
        return "asyncio", {"loop_factory": VirtualTimeLoop}
    return "asyncio", {"use_uvloop": os.environ.get("EVENT_LOOP") == "uvloop"}
