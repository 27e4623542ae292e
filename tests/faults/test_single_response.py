"""The fault matrix, on the wire: each case of MATRIX.md by its number, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from raw import Raw, Step, close, drip, head, http, pour, reset, say
from scripted import RUN_ID, run, started
from secrets_of import KEY, assert_secret

from flora_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    CreateOutcomeUnknownError,
    Flora,
    FloraError,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InternalServerError,
    NotFoundError,
    Order,
    PermissionDeniedError,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
    ResponseTooLargeError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.virtual_time, pytest.mark.usefixtures("fast_retries")]

ORDER: dict[str, Any] = {"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1"}
RUN = run()
STARTED = started()


@pytest.fixture(autouse=True)
def silent_about_the_key(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that anybody logs, at any level, shows the key."""
    caplog.set_level(logging.DEBUG)
    yield
    assert KEY not in caplog.text
    assert "a mug" not in "".join(record.getMessage() for record in caplog.records if record.name == "flora_async")


async def fails(call: Coroutine[Any, Any, object]) -> FloraError:
    """Give the error that a call ends in, which does not show the key, in bounded time."""
    try:
        await asyncio.wait_for(call, 20)
    except FloraError as error:
        assert_secret(error)
        return error
    raise AssertionError("nothing was raised")


class Fault:
    """What is wrong with an answer, and what becomes of a read (its error, how often it is tried) and of a create."""

    def __init__(
        self,
        number: int,
        name: str,
        step: Callable[[object, str], Step],
        error: type[FloraError] | None,
        tries: int = 1,
        *,
        create: type[FloraError] | None = CreateOutcomeUnknownError,
        again: bool = True,
        timeout: float = 5.0,
        words: str = "",
        sent: str | None = None,
    ) -> None:
        self.number = number
        self.id = f"{number:03}-{name}"
        self.step = step
        self.error = error
        self.tries = tries
        self.create = create
        self.again = again
        self.timeout = timeout
        self.words = words
        self.sent = sent


Y = 3
"""Tries of a read that another attempt may mend: two more."""


def whole(body: bytes | None = None, **more: Any) -> Callable[[object, str], Step]:
    """Answer properly, with another body or other headers."""
    return lambda record, status: say(http(record if body is None else body, **{"status": status, **more}))


def cut(how: Callable[[bytes], Step], size: int, **more: Any) -> Callable[[object, str], Step]:
    """Answer properly, but only so many bytes of it."""
    return lambda record, status: how(http(record, **{"status": status, **more})[:size])


def chunked(chunks: bytes, how: Callable[[bytes], Step] = say) -> Callable[[object, str], Step]:
    """Answer in these chunks."""
    return lambda record, status: how(head("Transfer-Encoding: chunked\r\n", status=status) + chunks)


def packed(pack: Callable[[bytes], bytes], encoding: str = "gzip") -> Callable[[object, str], Step]:
    """Answer with a packed body."""

    def make(record: object, status: str) -> Step:
        raw = json.dumps(record).encode()
        return say(http(pack(raw), status=status, headers=f"Content-Encoding: {encoding}\r\n"))

    return make


def changed(change: Callable[[bytes], bytes]) -> Callable[[object, str], Step]:
    """Answer with a changed body."""
    return lambda record, status: say(http(change(json.dumps(record).encode()), status=status))


def grown(extra: bytes) -> Callable[[object, str], Step]:
    """Answer with one more field."""
    return changed(lambda raw: b'{"extra": ' + extra + b", " + raw[1:])


def bytes_only(content: bytes, how: Callable[[bytes], Step] = close) -> Callable[[object, str], Step]:
    """Answer with these bytes, whatever was asked."""
    return lambda record, status: how(content)


def lines(text: str) -> Callable[[object, str], Step]:
    """Answer properly, with further header lines."""
    return whole(headers=text)


def error_status(status: int, code: str = "some_code", headers: str = "") -> Callable[[object, str], Step]:
    """Answer with FLORA's envelope."""
    body = {"error": {"code": code, "message": "says no", "fields": [{"field": "prompt", "message": "x"}]}}
    return lambda record, _: say(http(body, status=f"{status} Error", headers=headers))


HTML = b"<!DOCTYPE html><title>Sign in to this network</title>"
BOMB = gzip.compress(b" " * 2**26)

FAULTS = [
    Fault(13, "close_no_reply", bytes_only(b""), APIConnectionError, Y, words="https", sent="maybe_sent"),
    Fault(14, "reset_no_reply", bytes_only(b"", reset), APIConnectionError, Y, sent="maybe_sent"),
    Fault(16, "reset_mid_headers", cut(reset, 40), APIConnectionError, Y),
    Fault(17, "close_mid_headers", cut(close, 40), APIConnectionError, Y),
    Fault(18, "reset_mid_body", cut(reset, 120), APIConnectionError, Y),
    Fault(19, "short_length", cut(close, 120), APIConnectionError, Y),
    Fault(20, "chunked_no_end", chunked(b'4\r\n{"ru', close), APIConnectionError, Y),
    Fault(21, "bad_chunk_size", chunked(b"zz\r\n{}\r\n0\r\n\r\n", close), ProtocolError, 2),
    Fault(22, "length_and_chunked", lines("Transfer-Encoding: chunked\r\n"), ProtocolError, 2),
    Fault(22, "two_lengths", lines("Content-Length: 5\r\n"), ProtocolError, 2),
    Fault(22, "negative_length", whole(length=-1), ProtocolError, 2),
    Fault(22, "huge_length", whole(length=10**30), APIConnectionError, 0),
    Fault(
        23, "no_length_cut", lambda r, s: close(head("", status=s) + json.dumps(r).encode()[:50]), APIConnectionError, Y
    ),
    Fault(24, "not_http", bytes_only(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), ProtocolError, 2),
    Fault(24, "garbage_status", bytes_only(b"HTTP/1.1 banana\r\n\r\n"), ProtocolError, 2),
    Fault(30, "hang", lambda r, s: drip(b""), APITimeoutError, Y, timeout=0.15, sent="maybe_sent"),
    Fault(
        31,
        "hang_after_head",
        lambda r, s: drip(head("Content-Length: 9\r\n", status=s), every=0),
        APITimeoutError,
        Y,
        timeout=0.15,
    ),
    Fault(32, "drip", lambda r, s: drip(http(r, status=s), every=0.01), APITimeoutError, Y, timeout=0.25),
    Fault(
        33,
        "slow_head",
        lambda r, s: drip(b"HTTP/1.1 200 OK\r\n", repeat=b"X-Y: z\r\n"),
        APITimeoutError,
        Y,
        timeout=0.25,
    ),
    Fault(
        34,
        "endless_1xx",
        lambda r, s: drip(b"", repeat=b"HTTP/1.1 102 Processing\r\n\r\n"),
        APITimeoutError,
        Y,
        timeout=0.25,
    ),
    Fault(35, "stalled_body", lambda r, s: drip(http(r, status=s)[:-10], every=0), APITimeoutError, Y, timeout=0.25),
    Fault(
        36,
        "early_100s",
        lambda r, s: say(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n" + http(r, status=s)),
        None,
        create=None,
    ),
    Fault(39, "no_content", lambda r, s: say(head("", status="204 No Content")), ResponseDecodeError),
    Fault(39, "empty", whole(b""), ResponseDecodeError),
    Fault(
        40,
        "no_content_with_body",
        lambda r, s: say(head("Content-Length: 2\r\n", status="204 No Content") + b"{}"),
        FloraError,
        0,
    ),
    Fault(41, "html_200", whole(HTML, headers="Content-Type: text/html\r\n"), ResponseDecodeError, 2, words="Sign in"),
    Fault(
        42, "html_502", lambda r, s: say(http(HTML, status="502 Bad Gateway")), InternalServerError, Y, words="Sign in"
    ),
    Fault(43, "json_as_text", lines("Content-Type: text/plain\r\n"), None, create=None),
    Fault(44, "bad_utf8", changed(lambda raw: raw.replace(b"run_", b"r\xff\xfe")), ResponseDecodeError),
    Fault(45, "charset_rot13", lines("Content-Type: application/json; charset=rot13\r\n"), None, create=None),
    Fault(46, "bom", changed(lambda raw: b"\xef\xbb\xbf" + raw), ResponseDecodeError),
    Fault(46, "utf_16", changed(lambda raw: raw.decode().encode("utf-16")), ResponseDecodeError),
    Fault(46, "trailing_data", changed(lambda raw: raw + b"{}"), ResponseDecodeError),
    Fault(46, "cut_json", changed(lambda raw: raw[:-5]), ResponseDecodeError),
    Fault(47, "nan", changed(lambda raw: raw.replace(b"0.04", b"NaN").replace(b"1.0", b"NaN")), ResponseDecodeError),
    Fault(
        47,
        "infinite",
        changed(lambda raw: raw.replace(b"0.04", b"1e999").replace(b"1.0", b"1e999")),
        ResponseDecodeError,
    ),
    Fault(
        48,
        "huge_int",
        changed(lambda raw: raw.replace(b"0.04", b"9" * 400).replace(b"1.0", b"9" * 400)),
        ResponseDecodeError,
    ),
    Fault(49, "deep_in_unknown", grown(b"[" * 100_000 + b"]" * 100_000), ResponseDecodeError, words="too deep"),
    Fault(
        50,
        "missing",
        changed(lambda raw: raw.replace(b'"charged_cost"', b'"x"').replace(b'"status"', b'"x"')),
        ResponseDecodeError,
        words="$.",
    ),
    Fault(50, "null", changed(lambda raw: raw.replace(b"0.04", b"null").replace(b"1.0", b"null")), ResponseDecodeError),
    Fault(
        51,
        "unknown_status",
        changed(lambda raw: raw.replace(b'"completed"', b'"paused"').replace(b'"generation"', b'"x"')),
        None,
        create=None,
    ),
    Fault(52, "unknown_field", grown(b'{"deep": [1, {"x": null}]}'), None, create=None),
    Fault(52, "duplicate_keys", changed(lambda raw: b'{"run_id": "run_x", ' + raw[1:]), None, create=None),
    Fault(53, "lone_surrogate", changed(lambda raw: raw.replace(b"run_abc", b"run_\\ud800")), ResponseDecodeError),
    Fault(53, "nul_in_id", changed(lambda raw: raw.replace(b"run_abc123", b"run_\\u0000")), ProtocolError, 2),
    Fault(
        54, "many_keys", grown(b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b"}"), ResponseTooLargeError
    ),
    Fault(55, "gzip_bomb", packed(lambda raw: BOMB), ResponseTooLargeError),
    Fault(56, "big", whole(length=2**30), ResponseTooLargeError),
    Fault(
        57,
        "endless",
        lambda r, s: pour(head("Transfer-Encoding: chunked\r\n", status=s), b"10000\r\n" + b" " * 65536 + b"\r\n"),
        ResponseTooLargeError,
    ),
    Fault(58, "gzip_cut", packed(lambda raw: gzip.compress(raw)[:-30]), APIConnectionError, Y),
    Fault(59, "gzip_without_trailer", packed(lambda raw: gzip.compress(raw)[:-8]), APIConnectionError, Y),
    Fault(59, "gzip_wrong_crc", packed(lambda raw: gzip.compress(raw)[:-8] + b"12345678"), APIConnectionError, Y),
    Fault(60, "bad_gzip", packed(lambda raw: b"\x1f\x8b\x08nonsense"), APIConnectionError, Y),
    Fault(60, "zstd_unasked", packed(lambda raw: b"\x28\xb5\x2f\xfdnonsense", "zstd"), ResponseDecodeError),
    Fault(61, "rot13", packed(lambda raw: b"{gibberish", "rot13"), ResponseDecodeError),
    Fault(61, "gzip_twice", packed(lambda raw: gzip.compress(gzip.compress(raw)), "gzip, gzip"), ResponseDecodeError),
    Fault(62, "big_header", lines(f"X-Big: {'x' * 9000}\r\n"), ProtocolError, 2),
    Fault(62, "many_headers", lines("".join(f"X-{n}: {'y' * 100}\r\n" for n in range(300))), ProtocolError, 2),
    Fault(63, "nul_in_header", lines("X-Nul: a\x00b\r\n"), ProtocolError, 2),
    Fault(63, "latin_1", lines("X-Word: caf\xe9\r\n"), None, create=None),
    Fault(64, "status_999", whole(status="999 What"), ProtocolError),
    Fault(65, "bad_request", error_status(400), BadRequestError, create=BadRequestError, again=False),
    Fault(65, "unauthorized", error_status(401), AuthenticationError, create=AuthenticationError, again=False),
    Fault(65, "no_credits", error_status(402), InsufficientCreditsError, create=InsufficientCreditsError, again=False),
    Fault(65, "forbidden", error_status(403), PermissionDeniedError, create=PermissionDeniedError, again=False),
    Fault(65, "not_found", error_status(404), NotFoundError, create=NotFoundError, again=False),
    Fault(
        66,
        "duplicate",
        error_status(409, "idempotency_duplicate"),
        IdempotencyConflictError,
        create=IdempotencyConflictError,
        again=False,
    ),
    Fault(66, "conflict", error_status(409, "conflict"), ConflictError, create=ConflictError, again=False),
    Fault(
        69,
        "rate_limited",
        error_status(429, "rate_limited", "Retry-After: 0\r\n"),
        RateLimitError,
        Y,
        create=RateLimitError,
    ),
    Fault(
        70,
        "odd_retry_after",
        error_status(429, "rate_limited", "Retry-After: -5\r\n"),
        RateLimitError,
        Y,
        create=RateLimitError,
    ),
    Fault(
        70,
        "nan_retry_after",
        error_status(429, "rate_limited", "Retry-After: nan\r\n"),
        RateLimitError,
        Y,
        create=RateLimitError,
    ),
    Fault(
        70,
        "infinite_retry_after",
        error_status(429, "rate_limited", "Retry-After: 1e309\r\n"),
        RateLimitError,
        Y,
        create=RateLimitError,
    ),
    Fault(
        71,
        "retry_after_a_year",
        error_status(429, "rate_limited", "Retry-After: 31536000\r\n"),
        RateLimitError,
        create=RateLimitError,
        again=False,
    ),
    Fault(
        72,
        "retry_after_by_a_clock_off_by_a_day",
        error_status(
            429, "rate_limited", "Date: Wed, 25 Nov 2020 10:00:00 GMT\r\nRetry-After: Wed, 25 Nov 2020 10:00:00 GMT\r\n"
        ),
        RateLimitError,
        Y,
        create=RateLimitError,
    ),
    Fault(73, "internal_error", error_status(500), InternalServerError, Y),
    Fault(73, "unavailable", error_status(503), InternalServerError, Y, create=CreateOutcomeUnknownError),
    Fault(73, "gateway_timeout", error_status(504), InternalServerError, Y),
    Fault(
        75,
        "redirect_same_origin",
        whole(b"", status="302 Found", headers="Location: /api/v1/x\r\n"),
        ProtocolError,
        create=ProtocolError,
        again=False,
        words="redirect",
    ),
    Fault(
        79,
        "redirect_303",
        whole(b"", status="303 See Other", headers="Location: /x\r\n"),
        ProtocolError,
        create=ProtocolError,
        again=False,
    ),
    Fault(80, "redirect_nowhere", whole(b"", status="302 Found"), ProtocolError, create=ProtocolError, again=False),
    Fault(
        80,
        "redirect_to_a_file",
        whole(b"", status="302 Found", headers="Location: file:///etc/passwd\r\n"),
        ProtocolError,
        create=ProtocolError,
        again=False,
    ),
    Fault(
        81,
        "redirect_with_user",
        whole(b"", status="301 Moved", headers="Location: https://u:p@127.0.0.1/\r\n"),
        ProtocolError,
        create=ProtocolError,
        again=False,
    ),
    Fault(92, "set_cookie", lines("Set-Cookie: session=1; Path=/\r\n"), None, create=None),
]


@pytest.fixture
async def flora_at() -> AsyncIterator[Callable[..., Flora]]:
    """Open clients, and close them."""
    opened: list[Flora] = []

    def open_one(server: Raw, **settings: Any) -> Flora:
        opened.append(Flora(KEY, base_url=server.base_url, **settings))
        return opened[-1]

    yield open_one
    for flora in opened:
        await flora.close()


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.id) for fault in FAULTS])
async def test_a_read_meets(fault: Fault, flora_at: Callable[..., Flora]) -> None:
    """Its error, after as many tries as may help; afterwards the client works."""
    async with Raw(fault.step(RUN, "200 OK")) as server:
        flora = flora_at(server, timeout=fault.timeout)
        if fault.error is None:
            assert (await flora.generations.retrieve(RUN_ID)).run_id == RUN_ID
            assert (await flora.generations.retrieve(RUN_ID)).run_id == RUN_ID
            assert "cookie" not in server.asked[-1].headers
            return
        error = await fails(flora.generations.retrieve(RUN_ID))
        assert isinstance(error, fault.error)
        assert fault.words in str(error)
        if isinstance(error, APIError | APIConnectionError | ResponseDecodeError) and fault.tries:
            assert error.attempts == fault.tries
            assert server.count("GET") >= fault.tries
        if isinstance(error, APIConnectionError) and fault.sent:
            assert error.sent == fault.sent
        server.steps = [say(http(RUN))]
        assert (await flora.generations.retrieve(RUN_ID)).succeeded


@pytest.mark.parametrize("fault", [pytest.param(fault, id=fault.id) for fault in FAULTS])
async def test_a_create_meets(fault: Fault, flora_at: Callable[..., Flora]) -> None:
    """It ends as a run, as a refusal, or as unknown under the one key of all its attempts."""
    async with Raw(fault.step(STARTED, "201 Created")) as server:
        flora = flora_at(server, timeout=fault.timeout, max_retries=1)
        if fault.create is None:
            assert (await flora.generations.create(**ORDER)).run_id.startswith("run_")
            return
        error = await fails(flora.generations.create(**ORDER))
        assert isinstance(error, fault.create), error
        assert server.count("POST") == 1 + fault.again
        keys = {asked.headers["idempotency-key"] for asked in server.asked if asked.method == "POST"}
        assert len(keys) == 1
        if isinstance(error, CreateOutcomeUnknownError):
            assert isinstance(error.order, Order)
            assert (error.attempts, error.order.prompt, {error.idempotency_key}) == (2, "a mug", keys)
        # Once FLORA answers, the same order under the same key is its run.
        server.steps = [say(http(STARTED, status="201 Created"))]
        (key,) = keys
        assert (await flora.generations.create(**ORDER, idempotency_key=key)).run_id == RUN_ID


def test_zlib_is_what_packs() -> None:
    """The bomb is one: a megabyte of nothing from some bytes."""
    assert len(zlib.decompressobj(47).decompress(BOMB, 2**20)) == 2**20
    assert len(BOMB) < 2**17
