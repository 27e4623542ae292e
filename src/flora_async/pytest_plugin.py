"""A pytest plugin: ``flora_sandbox`` and ``flora``, and time that jumps, so that a video costs a test milliseconds.

It comes with the package. A test that is a coroutine and uses one of the fixtures is run here, in virtual time, with
the sandbox in the same event loop: when nothing is ready, the clock jumps to the next timer. A test that another plugin
runs (anyio's, pytest-asyncio), or that is no coroutine, gets a sandbox in a thread, in real time, a hundred times as
fast as FLORA.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from flora_async import Flora

if TYPE_CHECKING:
    from anyio import CapacityLimiter

    from flora_async.sandbox import Sandbox

T = TypeVar("T")

GRACE = 0.0005
"""Real seconds in which something on its way through the kernel may still arrive before time jumps."""
SLICE = 0.05
"""Real seconds for which a thread that works is waited for at once."""
HURRY = 0.01
"""The time scale of a sandbox in real time."""

_RUNNER = pytest.StashKey[asyncio.Runner]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        "flora_sandbox(**settings): settings of the Sandbox of a test, like faults={503: 0.1}, seed=1, time_scale=0.1; "
        "virtual_time=False keeps real time, for tests that wait for other processes",
    )


@pytest.fixture
def flora_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A FLORA of the test's own; ``@pytest.mark.flora_sandbox(...)`` gives its settings."""
    from flora_async.sandbox import Sandbox

    settings = _settings(request.node)
    ours = _is_ours(request.node)
    virtual = settings.pop("virtual_time", True) and ours
    if not virtual:
        settings.setdefault("time_scale", HURRY)
    sandbox = Sandbox(**settings)
    if ours:
        with asyncio.Runner(loop_factory=VirtualLoop if virtual else None) as runner:
            request.node.stash[_RUNNER] = runner
            runner.run(_settle_in(runner.get_loop()))
            runner.run(sandbox.start())
            try:
                yield sandbox
            finally:
                runner.run(sandbox.close())
    else:
        with _in_a_thread(sandbox):
            yield sandbox


@pytest.fixture
def flora(request: pytest.FixtureRequest, flora_sandbox: Sandbox) -> Iterator[Flora]:
    """A client of ``flora_sandbox``, closed after the test."""
    client = Flora(flora_sandbox.api_key, base_url=flora_sandbox.base_url)
    runner = request.node.stash.get(_RUNNER, None)
    if runner is None and inspect.iscoroutinefunction(request.node.obj):
        request.node.obj = _closing(client, request.node.obj)
    yield client
    if runner is not None:
        runner.run(client.close())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the tests that are ours."""
    runner = pyfuncitem.stash.get(_RUNNER, None)
    if runner is None:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _settings(item: pytest.Item) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("flora_sandbox"))):
        settings |= mark.kwargs
    return settings


def _is_ours(item: pytest.Item) -> bool:
    """Say whether a test is a coroutine that nobody else runs."""
    if not isinstance(item, pytest.Function) or not inspect.iscoroutinefunction(item.obj):
        return False
    marked = any(item.get_closest_marker(name) for name in ("anyio", "asyncio"))
    return not (marked or "anyio_backend" in item.fixturenames or type(item).__module__.startswith("pytest_asyncio"))


def _closing(client: Flora, test: Callable[..., Any]) -> Callable[..., Any]:
    """Have a client closed on the loop that it was used on."""

    @functools.wraps(test)
    async def closing(**arguments: object) -> None:
        async with client:
            await test(**arguments)

    return closing


@contextmanager
def _in_a_thread(sandbox: Sandbox) -> Generator[None]:
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal("asyncio") as portal:
        portal.call(sandbox.start)
        try:
            yield
        finally:
            portal.call(sandbox.close)


async def _settle_in(loop: asyncio.AbstractEventLoop) -> None:
    from anyio.to_thread import current_default_thread_limiter

    if isinstance(loop, VirtualLoop):
        loop.threads = current_default_thread_limiter()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands while anything is ready, and else jumps to the next timer.

    What happens in this process, over loopback too, takes no time. It waits for threads that work for this loop, but
    for no other process: there a timer comes first.
    """

    threads: CapacityLimiter | None = None
    """Of anyio: how many of its threads work for this loop."""

    def __init__(self) -> None:
        self._now = time.monotonic()
        self._executing = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        """Say the virtual time, in seconds."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let so much time pass."""
        self._now += seconds

    @property
    def waits_for_threads(self) -> bool:
        """Whether a thread works for this loop."""
        return self._executing > 0 or (self.threads is not None and self.threads.borrowed_tokens > 0)

    def run_in_executor(self, executor: Executor | None, func: Callable[..., T], *args: object) -> asyncio.Future[T]:
        """Count what threads do."""
        future = super().run_in_executor(executor, func, *args)
        self._executing += 1
        future.add_done_callback(self._executed)
        return future

    def _executed(self, _future: asyncio.Future[Any]) -> None:
        self._executing -= 1


class _Jumping(selectors.DefaultSelector):
    """A selector that lets a loop's time pass instead of waiting."""

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._virtual = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self._virtual.waits_for_threads:
            return super().select(SLICE)
        if timeout is None:
            return super().select(None)
        ready = super().select(GRACE)
        if not ready:
            self._virtual.jump(timeout)
        return ready
