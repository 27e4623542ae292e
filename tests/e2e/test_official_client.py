"""FLORA's official npm client works against the sandbox, unchanged."""

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from flora_async import WebhookVerificationError
from flora_async.sandbox import Sandbox
from flora_async.webhooks import sign, verify

pytestmark = [pytest.mark.anyio, pytest.mark.proof]


async def test_the_official_client(official_client: Path) -> None:
    """It creates, retrieves and pages through 250 runs, and gets its own error classes."""
    program = str(shutil.copy(Path(__file__).with_name("official.mjs"), official_client))
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


def vectors() -> Iterator[dict[str, Any]]:
    """Make call-backs, good ones and such as others would like us to believe."""
    chance = Random(7)
    for number in range(300):
        words = "".join(chance.choice('aé√ \\"\n😀') for _ in range(chance.randrange(20)))
        data = {"run_id": f"run_{number}", "status": "failed", "error_message": words}
        event = {"id": f"whd_{number}", "type": "run.failed", "created_at": 1.8e12, "data": data}
        body = json.dumps(event, ensure_ascii=chance.random() < 0.5)
        secret = f"whsec_{chance.randrange(10**6)}é"
        at, now = 1_800_000_000, 1_800_000_000 + chance.choice((0, 0, 0, -299, 299, 300, -301, 301, 86400))
        good = sign(body.encode(), secret, now=at)["Flora-Signature"]
        header = chance.choice(
            (
                *([good] * 5),
                good.replace(",", " , "),
                good.replace("v1=", f"v1={'0' * 64},v1="),
                good.replace("v1=", "v0=") + f",v1={'a' * 64}",
                good.replace("v1=", "v2="),
                good.replace(str(at), str(at + 1)),
                good.partition(",")[0],
                good.partition(",")[2],
                good[:-1],
                good.upper(),
                "nonsense",
            )
        )
        if chance.random() < 0.1:
            body += " "
        if chance.random() < 0.1:
            secret += "x"
        yield {"body": body, "header": header, "secret": secret, "now": now}


def accepted(vector: dict[str, Any]) -> bool:
    """Say whether we accept a call-back."""
    try:
        verify(vector["body"].encode(), {"Flora-Signature": vector["header"]}, vector["secret"], now=vector["now"])
    except WebhookVerificationError:
        return False
    return True


def test_the_official_clients_verifier_agrees(official_client: Path) -> None:
    """On every one of three hundred call-backs."""
    program = str(shutil.copy(Path(__file__).with_name("webhooks.mjs"), official_client))
    given = list(vectors())
    output = subprocess.run(
        ["node", program], input=json.dumps(given).encode(), capture_output=True, check=True, timeout=60
    ).stdout
    verdicts = json.loads(output)
    assert verdicts == [accepted(vector) for vector in given]
    assert 50 < sum(verdicts) < 250
