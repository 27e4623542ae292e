"""Four programs as a newcomer writes them, from README and guide alone, run. `documented.py` checks their types."""

import asyncio
import csv
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import uvicorn

from flora_async import Flora, Order
from flora_async.sandbox import Sandbox

NEWCOMER = Path(__file__).parent / "newcomer"
STRICT = (sys.executable, "-W", "error", "-X", "dev")


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    """Return a server whose runs take a hundredth of FLORA's time."""
    async with Sandbox(time_scale=0.01) as own:
        yield own


async def run(sandbox: Sandbox, folder: Path, *words: str) -> str:
    """Run a program to its end, and return its output."""
    settings = {**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url}
    command = (*STRICT, str(NEWCOMER / words[0]), *words[1:])
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, env=settings, stdout=pipe, stderr=pipe)
    output, complaints = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, complaints.decode()
    return output.decode()


@pytest.mark.anyio
async def test_a_csv_of_prompts(sandbox: Sandbox, tmp_path: Path) -> None:
    """Each row is ordered once, a second start orders nothing, and the results have the row's own columns."""
    with (tmp_path / "prompts.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["sku", "prompt"], *([f"A-{number}", f"a word on {number}"] for number in range(20))]
        )
    for _ in range(2):
        assert (await run(sandbox, tmp_path, "prompts.py", "prompts.csv", "results.csv")).startswith("20 of 20 for")
    assert sandbox.accepted == 20
    with (tmp_path / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["sku"] for row in rows] == [f"A-{number}" for number in range(20)]
    assert all(row["run_id"] and row["result"] for row in rows)


@pytest.mark.anyio
async def test_a_nightly_job(sandbox: Sandbox, tmp_path: Path) -> None:
    """Two nights store each run once."""
    async with Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        for night in (1, 2):
            for number in range(3):
                order = Order(type="text", prompt=f"{night} {number}", workspace_id="ws_demo", project_id="prj_demo")
                await flora.generations.create(order)
            assert await run(sandbox, tmp_path, "nightly.py", "history.db") == f"{3 * night} runs\n"
    database = sqlite3.connect(tmp_path / "history.db")
    stored = {run_id for (run_id,) in database.execute("SELECT run_id FROM runs")}
    database.close()
    assert stored == set(sandbox.orders)


def test_a_bot_is_tested_with_the_plugin(tmp_path: Path) -> None:
    """Its tests, an hour of chat, pass in virtual time."""
    options = ("-q", "-p", "flora_async", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", NEWCOMER)
    command = (*STRICT[:3], "-m", "pytest", *options, "test_bot.py")
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=NEWCOMER, env=alone, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_a_service(flora_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An order is answered at once, its run is shown as JSON and written down, and the end of the service is quick."""
    monkeypatch.syspath_prepend(NEWCOMER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLORA_API_KEY", flora_sandbox.api_key)
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    server = uvicorn.Server(uvicorn.Config("pictures:app", port=0, lifespan="on", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.1)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    async with aiohttp.ClientSession(url) as session:
        async with session.post("/pictures", params={"prompt": "a mug"}) as response:
            ordered = await response.json()
            assert response.status == 202
        assert ordered["quote"] == 0.04
        await asyncio.sleep(60)
        async with session.get(f"/pictures/{ordered['run_id']}") as response:
            assert (await response.json())["status"] == "completed"
        async with session.get("/pictures/run_unknown") as response:
            assert response.status == 404
        async with session.post("/pictures", params={"prompt": "late [slow]"}) as response:
            late = (await response.json())["run_id"]
    server.should_exit = True
    async with asyncio.timeout(2):
        await serving
    finished = [json.loads(line)["run_id"] for line in (tmp_path / "finished.jsonl").read_text().splitlines()]
    assert finished == [ordered["run_id"]]
    started = [json.loads(line)["run_id"] for line in (tmp_path / "started.jsonl").read_text().splitlines()]
    assert started == [ordered["run_id"], late]
