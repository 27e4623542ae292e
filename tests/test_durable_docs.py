"""The pages on durable batches say what is so: their programs run."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parent.parent / "docs" / "guide" / "durable.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("program", re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL))
async def test_each_program_runs(program: str, tmp_path: Path) -> None:
    """As it stands, with key and URL from the environment, without a warning.

    But for asyncio's remark that something took a tenth of a second: launching DBOS does, where the machine has other
    work.
    """
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    async with Sandbox(time_scale=0.01) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-X", "dev", "program.py"),
            cwd=tmp_path,
            env={"FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url, "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
    assert [line for line in complaints.decode().splitlines() if not line.startswith("Executing <Task")] == []
    assert process.returncode == 0
    assert output
