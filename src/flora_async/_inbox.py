"""Receive webhooks: they settle the same waits as polls, which then are a fallback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Lock

import msgspec

from flora_async import webhooks
from flora_async.webhooks import Body, Headers, WebhookData, WebhookEvent

log = logging.getLogger("flora_async")

REMEMBERED = 100_000
"""Maximum number of delivery ids that are remembered, to mark repeated deliveries."""
UNFINISHED = frozenset({"pending", "running"})
"""Statuses of a run that can still change; a webhook about one settles nothing."""


class Inbox:
    """Receives FLORA's webhooks from any web framework: ``flora.inbox()``, then ``inbox.receive(body, headers)``.

    A webhook settles the waits for its run by one poll, since it contains no outputs. Until it comes, a run that was
    created with a ``callback_url`` is polled rarely, the first time long after it should have ended.
    """

    def __init__(self, announce: Callable[[str], None], secret: str) -> None:
        self._announce = announce
        self._secret = secret
        self._lock = Lock()
        self._seen: dict[str, None] = {}

    def __repr__(self) -> str:
        return "Inbox(***)"

    def receive(self, body: Body, headers: Headers) -> WebhookEvent:
        """Verify a webhook, settle the waits for its run, and return it. May be called from any thread.

        FLORA sends each delivery at least once. One that this inbox received before is returned again, with
        ``repeated`` true: if your own processing of the first one failed, process it now. An event that is not about
        a run (a ping, a kind that FLORA adds later) is returned as well, and settles nothing.

        Respond with 2xx if it returns and with 400 if it raises. FLORA waits for 10 seconds, and retries after 10
        seconds, a minute and five minutes.

        Args:
            body: the request's body as received.
            headers: the request's headers, in any shape that :func:`~flora_async.webhooks.verify` takes.

        Raises:
            WebhookVerificationError: the request is not proven to come from FLORA; nothing was done.
        """
        event = webhooks.verify(body, headers, self._secret)
        repeated = self._record(event.id)
        about = {"run_id": event.run_id, "webhook_type": event.type, "webhook_id": event.id}
        log.info("%s: a call-back says %s", event.run_id or event.id, event.type, extra=about)
        if repeated:
            return msgspec.structs.replace(event, repeated=True)
        if isinstance(event.data, WebhookData) and event.data.status not in UNFINISHED:
            self._announce(event.data.run_id)
        return event

    def _record(self, delivery: str) -> bool:
        """Remember a delivery; return whether it was received before."""
        if not delivery:
            return False
        with self._lock:
            if delivery in self._seen:
                return True
            self._seen[delivery] = None
            if len(self._seen) > REMEMBERED:
                del self._seen[next(iter(self._seen))]
            return False
