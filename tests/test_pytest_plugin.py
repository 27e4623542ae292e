"""The plugin, as those who test a service with it have it: in a pytest of its own."""

import asyncio
import re

import pytest

from flora_async.pytest_plugin import VirtualLoop

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
    """Run tests, all of which pass; give what was printed."""
    project.makepyfile(test_service=tests)
    ran = project.runpytest_subprocess("-q", *options, timeout=60)
    ran.assert_outcomes(passed=count)
    return ran.stdout.str()


def test_four_lines(project: pytest.Pytester) -> None:
    """Ten videos, in less than a second."""
    told = passes(
        project,
        """
        from service import film

        async def test_film(flora, flora_sandbox):
            runs = await film(flora, takes=10)
            assert all(run.succeeded for run in runs)
            assert flora_sandbox.accepted == 10
        """,
        1,
        "--durations=0",
    )
    seconds = re.search(r"([0-9.]+)s call", told)
    assert seconds is not None
    assert float(seconds[1]) < 1


def test_time_is_virtual_and_the_mark_sets_it(project: pytest.Pytester) -> None:
    """An hour passes in no time; downloads and their threads do not make it jump."""
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


def test_faults(project: pytest.Pytester) -> None:
    """By mark, of the class and of the test, and by hand."""
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
    """With its own words, and nothing is left behind."""
    project.makepyfile(test_service="async def test_it(flora):\n    assert (await flora.models.list()) == ()\n")
    ran = project.runpytest_subprocess("-q", timeout=60)
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

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(main()) == ["thread", "timer"]
