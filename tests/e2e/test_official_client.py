"""FLORA's official npm client works against the sandbox, unchanged."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image

from flora_async import WebhookVerificationError
from flora_async.sandbox import Sandbox, _assets
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


OPERATIONS = 40
"""Number of operations of the client."""


async def test_every_operation_of_the_official_client(official_client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, unchanged, get responses of the types that they promise, and their runs end with outputs."""
    monkeypatch.setattr(_assets, "RESERVATION_SECONDS", 3.0)
    program = str(shutil.copy(Path(__file__).with_name("operations.mjs"), official_client))
    picture = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(picture, "PNG")
    assets = b64encode(picture.getvalue()).decode()
    async with Sandbox(time_scale=0.01) as sandbox:
        process = await asyncio.create_subprocess_exec(
            *("node", program),
            env={**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url, "ASSETS": assets},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaints = await process.communicate()
        assert process.returncode == 0, complaints.decode()
    met = json.loads(output)
    calls = [name for name in met if "." in name and not name.startswith("run of")]
    assert len(calls) == OPERATIONS
    assert met["retryOfAnUpload"] == 409  # it has not failed
    assert met["assets.retry"]["upload"]["form_fields"]
    assert (met["notFoundAtTheNestedRoute"], met["malformedProject"]) == (404, "500 unknown_error")
    for name in (
        "generations.retrieve",
        "run of runs.startTechnique",
        "techniques.runs.retrieve",
        "run of actions.run",
    ):
        assert met[name]["status"] == "completed"
        assert met[name]["outputs"]
    assert [len(met[name]) for name in ("projects.list", "techniques.runs.list", "projects.listNodes")] == [5, 2, 3]
    assert [run["status"] for run in met["workspaces.projects.runNodes"]["runs"]] == ["started", "skipped"]
    types = official_client / "node_modules" / "@flora-ai" / "flora" / "resources"
    for name, (module, promised) in PROMISES.items():
        values = met[name] if isinstance(met[name], list) else [met[name]]
        for value in values:
            missing = required_fields(types / module, promised) - value.keys()
            assert not missing, f"{name} lacks {missing}"


PROMISES = {
    "workspaces.list": ("workspaces/workspaces.d.ts", "WorkspaceListResponse"),
    "projects.create": ("projects/projects.d.ts", "ProjectCreateResponse"),
    "projects.retrieve": ("projects/projects.d.ts", "ProjectRetrieveResponse"),
    "projects.list": ("projects/projects.d.ts", "ProjectListResponse"),
    "projects.listNodes": ("projects/projects.d.ts", "ProjectListNodesResponse"),
    "projects.canvas.retrieve": ("projects/canvas.d.ts", "CanvasRetrieveResponse"),
    "projects.canvas.update": ("projects/canvas.d.ts", "CanvasUpdateResponse"),
    "projects.actions.create": ("projects/actions.d.ts", "ActionCreateResponse"),
    "projects.actions.run": ("projects/actions.d.ts", "ActionRunResponse"),
    "projects.assets.attachAsset": ("projects/assets.d.ts", "AssetAttachAssetResponse"),
    "workspaces.projects.create": ("workspaces/projects/projects.d.ts", "ProjectCreateResponse"),
    "workspaces.folders.createProject": ("workspaces/folders.d.ts", "FolderCreateProjectResponse"),
    "workspaces.projects.graph": ("workspaces/projects/projects.d.ts", "ProjectGraphResponse"),
    "workspaces.projects.runNodes": ("workspaces/projects/projects.d.ts", "ProjectRunNodesResponse"),
    "workspaces.projects.canvas.applyChangeset": (
        "workspaces/projects/canvas.d.ts",
        "CanvasApplyChangesetResponse",
    ),
    "workspaces.projects.canvas.retrieveDefinition": (
        "workspaces/projects/canvas.d.ts",
        "CanvasRetrieveDefinitionResponse",
    ),
    "workspaces.projects.canvas.replaceDefinition": (
        "workspaces/projects/canvas.d.ts",
        "CanvasReplaceDefinitionResponse",
    ),
    "workspaces.library.folders.create": ("workspaces/library/folders.d.ts", "FolderCreateResponse"),
    "workspaces.library.folders.delete": ("workspaces/library/folders.d.ts", "FolderDeleteResponse"),
    "workspaces.library.folders.addItem": ("workspaces/library/folders.d.ts", "FolderAddItemResponse"),
    "generations.create": ("generations.d.ts", "GenerationCreateResponse"),
    "generations.retrieve": ("generations.d.ts", "GenerationRetrieveResponse"),
    "generations.list": ("generations.d.ts", "GenerationListResponse"),
    "runs.startGeneration": ("runs.d.ts", "RunStartGenerationResponse"),
    "runs.startTechnique": ("runs.d.ts", "RunStartTechniqueResponse"),
    "models.list": ("models.d.ts", "ModelListResponse"),
    "techniques.list": ("techniques/techniques.d.ts", "TechniqueListResponse"),
    "techniques.retrieve": ("techniques/techniques.d.ts", "TechniqueRetrieveResponse"),
    "techniques.runs.create": ("techniques/runs.d.ts", "RunCreateResponse"),
    "techniques.runs.retrieve": ("techniques/runs.d.ts", "RunRetrieveResponse"),
    "techniques.runs.list": ("techniques/runs.d.ts", "RunListResponse"),
    "actions.list": ("actions.d.ts", "ActionListResponse"),
    "actions.retrieve": ("actions.d.ts", "ActionRetrieveResponse"),
    "actions.run": ("actions.d.ts", "ActionRunResponse"),
    "assets.create": ("assets.d.ts", "AssetCreateResponse"),
    "assets.retrieve": ("assets.d.ts", "AssetRetrieveResponse"),
    "assets.list": ("assets.d.ts", "AssetListResponse"),
    "assets.retry": ("assets.d.ts", "AssetRetryResponse"),
    "assets.complete": ("assets.d.ts", "AssetCompleteResponse"),
    "feedback.record": ("feedback.d.ts", "FeedbackRecordResponse"),
}
"""Declaration of each response in the client's own types."""


def required_fields(module: Path, name: str) -> set[str]:
    """Return the fields that a declared interface requires."""
    text = module.read_text(encoding="utf-8").partition(f"export interface {name} {{")[2]
    assert text, f"{module} has no {name}"
    body = text.partition("\n}")[0]
    return set(re.findall(r"^ {4}(\w+): ", body, re.MULTILINE))


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
