"""The examples do what they say, as they stand, without a warning."""

import asyncio
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
import uvicorn
from PIL import Image
from ports import free_port
from programs import complaints_of

from flora_async.sandbox import Sandbox
from flora_async.webhooks import sign

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.rglob("*.py"))
STRICT = (sys.executable, "-W", "error", "-X", "dev")
UVICORN = ("-m", "uvicorn", "--lifespan", "on", "--log-level", "warning", "--app-dir", str(EXAMPLES))
SERVICES = {
    "aiohttp": (str(EXAMPLES / "webhook_aiohttp.py"),),
    "fastapi": (*UVICORN, "webhook_fastapi:app"),
    "django": (*UVICORN, "webhook_django:application"),
    "progress": (*UVICORN, "progress_fastapi:app"),
}


def environment(sandbox: Sandbox) -> dict[str, str]:
    """Give what `flora-async sandbox` has one export."""
    return {
        **os.environ,
        "FLORA_API_KEY": sandbox.api_key,
        "FLORA_BASE_URL": sandbox.base_url,
        "FLORA_WEBHOOK_SECRET": sandbox.webhook_secret,
    }


async def listens(port: int, process: Process) -> None:
    """Wait until somebody listens."""
    while process.returncode is None:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return await writer.wait_closed()
    raise AssertionError(await process.communicate())


@asynccontextmanager
async def service(name: str, sandbox: Sandbox) -> AsyncIterator[aiohttp.ClientSession]:
    """Run one of the services, and end it as a supervisor does: it closes its client, and says nothing."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = () if name == "aiohttp" else ("--port", str(port))
    process = await asyncio.create_subprocess_exec(
        *(*STRICT, *SERVICES[name], *options),
        env={**environment(sandbox), "PORT": str(port), "PUBLIC_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        await asyncio.wait_for(listens(port, process), 30)
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(30)) as session:
            yield session
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        _, complaints = await asyncio.wait_for(process.communicate(), 30)
    # In the development mode of Python, aiohttp.web writes its access log.
    assert re.sub(r'127.0.0.1 \[.*" [0-9]{3} .*\n', "", complaints_of(complaints)) == ""


async def run(sandbox: Sandbox, folder: Path, *words: str, typed: str = "") -> tuple[int | None, str, str]:
    """Run a program to its end; give its code and what it says."""
    process = await asyncio.create_subprocess_exec(
        *(*STRICT, str(EXAMPLES / words[0]), *words[1:]),
        cwd=folder,
        env=environment(sandbox),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, complaints = await asyncio.wait_for(process.communicate(typed.encode()), 60)
    return process.returncode, output.decode(), complaints_of(complaints)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["aiohttp", "fastapi", "django"])
async def test_a_service_draws_what_flora_calls_back_for(name: str) -> None:
    """Each image by one look, long before polling would have looked; the client is closed with the service."""
    async with Sandbox(time_scale=0.1) as sandbox, service(name, sandbox) as session:

        async def draw(prompt: str) -> dict[str, str]:
            async with session.post("/images", params={"prompt": prompt}) as response:
                assert response.status == 200, await response.text()
                drawn: dict[str, str] = await response.json()
                return drawn

        drawn = await asyncio.gather(*(draw(f"mug {number}") for number in range(3)))
        assert {one["run_id"] for one in drawn} == set(sandbox.orders)
        assert all(one["run_id"] in one["url"] for one in drawn)
        assert sandbox.requests["GET /runs"] + sandbox.requests["GET /generations"] <= 3


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["aiohttp", "fastapi", "django"])
async def test_a_service_turns_strangers_away(name: str) -> None:
    """With a 400; FLORA's own call-back is taken, again too; a refused order is told as what it is."""
    async with Sandbox(time_scale=0.01) as sandbox, service(name, sandbox) as session:
        told = {"run_id": "run_1", "status": "completed"}
        body = msgspec.json.encode({"id": "whd_1", "type": "run.completed", "created_at": 1, "data": told})

        async def post(path: str, headers: dict[str, str] | None = None) -> int:
            async with session.post(path, data=body if headers else None, headers=headers) as response:
                return response.status

        assert await post("/flora", sign(body, "whsec_of_a_stranger")) == 400
        assert [await post("/flora", sign(body, sandbox.webhook_secret)) for _ in range(2)] == [204, 204]
        assert await post("/images?prompt=") == 400
        assert await post("/images?prompt=a+mug+[fail:safety_blocked]") == 502
        sandbox.fail_next(402)
        assert await post("/images?prompt=a+mug") == 502


def events(text: str) -> list[tuple[str, dict[str, object]]]:
    """Read server-sent events."""
    found = re.findall(r"event: (.*)\ndata: (.*)\n", text.replace("\r", ""))
    return [(name, json.loads(line)) for name, line in found]


@pytest.mark.anyio
async def test_progress_is_streamed() -> None:
    """From the run id to the outputs."""
    async with Sandbox(time_scale=0.1) as sandbox, service("progress", sandbox) as session:
        async with session.post("/videos", params={"prompt": "a day"}) as response:
            assert response.status == 202
            run_id = (await response.json())["run_id"]
        async with session.get(f"/videos/{run_id}/events") as response:
            assert response.content_type == "text/event-stream"
            told = events(await response.text())
        assert told[0][0] in {"pending", "running"}
        assert told[-1][0] == "completed"
        assert all(run["run_id"] == run_id for _, run in told)
        assert told[-1][1]["outputs"]
        async with session.post("/videos", params={"prompt": ""}) as response:
            assert response.status == 400


@asynccontextmanager
async def progress(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[aiohttp.ClientSession]:
    """Run the service of progress in the loop of the test, whose time is virtual."""
    monkeypatch.syspath_prepend(EXAMPLES)
    for name, value in environment(sandbox).items():
        monkeypatch.setenv(name, value)
    server = uvicorn.Server(uvicorn.Config("progress_fastapi:app", port=0, lifespan="on", log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.1)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    async with aiohttp.ClientSession(url) as session:
        yield session
    server.should_exit = True
    await serving


async def test_who_goes_away_is_looked_for_no_more(flora_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is not looked at while nobody reads."""
    polls = flora_sandbox.requests
    async with progress(flora_sandbox, monkeypatch) as session:
        async with session.post("/videos", params={"prompt": "a day [slow]"}) as response:
            run_id = (await response.json())["run_id"]
        async with session.get(f"/videos/{run_id}/events") as response:
            await response.content.readline()
            await asyncio.sleep(20)
            assert polls["GET /runs"] > 1
            response.close()
        await asyncio.sleep(1)
        before = polls["GET /runs"]
        await asyncio.sleep(120)
        assert polls["GET /runs"] == before
        async with session.get(f"/videos/{run_id}/events") as response:
            assert [name for name, _ in events(await response.text())] == ["completed"]


async def test_progress_of_no_run(flora_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is an event that says so."""
    async with (
        progress(flora_sandbox, monkeypatch) as session,
        session.get("/videos/run_of_nobody/events") as response,
    ):
        ((name, error),) = events(await response.text())
    assert name == "error"
    assert "404" in str(error["message"])


ORDERS = """type,prompt,model,params
image,a mug,,
text,"a haiku
on rain",sandbox-text,"{""seed"": 7}"
image,a duel [fail:safety_blocked],,
"""


@pytest.mark.anyio
async def test_a_batch(tmp_path: Path) -> None:
    """Each row is told of with its files or its error; a second time nothing is ordered."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    words = ("batch_csv.py", "orders.csv", "done.csv", "media")
    async with Sandbox(time_scale=0.01) as sandbox:
        assert await run(sandbox, tmp_path, *words) == (1, "", "")
        with (tmp_path / "done.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["line", "run_id", "error", "files"]
        told = {int(line): (run_id, error, files) for line, run_id, error, *files in rows}
        assert set(told) == {2, 4, 5}
        assert {run_id for run_id, _, _ in told.values()} == set(sandbox.orders)
        assert all((tmp_path / file).exists() for _, _, files in told.values() for file in files)
        assert [len(files) for _, _, files in (told[2], told[4])] == [1, 1]
        assert "safety_blocked" in told[5][1]
        assert {order.params and order.params["seed"] for order in sandbox.orders.values()} == {None, 7}
        code, _, complaints = await run(sandbox, tmp_path, *words)
        assert code == 2
        assert "done.csv" in complaints
        assert sandbox.accepted == 3


@pytest.mark.anyio
async def test_a_careful_order(tmp_path: Path) -> None:
    """A mistake is refused by sentences and not ordered, a failure has its advice, an image its URL."""
    async with Sandbox(time_scale=0.01) as sandbox:
        code, told, complaints = await run(sandbox, tmp_path, "careful_order.py", "a mug", "sandbox-image", "style=bld")
        assert (code, told, sandbox.accepted) == (2, "", 0)
        assert "did you mean 'bold'?" in complaints
        failing = "a mug [fail:GENERATION_QUEUE_TOO_LARGE]"
        code, told, complaints = await run(sandbox, tmp_path, "careful_order.py", failing, "sandbox-image")
        assert (code, told) == (1, "")
        assert complaints == "GENERATION_QUEUE_TOO_LARGE: order it again in a few minutes\n"
        words = ("careful_order.py", "a mug", "sandbox-image", "style=bold", "seed=7")
        code, told, complaints = await run(sandbox, tmp_path, *words)
        assert (code, complaints) == (0, "")
        assert told.startswith(sandbox.base_url.removesuffix("api/v1"))


@pytest.mark.anyio
async def test_a_photo_becomes_a_video(tmp_path: Path) -> None:
    """A picture of 2 MB is uploaded once and shown by the video; a file that is not there is one sentence."""
    Image.frombytes("RGB", (900, 800), os.urandom(900 * 800 * 3)).save(tmp_path / "photo.png")
    async with Sandbox(time_scale=0.01) as sandbox:
        code, said, complaints = await run(sandbox, tmp_path, "photo_to_video.py", "photo.png", "it turns", "out")
        assert (code, complaints) == (0, "")
        (path,) = (tmp_path / "out").iterdir()
        assert said == f"out/{path.name}\n"
        assert sandbox.requests["POST /assets"] == sandbox.accepted == 1
        code, _, complaints = await run(sandbox, tmp_path, "photo_to_video.py", "none.png", "it turns", "out")
        assert (code, complaints) == (1, "cannot read none.png: No such file or directory\n")
        assert sandbox.accepted == 1


@pytest.mark.anyio
async def test_a_batch_that_cannot_be_right(tmp_path: Path) -> None:
    """All faults are told with their lines, and nothing is ordered."""
    bad = "type,prompt,params\nimage,a mug,\nvidoe,a day,\ntext,,\ntext,a poem,{\ntext,a poem,,more\n"
    (tmp_path / "orders.csv").write_text(bad)
    async with Sandbox() as sandbox:
        code, _, complaints = await run(sandbox, tmp_path, "batch_csv.py", "orders.csv", "done.csv", "media")
        assert sandbox.accepted == 0
    assert code == 2
    told = complaints.splitlines()
    assert [line.split(": ")[0] for line in told] == [f"orders.csv, line {number}" for number in (3, 4, 5, 6)]
    assert "vidoe" in told[0]
    assert "`prompt`" in told[1]
    assert "one too many" in told[3]
    assert not (tmp_path / "done.csv").exists()


@pytest.mark.anyio
async def test_a_chat_through_a_pipe(tmp_path: Path) -> None:
    """Orders run beside each other, failures are told, and the end of the input waits for them."""
    typed = "hello\n/image a mug\n/text a haiku\n/video\n/image a duel [fail:safety_blocked]\n"
    async with Sandbox(time_scale=0.01) as sandbox:
        code, said, complaints = await run(sandbox, tmp_path, "chat.py", typed=typed)
        assert (code, complaints) == (0, "")
        assert sandbox.accepted == 3
    assert said.count("say /image") == 3
    assert all(f"[{number}]" in said for number in (1, 2, 3))
    assert said.count("done:") == 2
    assert "safety_blocked" in said


@pytest.mark.anyio
async def test_posters_of_photos(tmp_path: Path) -> None:
    """Each photo is uploaded, and becomes a caption and a picture."""
    for name in ("mug", "kettle"):
        Image.new("RGB", (64, 64), "teal").save(tmp_path / f"{name}.png")
    async with Sandbox(time_scale=0.01) as sandbox:
        code, said, _ = await run(sandbox, tmp_path, "posters.py", "mug.png", "kettle.png", "posters")
        assert (code, sandbox.accepted) == (0, 2)
        assert len(said.split()) == 4
    assert sorted(path.suffix for path in (tmp_path / "posters").iterdir()) == [".png", ".png", ".txt", ".txt"]


@pytest.mark.anyio
async def test_a_budget_for_lines(tmp_path: Path) -> None:
    """The estimate comes first; failures are ordered again; the budget ends the ordering, with final costs."""
    typed = "a mug\n\na lamp [fail:SERVER_ERROR]\n" + "a kettle\n" * 5
    async with Sandbox(time_scale=0.01, quote_factor=3.5, charge_delay=30) as sandbox:
        code, said, _ = await run(sandbox, tmp_path, "budget.py", "5.00", "--dry-run", typed=typed)
        assert (code, sandbox.accepted) == (0, 0)
        assert "7 images: 0.28 to 1.12 USD (catalogue)" in said
        code, said, complaints = await run(sandbox, tmp_path, "budget.py", "0.18", typed=typed)
        assert code == 1
        assert "stopped: budget" in said
        assert "4 of 7 images, 0.16 USD, 0 not settled" in said
        assert "50% of 0.18 USD" in complaints


@pytest.mark.anyio
async def test_a_chat_that_is_interrupted(tmp_path: Path) -> None:
    """It says what goes on, and ends at once."""
    async with Sandbox() as sandbox:
        process = await asyncio.create_subprocess_exec(
            *(*STRICT, str(EXAMPLES / "chat.py")),
            env=environment(sandbox),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"/video a day [slow]\n")
        while b"ordered" not in await process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 30) == 130
        (run_id,) = sandbox.orders
        assert f"{run_id} goes on at FLORA" in (await process.stdout.read()).decode()
        assert process.stderr is not None
        assert complaints_of(await process.stderr.read()) == ""
        process.stdin.close()


def test_the_service_is_tested_with_the_plugin_only(tmp_path: Path) -> None:
    """Its tests pass without any set-up; ten videos take less than a second, start of pytest's session to its end."""
    shutil.copytree(EXAMPLES / "service", tmp_path / "service")
    (tmp_path / "service" / "pytest.ini").write_text("[pytest]\n")  # or one in a folder above it, like ours, counts

    def tested(*options: str) -> str:
        words = (*STRICT[:3], "-m", "pytest", "-q", "-p", "flora_async", *options)
        alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        ran = subprocess.run(words, cwd=tmp_path / "service", env=alone, capture_output=True, text=True, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
        return ran.stdout

    assert "6 passed" in tested()
    runs = (tested("-k", "ten_scenes", "--durations=0", "-vv") for _ in range(5))
    phases = (re.findall(r"^([0-9.]+)s (?:setup|call|teardown)", run, re.MULTILINE) for run in runs)
    assert any(0 < sum(map(float, seconds)) < 1 for seconds in phases)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_an_example_is_short(program: Path) -> None:
    """Under 60 lines, and the list of them says how it is run."""
    assert len(program.read_text(encoding="utf-8").splitlines()) < 60
    assert program.name in (EXAMPLES / "README.md").read_text(encoding="utf-8")
