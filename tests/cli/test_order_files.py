"""Files of orders, and the pure parts of durable batches: consequences of a failure, outcomes as JSON."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from killing import order

from flora_async import (
    APIConnectionError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CreateOutcomeUnknownError,
    DownloadError,
    FloraError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InternalServerError,
    NotFoundError,
    Order,
    PermissionDeniedError,
    RateLimitError,
    Run,
    RunFailedError,
    RunTimeoutError,
    UnprocessableEntityError,
    models,
)
from flora_async._http.requests import encode_order
from flora_async._http.urls import parse_base_url
from flora_async.cli import arguments
from flora_async.cli.order_files import OrderLine, fill, open_orders
from flora_async.durable._store import database, outcomes, schema
from flora_async.durable._worker import policy
from flora_async.models import FieldError

VALIDATE = partial(encode_order, parse_base_url("https://app.flora.ai/api/v1"))
PLACE = {"workspace_id": "ws_1", "project_id": "prj_1"}


def read(path: Path, text: str | bytes, **always: Any) -> list[Any]:
    """Read a file: an order, or the number and fault of a line."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [line.order or (line.number, line.fault) for line in lines_of(path, **always)]


def lines_of(path: Path, **always: Any) -> Iterator[OrderLine]:
    """Yield the lines of a file, twice read: the second time counts."""
    with open_orders(path) as source:
        list(source.read(VALIDATE, PLACE))
        yield from source.read(VALIDATE, {**PLACE, **always})


def test_json_lines(tmp_path: Path) -> None:
    """Fields by name, the rest in braces; blank lines and a byte order mark are nothing."""
    text = '\ufeff{"type": "image", "prompt": "a {color} mug no. {n}", "color": "red", "n": 3}\n\n{"prompt": "x"}\n'
    first, second = read(tmp_path / "o.jsonl", text, type="text", model="m")
    assert (first.type, first.prompt, first.model) == ("image", "a red mug no. 3", "m")
    assert (second.type, second.prompt) == ("text", "x")


def test_csv(tmp_path: Path) -> None:
    """By its header; an empty cell says nothing; params are JSON."""
    text = 'name,type,params\r\n"mug, ""blue""",image,"{""seed"": 7}"\r\nlamp,,\r\n'
    first, second = read(tmp_path / "o.csv", text, prompt="a photo of {name}", type="text")
    assert (first.type, first.prompt, first.params) == ("image", 'a photo of mug, "blue"', {"seed": 7})
    assert (second.type, second.prompt, second.params) == ("text", "a photo of lamp", None)


def test_columns_are_kept(tmp_path: Path) -> None:
    """What is no field of an order comes back with its outcome."""
    path = tmp_path / "o.jsonl"
    path.write_text('{"type": "text", "prompt": "x", "sku": "A-1", "n": 2}')
    (line,) = lines_of(path)
    assert line.columns == {"sku": "A-1", "n": 2}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("nonsense", "the line is no JSON"),
        ("[1]", "the line is no JSON object"),
        ('{"type": "text"}', "prompt is missing"),
        ('{"type": "song", "prompt": "x"}', "type"),
        ('{"type": "text", "prompt": ""}', "prompt is missing"),
        ('{"type": "text", "prompt": 3}', "prompt"),
        ('{"type": "text", "prompt": "a {colour} mug", "color": "red"}', "the prompt has {colour}"),
        ('{"type": "text", "prompt": "x", "params": [1]}', "params"),
        ('{"type": "text", "prompt": "x", "params": "seven"}', "params is no JSON object"),
        ('{"type": "text", "prompt": "x", "workspace_id": "nope"}', "workspace_id must start with"),
    ],
)
def test_a_line_that_cannot_be_ordered(tmp_path: Path, text: str, fault: str) -> None:
    """Its number, and one clear reason; the others can still be read."""
    good = '{"type": "text", "prompt": "x"}'
    (bad,) = [line for line in read(tmp_path / "o.jsonl", f"{good}\n{text}\n{good}\n") if isinstance(line, tuple)]
    assert bad[0] == 2
    assert fault in bad[1]


def test_a_csv_line_with_too_few_cells(tmp_path: Path) -> None:
    """Told, not guessed."""
    _, (number, fault) = read(tmp_path / "o.csv", "type,prompt\ntext,x\ntext\n")
    assert (number, fault) == (3, "the line has not as many cells as the header (2)")


def test_a_csv_header_with_a_name_twice(tmp_path: Path) -> None:
    """Nobody could say which is meant."""
    assert read(tmp_path / "o.csv", "type,type\ntext,x\n") == [(1, "each column needs a name of its own")]


@pytest.mark.parametrize(("name", "text"), [("o.csv", b"type,prompt\ntext,\xff\n"), ("o.csv", b'type,prompt\n"text')])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, text: bytes) -> None:
    """One clear error."""
    with pytest.raises(ConfigurationError, match=r"o\.csv cannot be read"):
        read(tmp_path / name, text)


def test_blank_csv_lines_are_no_orders(tmp_path: Path) -> None:
    """Lines of commas, as spreadsheets leave them behind, are skipped wherever they stand."""
    text = "sku,name\n,\nA,mug\n ,\t\n,,,\n\nB,lamp\n,\n"
    found = read(tmp_path / "o.csv", text, prompt="a {name}", type="text")
    assert [each.prompt for each in found] == ["a mug", "a lamp"]


def test_a_long_cell(tmp_path: Path) -> None:
    """A cell of 200 kB is read like any other."""
    (found,) = read(tmp_path / "o.csv", f"type,prompt\ntext,{'x' * 200_000}\n")
    assert len(found.prompt) == 200_000


@pytest.mark.parametrize("text", ["type,prompt\ntext,x\n", '{"type": "text", "prompt": "x"}\n'])
def test_a_pipe(tmp_path: Path, text: str) -> None:
    """It is read twice like a file; its first character tells JSON Lines from CSV."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writing = threading.Thread(target=pipe.write_text, args=[text])
    writing.start()
    assert [line.order.prompt for line in lines_of(pipe) if isinstance(line.order, Order)] == ["x"]
    writing.join()


def test_a_line_without_end(tmp_path: Path) -> None:
    """It is not read into memory."""
    ((number, fault),) = read(tmp_path / "o.jsonl", b"{" + b" " * (2**20 + 1))
    assert (number, fault) == (1, "the line has more than 1048576 bytes")


def test_braces() -> None:
    """Double ones are braces themselves."""
    assert fill("{{a}} {a} {b c}", {"a": 1.5, "b c": True}) == "{a} 1.5 true"


def unknown(*, accepted: bool) -> CreateOutcomeUnknownError:
    """Give an error of a create that nobody knows about."""
    return CreateOutcomeUnknownError(
        order=order(1), idempotency_key="k", window=(1.0, 2.0), attempts=2, reason="cut", accepted=accepted
    )


@pytest.mark.parametrize(
    ("failure", "doubtful", "fresh", "verdict"),
    [
        (IdempotencyConflictError("x", status=409), False, True, "recover"),
        (IdempotencyConflictError("x", status=409), True, False, "recover"),
        (ConflictError("x", status=409, code="conflict"), True, True, "recover"),
        (ConflictError("x", status=409, code="conflict"), False, True, "refused"),
        (unknown(accepted=True), False, True, "recover"),
        (unknown(accepted=False), False, True, "again"),
        (unknown(accepted=False), True, False, "recover"),
        (InsufficientCreditsError("x", status=402), False, True, "stop"),
        (AuthenticationError("x", status=401), True, True, "stop"),
        (PermissionDeniedError("x", status=403), False, True, "forbidden"),
        (PermissionDeniedError("x", status=403), True, True, "recover"),
        (APIConnectionError("x", sent="not_sent"), False, True, "later"),
        (APIConnectionError("x", sent="not_sent"), False, False, "later"),
        (APIConnectionError("x", sent="not_sent"), True, True, "again"),
        (APIConnectionError("x", sent="not_sent"), True, False, "recover"),
        (RateLimitError("x", status=429), False, True, "later"),
        (RateLimitError("x", status=429), True, True, "again"),
        (InternalServerError("x", status=503), False, True, "again"),
        (InternalServerError("x", status=500), True, False, "recover"),
        (BadRequestError("x", status=400), False, True, "refused"),
        (BadRequestError("x", status=400), True, True, "recover"),
        (NotFoundError("x", status=404), True, True, "recover"),
        (UnprocessableEntityError("x", status=422, code="idempotency_conflict"), False, True, "recover"),
        (UnprocessableEntityError("x", status=422), False, True, "refused"),
        (ConfigurationError("x"), False, True, "refused"),
        (ConfigurationError("x"), True, True, "recover"),
    ],
)
def test_what_follows_from_a_failed_create(failure: FloraError, doubtful: bool, fresh: bool, verdict: str) -> None:
    """Nothing is sent again that could be billed again, and nothing is given up that can still be saved."""
    assert policy.judge_failure(failure, doubtful=doubtful, fresh=fresh) == verdict


def test_a_key_is_not_used_to_its_last_second() -> None:
    """FLORA's clock may be another."""
    assert policy.key_is_fresh(0.0, models.IDEMPOTENCY_KEY_TTL - policy.KEY_MARGIN - 1)
    assert not policy.key_is_fresh(0.0, models.IDEMPOTENCY_KEY_TTL - policy.KEY_MARGIN)


def test_pauses_grow_to_a_cap() -> None:
    """A minute."""
    assert [policy.WorkerPolicy().pause_after(failures) for failures in (1, 2, 3, 7, 5000)] == [1, 2, 4, 60, 60]


FAILED = Run(run_id="run_1", status="failed", progress=40.0, created_at=1.0, error_code="safety_blocked")


@pytest.mark.parametrize(
    "error",
    [
        RunFailedError(FAILED),
        RunTimeoutError("run_1", timeout=2.0, run=None, trouble=None),
        unknown(accepted=True),
        BadRequestError("no", status=400, code="c", fields=(FieldError(field="prompt"),), request_id="req_1"),
        ConfigurationError("no"),
        FloraError("no"),
    ],
)
def test_an_error_through_the_database(error: FloraError) -> None:
    """It comes back as what it was."""
    outcome = outcomes.decode_outcome(outcomes.encode_outcome(None, error))
    assert outcome.error is not None
    again = outcomes.restore_error(outcome.error, order(1), "k")
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_an_error_of_another_kind_through_the_database() -> None:
    """It keeps its words."""
    again = outcomes.restore_error(outcomes.store_error(DownloadError("no room")), order(1), "k")
    assert str(again) == "no room"


def test_an_address_is_told_without_its_password() -> None:
    """Whoever reads over a shoulder, or a log, learns the place only."""
    url = "postgresql://anybody:hush@127.0.0.1/orders"
    for shown in (database.without_password(url), arguments.hide_password(url)):
        assert shown == "postgresql://anybody:***@127.0.0.1/orders"


@pytest.mark.parametrize(
    ("words", "passing"),
    [("database is locked", True), ("database or disk is full", True), ("no such table: x", False)],
)
def test_errors_of_the_database_that_pass(words: str, passing: bool) -> None:
    """A lock and a full disk are waited for; what a repetition cannot change is not."""
    assert database.is_outage(sa.exc.OperationalError("x", {}, Exception(words))) is passing


def test_a_database_that_somebody_writes_to_is_waited_for(tmp_path: Path) -> None:
    """Also by the first connection, which would rather have it write its log ahead."""
    writing = sqlite3.connect(tmp_path / "batch.db", check_same_thread=False)
    writing.execute("CREATE TABLE theirs (x)")
    writing.execute("BEGIN IMMEDIATE")

    def finish() -> None:
        writing.commit()
        writing.close()

    done = threading.Timer(0.3, finish)
    done.start()
    engine = database.create_engine(f"sqlite:///{tmp_path}/batch.db")
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        schema.create_tables(connection)
        assert schema.has_tables(connection)
    engine.dispose()
    done.join()
