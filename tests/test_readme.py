"""The README says what is so: its programs run, its commands are the ones that are tested."""

import asyncio
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import flora_async
from flora_async.cli import PROGRAM
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = [textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]


@pytest.mark.parametrize(
    "program", PROGRAMS, ids=lambda program: f"line{README[: README.index(program)].count(chr(10))}"
)
async def test_each_program_of_the_readme_runs(program: str, tmp_path: Path) -> None:
    """As it stands, with key and URL from the environment, without a warning."""
    path = tmp_path / "program.py"
    path.write_text(program, encoding="utf-8")
    async with Sandbox(time_scale=0.01) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-X", "dev", path.name),
            cwd=tmp_path,
            env={"FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url, "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
    assert complaints.decode() == ""
    assert process.returncode == 0
    assert output


def test_the_first_program_is_the_one_that_the_demo_prints() -> None:
    """Ten lines, the same in both places."""
    assert PROGRAMS[0] == PROGRAM


def test_the_two_commands_stand_first() -> None:
    """As they are tested."""
    (first, *_) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    assert first.splitlines() == [
        'python3 -m venv .venv && .venv/bin/pip install -q ".[demo]" && .venv/bin/flora-async demo',
        "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox -s tests",
    ]


def test_the_readme_is_short() -> None:
    """Under 200 lines."""
    assert len(README.splitlines()) < 200


def test_the_changelog_knows_this_version() -> None:
    """Each version has its chapter."""
    assert f"## {flora_async.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
