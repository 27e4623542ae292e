"""The plugin, as those who test a service with it have it: in a pytest of its own."""

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable

import anyio.to_thread
import pytest

from flora_async import Flora
from flora_async._aio import run_in_thread
from flora_async.sandbox import Sandbox, _media
from flora_async.sandbox._virtual_time import VirtualTimeLoop

pytest_plugins = ["pytester"]

SERVICE = """
import asyncio

async def film(flora, takes):
    order = {"type": "video", "workspace_id": "ws_1", "project_id": "prj_1"}
    return await asyncio.gather(*(flora.generate(**order, prompt=f"take {take}") for take in range(takes)))
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Give a folder with a service, and pytest as strict as ours."""
    pytester.makepyfile(service=SERVICE)
    pytester.makeini(
        "[pytest]\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\naddopts = --strict-markers"
    )
    return pytester


def passes(project: pytest.Pytester, tests: str, count: int = 1, *options: str) -> str:
    """Run tests in this process, all of which pass; return the output. A process of its own takes two seconds more."""
    project.makepyfile(test_service=tests)
    ran = project.runpytest_inprocess("-q", *options)
    ran.assert_outcomes(passed=count)
    return ran.stdout.str()


def test_four_lines(project: pytest.Pytester) -> None:
    """Ten videos, in less than a second; the fastest of three, in case that the machine has other work."""
    told = passes(
        project,
        """
        import pytest
        from service import film

        @pytest.mark.parametrize("again", range(3))
        async def test_film(flora, flora_sandbox, again):
            runs = await film(flora, takes=10)
            assert all(run.succeeded for run in runs)
            assert flora_sandbox.accepted == 10
        """,
        3,
        "--durations=0",
    )
    assert min(map(float, re.findall(r"([0-9.]+)s call", told))) < 1


def test_time_is_virtual_and_the_mark_sets_it(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes in no time; downloads and their threads do not make it jump."""
    monkeypatch.setattr(_media, "VIDEO_FRAMES", 6)
    passes(
        project,
        """
        import asyncio, time
        import pytest
        from service import film

        @pytest.mark.flora_sandbox(time_scale=300)
        async def test_an_hour(flora, tmp_path):
            before, really = asyncio.get_running_loop().time(), time.monotonic()
            (run,) = await asyncio.gather(flora.generate(
                type="video", prompt="slow", workspace_id="ws_1", project_id="prj_1", timeout=None))
            assert asyncio.get_running_loop().time() - before > 2400
            assert [path.suffix for path in await flora.download(run, tmp_path)] == [".mp4"]
            assert time.monotonic() - really < 30

        @pytest.mark.flora_sandbox(virtual_time=False)
        async def test_real_time(flora):
            before = time.monotonic()
            await asyncio.sleep(0.05)
            assert time.monotonic() - before >= 0.05
            assert len(await film(flora, 1)) == 1
        """,
        2,
    )


@pytest.mark.parametrize("in_thread", [anyio.to_thread.run_sync, asyncio.to_thread, run_in_thread])
def test_time_stands_while_a_thread_works(in_thread: Callable[..., Awaitable[None]]) -> None:
    """Whoever started it, on a loop that anybody made."""

    async def work() -> float:
        loop = asyncio.get_running_loop()
        before = loop.time()
        async with asyncio.timeout(20):
            await in_thread(time.sleep, 0.1)
        return loop.time() - before

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(work()) == 0


def test_faults(project: pytest.Pytester) -> None:
    """Faults come from the marks of class and test, and from `fail_next`."""
    passes(
        project,
        """
        import pytest
        from flora_async import RunFailedError
        from service import film

        @pytest.mark.flora_sandbox(faults={503: 0.1}, seed=1)
        class TestOutage:
            async def test_trouble(self, flora, flora_sandbox):
                assert len(await film(flora, 20)) == 20
                assert sum(flora_sandbox.requests.values()) > 20

            @pytest.mark.flora_sandbox(faults={})
            async def test_no_trouble(self, flora, flora_sandbox):
                flora_sandbox.fail_next(429, retry_after=30)
                assert len(await film(flora, 1)) == 1
                assert flora_sandbox.requests["POST /generate"] == 2

        async def test_failing(flora):
            with pytest.raises(RunFailedError, match="safety_blocked"):
                await flora.generate(
                    type="image", prompt="a mug [fail:safety_blocked]", workspace_id="ws_1", project_id="prj_1")
        """,
        3,
    )


def test_beside_others(project: pytest.Pytester) -> None:
    """Anyio and pytest-asyncio run their own tests, with our fixtures; so does a plain function."""
    passes(
        project,
        """
        import asyncio
        import pytest
        from flora_async import Flora
        from service import film

        @pytest.fixture
        def anyio_backend():
            return "asyncio"

        @pytest.fixture
        def service(flora):
            return lambda takes: film(flora, takes)

        async def test_ours(service):
            assert len(await service(2)) == 2

        @pytest.mark.anyio
        async def test_anyio(service, flora):
            assert len(await service(2)) == 2

        @pytest.mark.asyncio
        async def test_asyncio(service, flora_sandbox):
            assert len(await service(2)) == 2
            assert flora_sandbox.accepted == 2

        def test_plain(flora_sandbox):
            async def main():
                async with Flora(flora_sandbox.api_key, base_url=flora_sandbox.base_url) as flora:
                    return await film(flora, 2)
            assert len(asyncio.run(main())) == 2
        """,
        4,
    )


def test_pytest_asyncio_in_automatic_mode(project: pytest.Pytester) -> None:
    """Runs everything that is a coroutine, fixtures too."""
    passes(
        project,
        """
        import pytest
        from service import film

        @pytest.fixture
        async def filmed(flora):
            return await film(flora, 1)

        async def test_filmed(filmed, flora):
            assert len(filmed) == 1
            assert len(await film(flora, 1)) == 1
        """,
        1,
        "--asyncio-mode=auto",
    )


def test_a_failing_test_fails(project: pytest.Pytester) -> None:
    """A failing test reports its own error and leaves no resources open."""
    project.makepyfile(test_service="async def test_it(flora):\n    assert (await flora.models.list()) == ()\n")
    ran = project.runpytest_inprocess("-q")
    ran.assert_outcomes(failed=1)
    assert "ResourceWarning" not in ran.stdout.str()


def test_threads_hold_the_clock() -> None:
    """What works elsewhere for this loop comes before any timer."""
    import time

    async def main() -> list[str]:
        order: list[str] = []

        async def later() -> None:
            await asyncio.sleep(1000)
            order.append("timer")

        timer = asyncio.create_task(later())
        await asyncio.to_thread(time.sleep, 0.2)
        order.append("thread")
        await timer
        return order

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(main()) == ["thread", "timer"]


def test_asynchronous_fixtures(project: pytest.Pytester) -> None:
    """Run where the test runs, methods of classes too, and end while the client is still open."""
    passes(
        project,
        """
        import asyncio
        import pytest
        from service import film

        ended = []

        @pytest.fixture
        async def filmed(flora):
            return await film(flora, 1)

        @pytest.fixture
        async def studio(flora):
            loop = asyncio.get_running_loop()
            yield loop
            assert loop is asyncio.get_running_loop()
            ended.extend(await film(flora, 1))

        class TestStudio:
            @pytest.fixture
            async def mine(self, flora):
                self.loop = asyncio.get_running_loop()
                return self.loop

            @pytest.mark.parametrize("takes", [1, 2])
            async def test_it(self, filmed, studio, mine, takes, flora, twice=2):
                assert self.loop is studio is mine is asyncio.get_running_loop()
                assert len(await film(flora, takes * twice)) == takes * twice
                assert filmed[0].succeeded

        def test_the_fixtures_have_ended():
            assert len(ended) == 2
        """,
        3,
    )


def test_a_fixture_that_fails_to_end(project: pytest.Pytester) -> None:
    """Is an error of its own test; the sandbox and the client are closed all the same, and the next test is well."""
    project.makepyfile(
        test_service="""
        import pytest
        from service import film

        @pytest.fixture
        async def studio(flora):
            await film(flora, 1)
            yield
            raise RuntimeError("the lights went out")

        @pytest.fixture
        async def ruin(flora):
            await film(flora, 1)
            raise RuntimeError("no lights at all")

        async def test_it(studio):
            pass

        async def test_nothing(ruin):
            pass

        async def test_the_next(flora):
            assert len(await film(flora, 1)) == 1
        """
    )
    ran = project.runpytest_inprocess("-q")
    ran.assert_outcomes(passed=2, errors=2)
    assert "the lights went out" in ran.stdout.str()
    assert "no lights at all" in ran.stdout.str()
    assert "ResourceWarning" not in ran.stdout.str()


def test_a_mark_with_settings_that_have_no_names(project: pytest.Pytester) -> None:
    """Is told what to write, and so is a client for more than one test."""
    project.makepyfile(
        test_service="""
        import pytest

        @pytest.mark.flora_sandbox({503: 0.1})
        async def test_it(flora):
            pass

        @pytest.fixture(scope="module")
        def studio(flora):
            return flora

        async def test_wide(studio):
            pass
        """
    )
    ran = project.runpytest_inprocess("-q")
    ran.assert_outcomes(errors=2)
    ran.stdout.fnmatch_lines(["*takes names: flora_sandbox(faults={503: 0.1})*", "*ScopeMismatch*"])


def test_pytest_asyncio_in_strict_mode(project: pytest.Pytester) -> None:
    """Classes, parameters, its own fixtures and loops that live longer than a test."""
    passes(
        project,
        """
        import pytest
        import pytest_asyncio
        from service import film

        @pytest_asyncio.fixture
        async def filmed(flora):
            return await film(flora, 1)

        @pytest.mark.asyncio(loop_scope="class")
        class TestTheirs:
            @pytest.mark.parametrize("takes", [1, 2])
            async def test_it(self, flora, takes):
                assert len(await film(flora, takes)) == takes

        @pytest.mark.asyncio
        async def test_theirs(filmed, flora):
            assert len(filmed) == len(await film(flora, 1)) == 1

        @pytest.fixture
        async def ours(flora):
            return await film(flora, 1)

        async def test_ours(ours):
            assert len(ours) == 1
        """,
        4,
    )


def test_anyio_in_automatic_mode(project: pytest.Pytester) -> None:
    """Runs everything that is a coroutine, fixtures and those of modules too."""
    passes(
        project,
        """
        import pytest
        from service import film

        @pytest.fixture(scope="module")
        def anyio_backend():
            return "asyncio"

        @pytest.fixture(scope="module")
        async def everyone():
            yield 1

        @pytest.fixture
        async def filmed(flora):
            yield await film(flora, 1)

        @pytest.mark.parametrize("takes", [1, 2])
        async def test_filmed(everyone, filmed, flora, takes):
            assert len(filmed) == everyone
            assert len(await film(flora, takes)) == takes
        """,
        2,
        "-o",
        "anyio_mode=auto",
    )


def test_twice_in_one_process(project: pytest.Pytester) -> None:
    """Nothing is left of the first run, as where one worker runs many."""
    project.makepyfile(
        test_service="""
        from service import film

        async def test_it(flora, flora_sandbox):
            assert len(await film(flora, 3)) == flora_sandbox.accepted == 3
        """
    )
    for _ in range(2):
        project.runpytest_inprocess("-q").assert_outcomes(passed=1)


def test_without_the_plugin(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin can be disabled and loaded by its name."""
    project.makepyfile(test_service="def test_it(flora_sandbox):\n    assert flora_sandbox.base_url\n")
    without = project.runpytest_inprocess("-q", "-p", "no:flora_async")
    without.assert_outcomes(errors=1)
    assert "fixture 'flora_sandbox' not found" in without.stdout.str()
    project.makeini("[pytest]")  # which knows no options of plugins that are not there
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    project.runpytest_subprocess("-q", "-p", "flora_async", timeout=60).assert_outcomes(passed=1)


def test_who_only_has_it_installed_pays_nothing(project: pytest.Pytester) -> None:
    """Pytest, as a process of its own, finds the plugin without loading the package."""
    project.makepyfile(
        test_service="""
        import sys

        def test_it(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("flora_async")
            assert not {"flora_async", "aiohttp", "msgspec"} & set(sys.modules)
        """
    )
    project.runpytest_subprocess("-q", timeout=60).assert_outcomes(passed=1)


def test_unittest(project: pytest.Pytester) -> None:
    """Its asynchronous cases run as they always do, with a sandbox beside them."""
    passes(
        project,
        """
        import unittest
        import pytest
        from service import film

        class TestFilm(unittest.IsolatedAsyncioTestCase):
            @pytest.fixture(autouse=True)
            def flora_of_the_test(self, flora):
                self.flora = flora

            async def test_it(self):
                assert len(await film(self.flora, 2)) == 2
        """,
    )


def test_a_fixture_that_yields_inside_a_task_group(project: pytest.Pytester) -> None:
    """The beginning of a fixture, the test and its end share a task and a context, as scopes and groups need."""
    passes(
        project,
        """
        import asyncio
        import contextvars
        import anyio
        import pytest
        from service import film

        setting = contextvars.ContextVar("setting", default=0)
        ended = []

        @pytest.fixture
        async def group(flora):
            async with anyio.create_task_group() as group:
                group.start_soon(film, flora, 1)
                yield group

        @pytest.fixture
        async def limited(flora):
            setting.set(5)
            async with asyncio.timeout(3600), asyncio.TaskGroup() as tasks:
                yield tasks
            ended.append(await film(flora, 1))

        async def test_it(group, limited, flora):
            task = asyncio.current_task()
            limited.create_task(asyncio.sleep(60))
            with anyio.move_on_after(10) as scope:
                await anyio.sleep(100)
            assert scope.cancelled_caught
            assert len(await film(flora, 2)) == 2
            assert setting.get() == 5

        def test_the_fixture_has_ended():
            assert len(ended) == 1
        """,
        2,
    )


def test_a_task_group_of_a_fixture_that_fails(project: pytest.Pytester) -> None:
    """The test is cancelled, the group's error is reported as that of the fixture, and the next test is well."""
    project.makepyfile(
        test_service="""
        import anyio
        import pytest
        from service import film

        async def breaks():
            await anyio.sleep(1)
            raise RuntimeError("the lights went out")

        @pytest.fixture
        async def group(flora):
            async with anyio.create_task_group() as group:
                group.start_soon(breaks)
                yield

        async def test_it(group):
            await anyio.sleep(10)

        async def test_the_next(flora):
            assert len(await film(flora, 1)) == 1
        """
    )
    ran = project.runpytest_inprocess("-q")
    ran.assert_outcomes(passed=1, failed=1, errors=1)
    assert "the lights went out" in ran.stdout.str()


def test_fixtures_that_are_asked_for_by_name(project: pytest.Pytester) -> None:
    """request.getfixturevalue works in tests and fixtures, before the loop runs and while it does."""
    passes(
        project,
        """
        import asyncio
        import pytest
        from service import film

        @pytest.fixture
        def service(request):
            return request.getfixturevalue("flora")

        @pytest.fixture
        async def ready(request):
            flora = request.getfixturevalue("flora")
            yield flora
            assert len(await film(flora, 1)) == 1

        async def test_in_a_fixture(service):
            await asyncio.sleep(3600)
            assert len(await film(service, 2)) == 2

        async def test_in_a_fixture_of_the_loop(ready):
            assert len(await film(ready, 2)) == 2

        async def test_while_it_runs(request):
            assert len(await film(request.getfixturevalue("flora"), 2)) == 2

        async def test_beside_its_sandbox(request, flora_sandbox):
            flora = request.getfixturevalue("flora")
            await asyncio.sleep(3600)
            assert len(await film(flora, 2)) == flora_sandbox.accepted == 2

        @pytest.mark.asyncio
        async def test_of_another_plugin(request):
            assert len(await film(request.getfixturevalue("flora"), 2)) == 2

        def test_in_no_loop(request):
            assert request.getfixturevalue("flora_sandbox").base_url
        """,
        6,
    )


def test_hypothesis(project: pytest.Pytester) -> None:
    """A test under @given runs each example in the loop of its fixtures; one sandbox serves them all."""
    passes(
        project,
        """
        from hypothesis import given, settings, strategies as st
        from service import film

        @given(takes=st.integers(0, 3))
        @settings(max_examples=8, deadline=None)
        async def test_it(flora, flora_sandbox, takes):
            before = flora_sandbox.accepted
            assert len(await film(flora, takes)) == takes
            assert flora_sandbox.accepted == before + takes

        class TestIt:
            @settings(max_examples=4, deadline=None)
            @given(takes=st.integers(1, 2))
            async def test_it(self, flora, takes):
                assert len(await film(flora, takes)) == takes
        """,
        2,
    )


def test_hypothesis_finds_an_example_that_fails(project: pytest.Pytester) -> None:
    """A failing example is shrunk and shown; a fixture of others that lives as long as a test is refused as ever."""
    project.makepyfile(
        test_service="""
        from hypothesis import given, settings, strategies as st

        @given(takes=st.integers(0, 9))
        @settings(deadline=None)
        async def test_it(flora, takes):
            assert takes < 5

        @given(takes=st.integers(0, 9))
        async def test_fixture_of_others(flora, tmp_path, takes):
            pass
        """
    )
    ran = project.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    ran.assert_outcomes(failed=2)
    assert "takes=5" in ran.stdout.str()
    assert "function-scoped fixture" in ran.stdout.str()


def test_an_hour_costs_less_than_two_seconds() -> None:
    """A clock that jumps 3,600 times beside open connections does not wait for the kernel each time."""

    async def tick() -> float:
        async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
            await flora.models.list()
            asyncio.get_running_loop().set_debug(False)
            tracer = sys.gettrace()
            sys.settrace(None)  # the tracer of a coverage run is not what is measured
            try:
                began = time.process_time()
                for _ in range(3600):
                    await asyncio.sleep(1)
                return time.process_time() - began
            finally:
                sys.settrace(tracer)

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        assert runner.run(tick()) < 2
