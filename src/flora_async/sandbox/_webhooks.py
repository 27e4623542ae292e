"""Send the sandbox's webhooks: signed and retried like FLORA's, one for each finished run with a ``callback_url``."""

from __future__ import annotations

import asyncio
import secrets
from random import Random

import aiohttp
import msgspec

from flora_async import webhooks
from flora_async.sandbox._runs import SandboxRun

RETRY_DELAYS = (0.0, 10.0, 60.0, 300.0)
"""Seconds before each delivery attempt, at time scale 1."""
DELIVERY_DELAY = 0.001
"""Seconds from the end of a run to its webhook: a poll after the webhook sees the end, whatever is rounded."""
DELIVERY_TIMEOUT = aiohttp.ClientTimeout(total=10)
API_VERSION = "2026-06-11"


class WebhookSender:
    """Sends the webhooks of a sandbox."""

    def __init__(self, *, time_scale: float, lost: float, seed: int) -> None:
        self.secret: str = f"whsec_{secrets.token_hex(16)}"
        self._time_scale = time_scale
        self._lost = lost
        self._random = Random(seed)
        self._session: aiohttp.ClientSession | None = None
        self._deliveries: set[asyncio.Task[None]] = set()

    def schedule(self, run: SandboxRun) -> None:
        """Schedule the webhook of a run for its end, unless the webhook is one of the lost ones."""
        url = run.order.callback_url
        if url is not None and self._random.random() >= self._lost:
            delivery = asyncio.get_running_loop().create_task(self._deliver(run, url))
            self._deliveries.add(delivery)
            delivery.add_done_callback(self._deliveries.discard)

    async def _deliver(self, run: SandboxRun, url: str) -> None:
        await asyncio.sleep(run.waiting + run.working + DELIVERY_DELAY)
        body = msgspec.json.encode(_event(run))
        for pause in RETRY_DELAYS:
            await asyncio.sleep(pause * self._time_scale)
            if await self._send(url, body):
                return

    async def _send(self, url: str, body: bytes) -> bool:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=DELIVERY_TIMEOUT)
        headers = {"Content-Type": "application/json", **webhooks.sign(body, self.secret)}
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return 200 <= response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def close(self) -> None:
        """Cancel all deliveries."""
        deliveries = list(self._deliveries)
        for delivery in deliveries:
            delivery.cancel()
        if deliveries:
            await asyncio.wait(deliveries)
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _event(run: SandboxRun) -> dict[str, object]:
    status = "failed" if run.failure else "completed"
    failure = {"error_code": run.failure, "error_message": run.failure_message} if run.failure else {}
    return {
        "id": f"whd_{secrets.token_hex(12)}",
        "type": f"run.{status}",
        "api_version": API_VERSION,
        "created_at": run.created_at + round(1000 * (run.waiting + run.working)),
        "data": {
            "run_id": run.run_id,
            "run_type": run.kind,
            "workspace_id": run.order.workspace_id,
            "status": status,
            **failure,
        },
    }
