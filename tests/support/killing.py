"""What the tests of batches share: orders in a file, the command in a process of its own, and its results."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flora_async import Order
from flora_async.sandbox import Sandbox

COMMAND = (sys.executable, "-W", "error", "-X", "dev", "-m", "flora_async.cli", "batch")


def order(number: int, prompt: str = "mug") -> Order:
    """Give an order like no other."""
    return Order(type="text", prompt=f"{prompt} {number}", workspace_id="ws_1", project_id="prj_1")


def write_orders(path: Path, count: int) -> Path:
    """Write orders as JSON Lines, with a column in their prompts."""
    line = {"type": "text", "prompt": "mug {number}", "workspace_id": "ws_1", "project_id": "prj_1"}
    path.write_text("".join(json.dumps({**line, "number": number}) + "\n" for number in range(count)))
    return path


def start(folder: Path, sandbox: Sandbox, *words: str | Path, dev: bool = True) -> subprocess.Popen[bytes]:
    """Start ``flora-async batch ...`` in a folder; what it says goes to a file there."""
    command = COMMAND if dev else (sys.executable, *COMMAND[-3:])
    environment = {**os.environ, "FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url}
    if not dev:
        environment["PYTHONDEVMODE"] = ""
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen((*command, *map(str, words)), cwd=folder, env=environment, stdout=said, stderr=said)


def said(folder: Path) -> str:
    """Give what was said."""
    return (folder / "said.txt").read_text()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read results."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_billing(sandbox: Sandbox, lines: Sequence[dict[str, Any]], count: int) -> None:
    """Check that each order is there once, was billed once, and has its own run."""
    assert [line["index"] for line in lines] == list(range(count))
    assert sandbox.accepted == count
    assert sorted(order.prompt for order in sandbox.orders.values()) == sorted(f"mug {n}" for n in range(count))
    for line in lines:
        if line["state"] == "completed":
            assert sandbox.orders[line["run"]["run_id"]].prompt == line["order"]["prompt"]
