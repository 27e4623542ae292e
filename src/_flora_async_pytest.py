"""A pytest plugin: the fixtures ``flora_sandbox`` and ``flora``, in virtual time.

The module is beside the package, so that pytest does not import the package for unrelated tests. The plugin runs each
coroutine test that uses one of the fixtures, with its asynchronous fixtures. The sandbox runs in the same event loop,
in virtual time: while nothing is ready, the clock skips to the next timer. A test that another plugin runs (anyio,
pytest-asyncio), or a synchronous test, gets a sandbox in a thread: in real time, a hundred times as fast as FLORA.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from flora_async import Flora
    from flora_async.sandbox import Sandbox
    from flora_async.sandbox._virtual_time import SingleTaskRunner

REAL_TIME_SCALE = 0.01
"""The time scale of a sandbox in real time."""

_RUNNER = pytest.StashKey["SingleTaskRunner"]()


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark."""
    config.addinivalue_line(
        "markers",
        "flora_sandbox(**settings): settings of the Sandbox of a test, like faults={503: 0.1}, seed=1, time_scale=0.1; "
        "virtual_time=False keeps real time, for tests that wait for other processes",
    )


@pytest.fixture
def flora_sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox of one test; ``@pytest.mark.flora_sandbox(...)`` holds its settings."""
    from flora_async.sandbox import Sandbox

    settings = _settings(request.node)
    virtual = settings.pop("virtual_time", True)
    # Inside a running loop (request.getfixturevalue in a test), the sandbox cannot be started in that loop.
    runner = _runner(request.node, virtual=virtual) if _is_ours(request.node) and not _in_a_loop() else None
    if runner is None or not runner.virtual:
        settings.setdefault("time_scale", REAL_TIME_SCALE)
    sandbox = Sandbox(**settings)
    with _allow_given(request.node):
        if runner is not None:
            runner.run(sandbox.start())
            yield sandbox
            runner.run(sandbox.close())
        else:
            with _in_a_thread(sandbox):
                yield sandbox


@pytest.fixture
def flora(request: pytest.FixtureRequest, flora_sandbox: Sandbox) -> Iterator[Flora]:
    """A client of ``flora_sandbox``, closed after the test."""
    import asyncio

    import backoff

    from flora_async import Flora

    runner = request.node.stash.get(_RUNNER, None)
    # In real time the client polls faster, by the time scale of the sandbox.
    poll = None if runner and runner.virtual else lambda: backoff.constant(interval=repeat(2 * REAL_TIME_SCALE))
    client = Flora(flora_sandbox.api_key, base_url=flora_sandbox.base_url, poll=poll)
    add_cleanup = getattr(request.instance, "addAsyncCleanup", None)
    # Requested by a test that runs: the client belongs to the loop of that test.
    loop = asyncio.get_running_loop() if runner is None and _in_a_loop() else None
    if add_cleanup is not None:  # an IsolatedAsyncioTestCase
        add_cleanup(client.close)
    elif runner is None and inspect.iscoroutinefunction(request.node.obj):
        request.node.obj = _close_after(client, request.node.obj)
    yield client
    if runner is not None:
        runner.run(client.close())
    elif loop is not None and not loop.is_closed():
        loop.run_until_complete(client.close())
    elif loop is not None:
        asyncio.run(client.close())


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run the tests that this plugin owns."""
    runner = pyfuncitem.stash.get(_RUNNER, None)
    test = _coroutine_function(pyfuncitem)
    if runner is None or test is None:
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names if name in pyfuncitem.funcargs}
    if test is pyfuncitem.obj:
        runner.run(test(**arguments))
        return True

    def each_example(*args: object, **drawn: object) -> None:
        runner.run(test(*args, **drawn))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyfuncitem.obj.hypothesis, "inner_test", each_example)
        pyfuncitem.obj(**arguments)
    return True


@pytest.hookimpl(specname="pytest_pyfunc_call")
def pytest_pyfunc_call_of_late_request(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that may request `flora` by its ``request`` in real time, unless another plugin runs it."""
    if "request" not in pyfuncitem.fixturenames or not _is_ours(pyfuncitem):
        return None
    _runner(pyfuncitem, virtual=False)
    return pytest_pyfunc_call(pyfuncitem)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Run the asynchronous fixtures of tests that this plugin owns."""
    function = fixturedef.func
    generates = inspect.isasyncgenfunction(function)
    if (
        not (generates or inspect.iscoroutinefunction(function))
        or fixturedef.scope != "function"
        or {"flora_sandbox", "request"}.isdisjoint(request.fixturenames)
        or not _is_ours(request.node)
    ):
        return (yield)
    virtual = "flora_sandbox" in request.fixturenames and _settings(request.node).get("virtual_time", True)
    runner = _runner(request.node, virtual=virtual)
    # pytest binds only methods of a class, so a wrapper must be bound here.
    bound: Callable[..., Any] = function.__func__.__get__(request.instance) if inspect.ismethod(function) else function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fixturedef,
            "func",
            functools.partial(_run_generator_fixture if generates else _run_coroutine_fixture, runner, bound),
        )
        return (yield)


def _run_coroutine_fixture(
    runner: SingleTaskRunner, fixture: Callable[..., Awaitable[object]], **arguments: object
) -> object:
    async def value() -> object:
        return await fixture(**arguments)

    return runner.run(value())


def _run_generator_fixture(
    runner: SingleTaskRunner, fixture: Callable[..., AsyncGenerator[object]], **arguments: object
) -> Iterator[object]:
    each = fixture(**arguments)

    async def step() -> object:
        return await anext(each, None)

    yield runner.run(step())
    runner.run(step())


def _settings(item: pytest.Item) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for mark in reversed(list(item.iter_markers("flora_sandbox"))):
        if mark.args:
            pytest.fail("the mark flora_sandbox takes names: flora_sandbox(faults={503: 0.1})", pytrace=False)
        settings |= mark.kwargs
    return settings


def _coroutine_function(item: pytest.Function) -> Callable[..., Any] | None:
    """Return the coroutine function of a test, also below hypothesis's ``@given``."""
    test = getattr(getattr(item.obj, "hypothesis", None), "inner_test", item.obj)
    return test if inspect.iscoroutinefunction(test) else None


def _is_ours(item: pytest.Item) -> bool:
    """Return whether a test is a coroutine that no other plugin runs: other plugins mark it or use their own items."""
    if type(item) is not pytest.Function or _coroutine_function(item) is None:
        return False
    marked = any(item.get_closest_marker(name) for name in ("anyio", "asyncio"))
    return not marked and "anyio_backend" not in item.fixturenames


def _in_a_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@contextmanager
def _allow_given(item: pytest.Item) -> Generator[None]:
    """Allow these fixtures in a test with hypothesis's ``@given``: one sandbox serves all of its examples.

    Hypothesis rejects function-scoped fixtures. It still rejects those of other plugins.
    """
    test: Any = getattr(item, "obj", None)
    ours = {"flora", "flora_sandbox", "request", "self"}
    if getattr(test, "hypothesis", None) is None or not ours.issuperset(inspect.signature(test).parameters):
        yield
        return
    from hypothesis import HealthCheck, settings

    function, name = getattr(test, "__func__", test), "_hypothesis_internal_use_settings"
    before = getattr(function, name, None) or settings()
    allowed = (*before.suppress_health_check, HealthCheck.function_scoped_fixture)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(function, name, settings(before, suppress_health_check=allowed), raising=False)
        yield


def _runner(item: pytest.Item, *, virtual: bool) -> SingleTaskRunner:
    """Return the runner of a test and its fixtures; its loop is closed after all of them."""
    runner = item.stash.get(_RUNNER, None)
    if runner is None:
        from flora_async.sandbox._virtual_time import SingleTaskRunner

        runner = item.stash[_RUNNER] = SingleTaskRunner(virtual=virtual)
        item.addfinalizer(functools.partial(_close_runner, item))
    return runner


def _close_runner(item: pytest.Item) -> None:
    runner = item.stash[_RUNNER]
    del item.stash[_RUNNER]  # another plugin may run the same test again
    runner.close()


def _close_after(client: Flora, test: Callable[..., Any]) -> Callable[..., Any]:
    """Return the test with its client closed in the loop that used it."""

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
