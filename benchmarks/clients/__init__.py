"""The measured clients: one small file each, the same operations written as each client's own users would.

A contestant has some of ``retrieve``, ``create`` and ``history`` (calls), ``wait`` (for a run by its id) and
``await_run`` (starts a run and awaits its end by the client's own waiter).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

ORDER: dict[str, Any] = json.loads(Path(__file__).with_name("order.json").read_text(encoding="utf-8"))
"""The order that each create sends, with its number at the end of the prompt."""


def order(number: int, **fields: str) -> dict[str, Any]:
    """Return the fields of one order."""
    return {**ORDER, "prompt": f"{ORDER['prompt']} {number}", **fields}


class PagedHistory:
    """Walks a history by the client's own request for one page."""

    async def page(self, cursor: str | None) -> Any:
        """Return one page of a hundred items."""
        raise NotImplementedError

    async def generations(self) -> AsyncIterator[Any]:
        """Yield all items of the history."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.page(cursor)
            for generation in page.generations:
                yield generation
            cursor = page.meta.next_cursor

    async def history(self) -> int:
        """Return the number of items."""
        items = 0
        async for _ in self.generations():
            items += 1
        return items


def page_query(cursor: str | None) -> dict[str, str]:
    """Return the query of one page."""
    return {"limit": "100", "cursor": cursor} if cursor else {"limit": "100"}
