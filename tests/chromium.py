"""A real Chromium, headless, driven over its DevTools protocol."""

import asyncio
import base64
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp

COMMAND = (
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--remote-debugging-port=0", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
)
PATIENCE = 60.0
"""Seconds."""


class Page:
    """A tab, and what it complained of: errors of scripts, of the console and of the security policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.complaints: list[str] = []
        self.fetched: list[str] = []
        self._socket = socket
        self._count = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                self._answers.pop(told["id"]).set_result(told)
                continue
            said = told.get("params", {})
            match told["method"]:
                case "Page.loadEventFired":
                    self._loaded.set()
                case "Network.requestWillBeSent":
                    self.fetched.append(said["request"]["url"])
                case "Runtime.exceptionThrown":
                    self.complaints.append(str(said["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                    self.complaints.append(str(said["args"]))
                case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                    entry = said["entry"]
                    self.complaints.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")

    async def ask(self, method: str, **params: object) -> dict[str, Any]:
        """Send a command, and give what it returns."""
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._count, "method": method, "params": params})
        told = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in told, told
        given: dict[str, Any] = told["result"]
        return given

    async def open(self, url: str, *, script: bool = True) -> None:
        """Go somewhere, and wait until all is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.ask(f"{domain}.enable")
        await self.ask("Emulation.setScriptExecutionDisabled", value=not script)
        self._loaded.clear()
        await self.ask("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def value(self, expression: str) -> Any:
        """Give what an expression comes to in the page."""
        # As if somebody had asked for it: a player plays only then.
        ways = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        told = await self.ask("Runtime.evaluate", expression=expression, **ways)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(PATIENCE):
            while not await self.value(f"Boolean({expression})"):
                await asyncio.sleep(0.05)

    async def picture(self, path: Path, *, width: int, height: int, dark: bool) -> None:
        """Save what is seen."""
        await self.ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        await self.ask(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        seen = "image.getBoundingClientRect().top < innerHeight"
        await self.until(f"[...document.images].every((image) => image.complete || !({seen}))")
        told = await self.ask("Page.captureScreenshot", format="png")
        await asyncio.to_thread(path.write_bytes, base64.b64decode(told["data"]))

    async def close(self) -> None:
        """Stop listening."""
        self._reader.cancel()
        await self._socket.close()


class Chromium:
    """A browser with a profile of its own."""

    def __init__(self, folder: Path) -> None:
        self._profile = folder / "profile"
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(*COMMAND, f"--user-data-dir={self._profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._http = await self._stack.enter_async_context(aiohttp.ClientSession())
        told = self._profile / "DevToolsActivePort"
        async with asyncio.timeout(PATIENCE):
            while not (told.exists() and told.read_text().count("\n")):
                assert self._process.returncode is None, "chromium has ended"
                await asyncio.sleep(0.05)
        self._port = int(told.read_text().split()[0])
        return self

    @contextlib.asynccontextmanager
    async def page(self) -> AsyncIterator[Page]:
        """Open a tab."""
        async with self._http.put(f"http://127.0.0.1:{self._port}/json/new?about:blank") as answer:
            tab = await answer.json()
        page = Page(await self._http.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0))
        try:
            yield page
        finally:
            await page.close()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._stack.aclose()
        # The whole group: a browser is many processes, and what is left of one would hold its profile.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await asyncio.to_thread(shutil.rmtree, self._profile, ignore_errors=True)
