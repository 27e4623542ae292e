"""Time, CPU and memory of an upload, beside aiohttp by hand: ``python -m benchmarks.uploads.upload [MB ...]``.

A store in a process of its own reads and discards the bytes. Each contestant is a new process for each size.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from flora_async import Flora

SIZES = (20, 1024)
ROUNDS = 3
CONTESTANTS = ("flora", "aiohttp")
FORM = {"key": "uploads/1", "policy": "cG9saWN5", "x-goog-signature": "5e"}


async def serve() -> None:
    """Serve FLORA's operations and the store, and print the port."""
    asset = {"asset_id": "asset_1", "status": "pending_upload", "url": "", "workspace_id": "ws_1"}

    async def reserve(request: web.Request) -> web.Response:
        await request.read()
        form = {"url": f"http://{request.host}/store", "file_field": "file", "form_fields": FORM}
        return web.json_response({**asset, "upload": form}, status=201)

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({**asset, "status": "ready", "url": "https://media.flora.ai/1.mp4"})

    async def store(request: web.Request) -> web.Response:
        while await request.content.readany():
            pass
        return web.Response(status=204)

    app = web.Application()
    app.add_routes(
        [
            web.post("/assets", reserve),
            web.post("/assets/asset_1/complete", complete),
            web.post("/store", store),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


async def upload_with_flora(url: str, path: Path) -> None:
    """Upload as this package does."""
    async with Flora("sk_test_1", base_url=url) as flora:
        await flora.assets.upload(path, workspace_id="ws_1")


async def upload_by_hand(url: str, path: Path) -> None:
    """Upload with three requests of aiohttp, without a check, a retry or a time limit."""
    async with aiohttp.ClientSession() as session:
        async with session.post(f"{url}/assets", json={"source": "signed-url", "workspace_id": "ws_1"}) as response:
            form = (await response.json())["upload"]
        data = aiohttp.FormData(form["form_fields"])
        with path.open("rb") as file:
            data.add_field(form["file_field"], file, filename=path.name, content_type="video/mp4")
            async with session.post(form["url"], data=data) as response:
                response.raise_for_status()
        async with session.post(f"{url}/assets/asset_1/complete", json={}) as response:
            response.raise_for_status()


def peak_memory() -> float:
    """Return the highest memory of this process in MB. Linux only."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def work(contestant: str, url: str, path: str) -> None:
    """Upload once and print the figures of this process."""
    upload = {"flora": upload_with_flora, "aiohttp": upload_by_hand}[contestant]
    before, began, cpu = peak_memory(), time.perf_counter(), time.process_time()
    asyncio.run(upload(url, Path(path)))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "growth": peak_memory() - before, "peak": peak_memory()}))


def measure(contestant: str, url: str, path: Path) -> dict[str, float]:
    """Run one upload in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.uploads.upload", "work", contestant, url, str(path)]
    measured: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return measured


def main(sizes: list[int]) -> None:
    """Measure all contestants with files of each size in MB, in turn, and print the medians."""
    words = [sys.executable, "-m", "benchmarks.uploads.upload", "serve"]
    print("| MB | client | seconds | CPU seconds | growth MB | peak MB |\n| --- | --- | --- | --- | --- | --- |")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server, tempfile.TemporaryDirectory() as folder:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            path = Path(folder) / "film.mp4"
            for size in sizes:
                with path.open("wb") as file:
                    file.write(b"\0\0\0\x18ftypisom")
                    file.truncate(size * 2**20)
                rounds = [{each: measure(each, url, path) for each in CONTESTANTS} for _ in range(ROUNDS)]
                for each in CONTESTANTS:
                    figures = [sorted(one[each][name] for one in rounds)[ROUNDS // 2] for name in rounds[0][each]]
                    shown = " | ".join(f"{figure:.2f}" for figure in figures)
                    print(f"| {size} | {each} | {shown} |")
        finally:
            server.terminate()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            asyncio.run(serve())
        case ["work", contestant, url, path]:
            work(contestant, url, path)
        case sizes:
            main([int(size) for size in sizes] or list(SIZES))
