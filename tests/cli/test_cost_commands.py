"""``flora-async costs``, and ``--dry-run`` of a create."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flora_async.cli import main
from flora_async.cli.arguments import UsageError
from flora_async.cli.costs import parse_since
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.flora_sandbox(any_key=True)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, flora_sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs the command against a sandbox and returns its output."""
    monkeypatch.setenv("FLORA_BASE_URL", flora_sandbox.base_url)
    monkeypatch.setenv("FLORA_API_KEY", "sk_test")

    def run(*words: str, code: int = 0) -> str:
        assert main(words) == code
        said = capsys.readouterr()
        return said.out if code == 0 else said.err

    return run


CREATE = ("generations", "create", "--workspace-id", "ws_1", "--project-id", "prj_1", "--prompt", "a mug", "--type")


def test_the_history_in_each_format(command: Any) -> None:
    """Rows and their sum, as a table, as JSON, as CSV, and with bars."""
    for kind in ("text", "image"):
        command(*CREATE, kind, "--wait")
    table = command("costs")
    assert table.split("\n")[0].split() == ["model", "runs", "completed", "failed", "unsettled", "charged"]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["sandbox-image", "sandbox-text", "total"]
    assert "0.0500" in table.splitlines()[-1]
    drawn = command("costs", "--draw", "--by", "project")
    assert "█" * 30 in drawn
    plain = json.loads(command("costs", "--format", "json", "--since", "1d"))
    assert plain["total"]["charged"] == pytest.approx(0.05)
    assert [row["key"] for row in plain["rows"]] == ["sandbox-image", "sandbox-text"]
    assert command("costs", "--format", "csv", "--by", "day").splitlines()[0].startswith("day,runs")
    assert len(command("costs", "--format", "jsonl").splitlines()) == 2
    assert json.loads(command("costs", "--format", "json", "--since", "2100-01-01"))["rows"] == []
    assert "--since takes a span" in command("costs", "--since", "soon", code=2)


def test_a_dry_run_of_a_create(command: Any, flora_sandbox: Sandbox) -> None:
    """The order is checked and its cost estimated; FLORA's quote is requested only with --quote."""
    told = json.loads(command(*CREATE, "image", "--model", "sandbox-image", "--dry-run"))
    assert (told["orders"], told["usd"], told["basis"]) == (1, 0.04, "catalogue")
    assert flora_sandbox.requests["POST /generate"] == 0
    told = json.loads(command(*CREATE, "image", "--dry-run", "--quote"))
    assert (told["usd"], told["basis"]) == (0.04, "quote")
    assert "prompt" in command(*CREATE[:-3], "--prompt", "", "--type", "image", "--dry-run", code=2)
    wrong = (*CREATE, "image", "--model", "sandbox-image", "--params", "stile=bold", "--dry-run")
    assert "stile" in command(*wrong, code=2)
    assert flora_sandbox.accepted == 0


def test_times_and_spans() -> None:
    """Spans are hours, days or weeks; a time without a zone is UTC."""
    assert parse_since(None) is None
    assert parse_since("36h") == timedelta(hours=36)
    assert parse_since("4w") == timedelta(days=28)
    assert parse_since("2026-11-25") == datetime(2026, 11, 25, tzinfo=UTC)
    assert parse_since("2026-11-25T10:00+02:00") == datetime(2026, 11, 25, 8, tzinfo=UTC)
    with pytest.raises(UsageError):
        parse_since("-3d")
