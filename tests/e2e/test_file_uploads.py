"""Uploads with other programs: FLORA's npm client, a process whose memory is measured, and one that is killed."""

import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from aiohttp import web

from flora_async.models import Order
from flora_async.sandbox import Sandbox
from flora_async.sandbox._assets import AssetStore

pytestmark = pytest.mark.proof

PNG = b"\x89PNG\r\n\x1a\n"
KILLS, ORDERS, FILES = 10, 200, 20
LARGE = 200 * 2**20


def environment(sandbox: Sandbox) -> dict[str, str]:
    """Return the variables that lead a program to a sandbox."""
    return {**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url}


async def run_program(sandbox: Sandbox, *words: str) -> Any:
    """Run a program to its end, and return the JSON that it printed."""
    process = await asyncio.create_subprocess_exec(
        *words, env=environment(sandbox), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return json.loads(output)


@pytest.mark.anyio
async def test_the_official_client_uploads(official_client: Path, tmp_path: Path) -> None:
    """Its assets operations and its ``upload()`` in all three ways work unchanged, without a key at the store."""
    program = str(shutil.copy(Path(__file__).with_name("assets.mjs"), official_client))
    small, large = tmp_path / "small.png", tmp_path / "large.mp4"
    small.write_bytes(PNG + b"small")
    large.write_bytes(b"\0\0\0\x18ftypisom" + bytes(6 * 2**20))
    async with Sandbox(time_scale=0.01) as sandbox:
        told = await run_program(sandbox, "node", program, str(small), str(large))
        assert sandbox._assets.refused_keys == 0
        (order,) = sandbox.orders.values()
        assert isinstance(order, Order)
        assert sandbox._assets.input_failure(order.params) is None
    assert told["uploads"] == [
        ["ready", "direct", len(PNG) + 5],
        ["ready", "signed_url", large.stat().st_size],
        ["ready", "url", None],
    ]
    assert (told["stored"], told["completed"], told["retrieved"]) == (204, "pending_upload", "large.mp4")
    assert (told["listed"], told["distinct"]) == (4, 4)
    assert told["errors"] == [
        "ConflictError 409 conflict",
        "ConflictError 409 conflict",
        "NotFoundError 404 not_found",
        "BadRequestError 400 input_validation_error",
    ]


UPLOAD = dedent("""
    import asyncio, json, sys
    from pathlib import Path
    from flora_async import Flora

    def peak():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    async def main():
        async with Flora() as flora:
            await flora.workspaces.list()
            before, sent = peak(), []
            asset = await flora.assets.upload(
                Path(sys.argv[1]), workspace_id="ws_demo", on_progress=lambda done, _: sent.append(done)
            )
        starts = sum(done == 0 for done in sent)
        print(json.dumps({"status": asset.status, "starts": starts, "before": before, "peak": peak()}))

    asyncio.run(main())
""")


@pytest.mark.anyio
async def test_200_mb_within_60_mb_cut_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store cuts the connection twice, 80 MB into the file; the process never has more than 60 MB."""
    cuts: list[int] = []
    real: Callable[[AssetStore, web.Request], Awaitable[web.Response]] = AssetStore._store

    async def cut(store: AssetStore, request: web.Request) -> web.Response:
        if len(cuts) == 2:
            return await real(store, request)
        size = 0
        while size < 80 * 2**20:
            size += len(await request.content.readany())
        cuts.append(size)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    monkeypatch.setattr(AssetStore, "_store", cut)
    path = tmp_path / "film.mp4"
    with path.open("wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(LARGE)
    async with Sandbox(time_scale=0.01) as sandbox:
        told = await run_program(sandbox, sys.executable, "-c", UPLOAD, str(path))
        (asset,) = sandbox._assets._assets.values()
        assert (asset.size, asset.uploaded_via) == (LARGE, "signed_url")
    assert (told["status"], told["starts"], len(cuts)) == ("ready", 3, 2)
    assert told["peak"] <= 60, told


BATCH = dedent("""
    import asyncio, sys
    from pathlib import Path
    import backoff
    from flora_async import Flora, Order
    from flora_async.durable import Batches

    folder, count, files = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    orders = [
        Order(
            type="text", prompt=f"mug {n}", workspace_id="ws_demo", project_id="prj_demo",
            params={"image_url": folder / f"{n % files}.mp4"},
        )
        for n in range(count)
    ]

    async def main():
        async with Flora() as flora, Batches(
            flora, database=f"sqlite:///{folder}/b.db", poll=lambda: backoff.expo(base=1, factor=0.2)
        ) as batches:
            print(await batches["mugs"].run(orders, rate=40))

    asyncio.run(main())
""")


@pytest.mark.flora_sandbox(idempotency="replay", time_scale=0.02)
def test_a_batch_with_files_is_killed_ten_times(tmp_path: Path, flora_sandbox: Sandbox) -> None:
    """200 orders with 20 files end once and are billed once; no ready file is sent again, a cut one once for a kill."""
    for number in range(FILES):  # large enough for the reserved way, so that kills hit uploads
        (tmp_path / f"{number}.mp4").write_bytes(b"\0\0\0\x18ftypisom" + bytes([number]) * (5 * 2**20))
    dice = random.Random(3)
    words = [sys.executable, "-c", BATCH, str(tmp_path), str(ORDERS), str(FILES)]
    log = (tmp_path / "said.txt").open("ab")
    moments: list[tuple[int, int, int]] = []
    ready: dict[str, int] = {}
    for kill in range(KILLS + 1):
        process = subprocess.Popen(words, env=environment(flora_sandbox), stdout=log, stderr=log)
        if kill == KILLS:
            assert process.wait(300) == 0, (tmp_path / "said.txt").read_text()
            break
        events, wanted = (count_posts, 18) if kill < KILLS / 2 else (count_orders, 25)  # uploads first, then orders
        enough = events(flora_sandbox) + dice.randint(1, wanted)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and events(flora_sandbox) < enough:
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.05))
        process.kill()
        process.wait()
        for digest in read_digests(tmp_path / "b.db"):
            ready.setdefault(digest, count_uploads(flora_sandbox)[digest])
        moments.append((flora_sandbox.requests["POST /assets"], len(ready), flora_sandbox.accepted))
    log.close()
    assert flora_sandbox.accepted == ORDERS, moments
    assert sorted(order.prompt for order in flora_sandbox.orders.values()) == sorted(f"mug {n}" for n in range(ORDERS))
    sent = count_uploads(flora_sandbox)
    assert len(sent) == FILES
    assert {digest: sent[digest] for digest in ready} == ready, moments
    assert max(sent.values()) <= 1 + KILLS
    (tmp_path / "counts.json").write_text(json.dumps({"uploads": sorted(sent.values()), "moments": moments}))
    assert moments[0][1] + moments[-1][2] > 0, moments


def count_posts(sandbox: Sandbox) -> int:
    """Return the number of requests that create or complete an asset."""
    return sandbox.requests["POST /assets"]


def count_orders(sandbox: Sandbox) -> int:
    """Return the number of accepted orders."""
    return sandbox.accepted


def read_digests(path: Path) -> list[str]:
    """Return the digests of the files that a database of batches knows."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'flora_files'").fetchall():
            return []
        return [digest for (digest,) in connection.execute("SELECT digest FROM flora_files")]


def count_uploads(sandbox: Sandbox) -> Counter[str]:
    """Return how often the bytes of each file were stored, by their digest."""
    assets = list(sandbox._assets._assets.values())
    return Counter(sha256(asset.read()).hexdigest() for asset in assets if asset.size)
