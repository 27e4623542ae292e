"""Call-backs: what FLORA says by itself settles the same waits as what is asked, and asking becomes a safety net."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from flora_async import webhooks
from flora_async.webhooks import WebhookEvent

log = logging.getLogger("flora_async")

REMEMBERED = 100_000
"""Of how many deliveries it is known that they came."""


class Inbox:
    """Takes FLORA's call-backs from any web framework: ``flora.inbox()``, then ``inbox.receive(body, headers)``.

    A wait for a run that was created with a ``callback_url`` is settled when its call-back comes, by one look, since a
    call-back has no outputs. Until then the run is hardly looked at: the first time long after it should have ended.
    """

    def __init__(self, announce: Callable[[str], None], secret: str) -> None:
        self._announce = announce
        self._secret = secret
        self._seen: dict[str, None] = {}

    def __repr__(self) -> str:
        return "Inbox(***)"

    def receive(self, body: bytes, headers: Mapping[str, str]) -> WebhookEvent | None:
        """Take a call-back, from any thread; ``None``: this delivery came before, FLORA sends each at least once.

        Answer 2xx if it returns and 400 if it raises. FLORA waits for 10 seconds, and tries again after 10 seconds, a
        minute and five.

        Args:
            body: the request's bytes as they came.
            headers: the request's headers; the case of their names does not matter.

        Raises:
            WebhookVerificationError: it is not proven to be FLORA's; nothing was done.
        """
        event = webhooks.verify(body, headers, self._secret)
        if event.id in self._seen:
            return None
        self._seen[event.id] = None
        if len(self._seen) > REMEMBERED:
            self._seen.pop(next(iter(self._seen)), None)
        said = {"run_id": event.data.run_id, "event": event.type, "webhook_id": event.id}
        log.info("%s: a call-back says %s", event.data.run_id, event.type, extra=said)
        self._announce(event.data.run_id)
        return event
