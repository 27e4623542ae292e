"""The measured clients: one small file each, the same operations written as each client's own users would.

A contestant has some of ``retrieve``, ``create`` and ``history`` (calls), ``wait`` (for a run by its id) and
``await_run`` (starts a run and awaits its end by the client's own waiter).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ORDER: dict[str, Any] = json.loads(Path(__file__).with_name("order.json").read_text(encoding="utf-8"))
"""The order that each create sends, with its number at the end of the prompt."""


def order(number: int, **fields: str) -> dict[str, Any]:
    """Return the fields of one order."""
    return {**ORDER, "prompt": f"{ORDER['prompt']} {number}", **fields}
