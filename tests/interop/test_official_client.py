"""FLORA's official npm client works against the sandbox, unchanged."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from flora_async.sandbox import Sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.proof]

CLIENT = "@flora-ai/flora@0.11.0"


@pytest.fixture
def program(tmp_path: Path) -> str:
    """Install the client beside a program that drives it."""
    (tmp_path / "package.json").write_text('{"private": true}')
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", CLIENT],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    return str(shutil.copy(Path(__file__).with_name("official.mjs"), tmp_path))


async def test_the_official_client(program: str) -> None:
    """It creates, retrieves and pages through 250 runs, and gets its own error classes."""
    async with Sandbox(time_scale=0.01) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *("node", program),
            env={**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
        assert sandbox.accepted >= 250
    told = json.loads(output)
    assert told["started"]["type"] == "generation"
    assert told["run"]["progress"] == 100
    assert "a mug" in told["run"]["outputs"][0]["url"]
    assert told["listed"] >= 250
    assert told["known"] == 250
    assert (told["models"], told["workspaces"]) == (1, 1)
    assert told["errors"] == [
        "BadRequestError 400 input_validation_error",
        "AuthenticationError 401 invalid_api_key",
        "NotFoundError 404 not_found",
        "RateLimitError 429 rate_limited",
    ]
