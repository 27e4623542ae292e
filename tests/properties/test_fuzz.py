"""Properties that hold whatever comes: of the readers, and of a client in any order of doings."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from scripted import tasks_of_ours
from secrets_of import KEY, assert_secret

from flora_async import CreateOutcomeUnknownError, Flora, FloraError
from flora_async.sandbox import Sandbox

ORDER: dict[str, Any] = {"type": "text", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}
FAULTS: dict[Any, float] = {
    "reset": 0.05, "lost_reply": 0.1, "half_reply": 0.1, "repeated_reply": 0.05, "garbage": 0.05, "empty": 0.05,
    "wrong_run": 0.05, "html": 0.05, "redirect": 0.02, 503: 0.05, 429: 0.02,
}  # fmt: skip


@settings(max_examples=500)
@given(st.binary(min_size=3, max_size=400))
def test_only_our_errors_leave_the_readers(data: bytes) -> None:
    """The same target that the fuzzer has."""
    fuzz.one_input(data)


class Client(RuleBasedStateMachine):
    """A client under faults: create, wait, cancel, list, close in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.runs: list[str] = []
        self.unknown: list[CreateOutcomeUnknownError] = []
        self.keys: list[str] = []

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Do something, in bounded time."""

        async def bounded() -> Any:
            async with asyncio.timeout(20):
                return await coroutine

        return self.runner.run(bounded())

    def ours(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Do something that may fail, in our words."""
        try:
            return self.run(coroutine)
        except FloraError as error:
            assert_secret(error)
            return error

    @initialize(seed=st.integers(0, 10**6), account=st.sampled_from(("reject", "replay")))
    def open(self, seed: int, account: Any) -> None:
        """Begin with a sandbox that does wrong."""

        async def begin() -> None:
            self.sandbox = Sandbox(api_key=KEY, time_scale=0.001, faults=FAULTS, seed=seed, idempotency=account)
            await self.sandbox.start()
            self.flora = Flora(
                self.sandbox.api_key,
                base_url=self.sandbox.base_url,
                timeout=1,
                on_create=lambda key, order: self.keys.append(key),
            )

        self.run(begin())

    @rule()
    def create(self) -> None:
        """Order; what is told is true."""
        begun = self.ours(self.flora.generations.create(**ORDER))
        if isinstance(begun, CreateOutcomeUnknownError):
            self.unknown.append(begun)
        elif not isinstance(begun, FloraError):
            assert begun.run_id in self.sandbox.orders
            assert begun.run_id not in self.runs
            self.runs.append(begun.run_id)

    @rule(steps=st.integers(0, 30))
    def cancel_a_create(self, steps: int) -> None:
        """Order, and change our mind."""

        async def begin_and_cancel() -> None:
            task = asyncio.create_task(self.flora.generations.create(**ORDER))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled() and not task.exception():
                self.runs.append(task.result().run_id)

        self.run(begin_and_cancel())

    # What there is to wait for depends on time: as preconditions, these two conditions would make the draws do so too.

    @rule(which=st.integers(0, 100))
    def wait(self, which: int) -> None:
        """Wait for a run, for a while."""
        if not self.runs:
            return
        run_id = self.runs[which % len(self.runs)]
        finished = self.ours(self.flora.wait_for_run(run_id, timeout=0.5))
        assert isinstance(finished, FloraError) or finished.run_id == run_id

    @rule()
    def recover(self) -> None:
        """Ask what became of an order."""
        if not self.unknown:
            return
        unknown = self.unknown.pop()
        found = self.ours(self.flora.recover_create(unknown, known=self.runs))
        if not isinstance(found, FloraError):
            assert found.run_id not in self.runs
            self.runs.append(found.run_id)

    @rule()
    def list(self) -> None:
        """Walk the history."""

        async def walk() -> None:
            async for _ in self.flora.generations.list(limit=2):
                pass

        self.ours(walk())

    @rule()
    def close(self) -> None:
        """Close the client, perhaps not for the first time."""
        self.run(self.flora.close())

    def teardown(self) -> None:
        """Close; nothing was billed twice, and nothing is left running."""

        async def end() -> None:
            await self.flora.close()
            assert len(set(self.keys)) == len(self.keys)
            assert self.sandbox.accepted <= len(self.keys)
            assert len(set(self.runs)) == len(self.runs)
            assert tasks_of_ours() == {asyncio.current_task()}
            await self.sandbox.close()

        if hasattr(self, "flora"):
            self.run(end())
        self.runner.close()


def test_a_client_in_any_order_of_doings(change_policies: Callable[..., None]) -> None:
    """Only our errors, in bounded time; no key in them, and no task left."""
    pauses = ("first_delay", "rate_limit_pause", "resend_pause", "resend_pause_after_timeout")
    change_policies(
        retry=dict.fromkeys(pauses, 0.002),
        recovery={"pauses": (0.005,), "max_wait_for_others": 0.002},
        rate_limit={"min_rate": 100.0},
        poll={"min_delay": 0.01, "max_delay": 0.02},
    )
    machine = Client.TestCase
    machine.settings = settings(
        max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
    )
    machine().runTest()
