"""Chromium without a window, by its own protocol: opens pages, runs expressions in them, takes pictures of them."""

import asyncio
import base64
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

OPTIONS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-port=0
    --autoplay-policy=user-gesture-required
"""
ONLY_HERE = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
PATIENCE = 60.0


class Browser:
    """One page of a running Chromium."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        """What the console told as an error or a warning, what was not caught, and each dialog."""
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._page: str | None = None

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, of the page once there is one."""
        number = next(self._numbers)
        answered = self._answers[number] = asyncio.get_running_loop().create_future()
        told = {"id": number, "method": method, "params": params}
        await self._socket.send_json(told if self._page is None else {**told, "sessionId": self._page})
        async with asyncio.timeout(PATIENCE):
            answer = await answered
        assert "error" not in answer, (method, answer)
        given: dict[str, Any] = answer["result"]
        return given

    async def listen(self) -> None:
        """Take what the browser tells, until it ends."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
            else:
                self._remember_finished(told["method"], told["params"])

    def _remember_finished(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded.set()
        elif event == "Log.entryAdded":
            entry = params["entry"]
            if entry["level"] in ("error", "warning"):
                self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')[:200]}")
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(params["args"])[:500])
        elif event in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening", "Target.targetCreated"):
            self.complaints.append(f"{event}: {params}"[:500])

    async def begin(self) -> None:
        """Open an empty page."""
        made = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._page = attached["sessionId"]
        for part in ("Page", "Runtime", "Log"):
            await self.call(f"{part}.enable")

    async def open(self, url: str) -> None:
        """Open a page and wait until it has loaded."""
        self._loaded.clear()
        answer = await self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        async with asyncio.timeout(PATIENCE):
            await self._loaded.wait()

    async def run(self, expression: str) -> Any:
        """Give what an expression, or the promise that it is, comes to in the page."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(PATIENCE):
            while not await self.run(expression):
                await asyncio.sleep(0.05)

    async def size(self, width: int, height: int, *, scale: float = 1.0) -> None:
        """Give the page a size, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def prefer(self, **features: str) -> None:
        """Say what its user prefers, like ``color_scheme="dark"``."""
        listed = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=listed)

    async def picture(self, path: Path, **options: Any) -> None:
        """Take a picture of what is seen."""
        taken = await self.call("Page.captureScreenshot", format="png", **options)
        path.write_bytes(base64.b64decode(taken["data"]))


@asynccontextmanager
async def chromium(*options: str) -> AsyncIterator[Browser]:
    """Start Chromium, with nothing of an earlier one and no way beyond this machine."""
    program = shutil.which("chromium")
    assert program is not None, "these tests need chromium: apt-get install chromium"
    with TemporaryDirectory(ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            *(program, *OPTIONS.split(), ONLY_HERE, *options, f"--user-data-dir={home}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        stderr = process.stderr
        try:
            async with asyncio.timeout(PATIENCE):
                while not (line := await stderr.readline()).startswith(b"DevTools listening on "):
                    assert line, "chromium did not start"
            drain = asyncio.create_task(_drain(stderr))
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(line.split()[-1].decode(), max_msg_size=0) as socket,
            ):
                browser = Browser(socket)
                listening = asyncio.create_task(browser.listen())
                await browser.begin()
                yield browser
                listening.cancel()
            drain.cancel()
            await asyncio.wait([listening, drain])
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.read(65536):
        pass
