"""Requests out, answers in: what may be asked, and what an answer means."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from scripted import generation, run, started

from flora_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    FieldError,
    FloraError,
    GenerationPage,
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
    Run,
    UnprocessableEntityError,
)
from flora_async._http.requests import (
    Request,
    create_request,
    custom_request,
    encode_order,
    list_request,
    retrieve_request,
)
from flora_async._http.responses import (
    RawResponse,
    http_date,
    parse_page,
    parse_response,
    parse_run,
    parse_started_run,
    retry_after,
)
from flora_async._http.urls import parse_base_url
from flora_async._validation import check_idempotency_key, check_run

FLORA = parse_base_url("https://app.flora.ai/api/v1")
LOCAL = parse_base_url("http://127.0.0.1:8080/api/v1")
ASKED = Request(method="GET", url="https://app.flora.ai/api/v1/runs/run_abc123?x=1")


def told(body: object, status: int = 200, headers: Mapping[str, str] | None = None) -> RawResponse:
    """Build a response of FLORA."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    all_headers = CIMultiDict({"request-id": "req_1", "content-length": str(len(raw)), **(headers or {})})
    return RawResponse(request=ASKED, status=status, headers=all_headers, body=raw)


def order(**changes: Any) -> Order:
    """Build a valid order with changes."""
    return Order(**{"type": "image", "prompt": "a mug", "workspace_id": "ws_1", "project_id": "prj_1", **changes})


@pytest.fixture
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set the local time zone to one that is not UTC."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# -- what goes out


@pytest.mark.parametrize("run_id", ["run_1", "run_a.b:c~d", "run_ä", "run_..", "run_a&b=c", "run_" + "x" * 508])
def test_ids_are_opaque_behind_their_prefix(run_id: str) -> None:
    """An id's alphabet is FLORA's business; it is encoded into one segment of the path."""
    url = retrieve_request(FLORA, run_id).url
    assert url.startswith("https://app.flora.ai/api/v1/runs/run_")
    assert url.isascii()
    assert url.count("/") == 6


@pytest.mark.parametrize(
    "run_id",
    [
        *("", "run_", "RUN_1", "prj_1", "run", " run_1", "run_1 ", "run_1\n", "run_ 1", "run_\u00a01", "run_\u20281"),
        *(
            "run_/../x",
            "run_../x",
            "../run_1",
            "run_a/b",
            "run_a\\b",
            "run_?x",
            "run_#x",
            "run_%2e",
            "run_\x00",
            "run_\x85",
        ),
        *("run_\udcff", "run_" + "x" * 509, None, 7, b"run_1"),
    ],
)
def test_ids_that_cannot_be(run_id: Any) -> None:
    """Nothing that could leave its place in the path is sent; the error names the argument."""
    with pytest.raises(ConfigurationError, match="run_id"):
        check_run("run_id", run_id)


def test_a_create_request() -> None:
    """The order is the body, the key a header's value, and the request may be repeated."""
    request = create_request(FLORA, order(params={"seed": 7, "sizes": [1, 2.5]}), "key-1")
    assert (request.method, request.url) == ("POST", "https://app.flora.ai/api/v1/generate")
    assert json.loads(request.body or b"")["params"] == {"seed": 7, "sizes": [1, 2.5]}
    assert request.idempotency_key == "key-1"
    assert request.idempotent


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"type": "t2i"}, "type"),
        ({"type": ["image"]}, "type"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "half \ud83d"}, "prompt"),
        ({"workspace_id": "prj_1"}, "workspace_id"),
        ({"workspace_id": "ws_"}, "workspace_id"),
        ({"project_id": "ws_1"}, "project_id"),
        ({"project_id": "prj_a/b"}, "project_id"),
        ({"model": ""}, "model"),
        ({"model": 3}, "model"),
        ({"params": [1]}, "params"),
        ({"params": {"x": math.nan}}, r"params\['x'\] is nan"),
        ({"params": {"x": [0, {"y": math.inf}]}}, r"params\['x'\]\[1\]\['y'\] is inf"),
        ({"params": {"x": (1, -math.inf)}}, r"params\['x'\]\[1\] is -inf"),
        ({"params": {"x": object()}}, "params"),
        ({"params": {"x": "\udcff"}}, "params"),
        ({"callback_url": "http://me.example/hook"}, "callback_url"),
        ({"callback_url": "nowhere"}, "callback_url"),
    ],
)
def test_orders_that_are_refused_before_they_cost(changes: dict[str, Any], word: str) -> None:
    """The error says what is wrong."""
    with pytest.raises(ConfigurationError, match=word):
        create_request(FLORA, order(**changes), "key-1")


def test_params_that_contain_themselves() -> None:
    """An endless structure is an error, not a crash."""
    endless: dict[str, Any] = {}
    endless["self"] = endless
    with pytest.raises(ConfigurationError, match="params"):
        create_request(FLORA, order(params=endless), "key-1")


def test_params_that_json_can_say() -> None:
    """Params of JSON's own types are sent as they are."""
    request = create_request(FLORA, order(params={"price": 1.5, "empty": {}, "none": None}), "key-1")
    assert json.loads(request.body or b"")["params"] == {"price": 1.5, "empty": {}, "none": None}


@given(st.dictionaries(st.text(), st.recursive(st.none() | st.floats() | st.text(), st.lists, max_leaves=5)))
def test_any_params_go_out_whole_or_not_at_all(params: dict[str, Any]) -> None:
    """Whatever is sent is what was given; everything else is a ConfigurationError."""
    try:
        request = create_request(FLORA, order(params=params), "key-1")
    except ConfigurationError:
        return
    assert json.loads(request.body or b"")["params"] == params


@pytest.mark.parametrize("key", ["a", "A-Z_0.9:b", "x" * 255])
def test_good_idempotency_keys(key: str) -> None:
    """What fits a header."""
    assert check_idempotency_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\n", "ä", "a\r\nX: y", None, 5])
def test_refused_idempotency_keys(key: Any) -> None:
    """What does not."""
    with pytest.raises(ConfigurationError, match="idempotency_key"):
        check_idempotency_key(key)


def list_url(**changes: Any) -> str:
    """Return the URL of a page request."""
    nothing = dict.fromkeys(("cursor", "limit", "project_id", "status", "workspace_id"))
    return list_request(FLORA, **{**nothing, **changes}).url


def test_list_requests() -> None:
    """Only what is set is asked; a cursor is a value of the query and nothing else."""
    assert list_url() == "https://app.flora.ai/api/v1/generations"
    assert list_url(limit=100, status="failed").endswith("/generations?limit=100&status=failed")
    assert list_url(cursor="a&limit=1#?/ä").endswith("?cursor=a%26limit%3D1%23%3F%2F%C3%A4")
    assert list_url(workspace_id="ws_1", project_id="prj_1").endswith("?project_id=prj_1&workspace_id=ws_1")


@pytest.mark.parametrize(
    "changes",
    [
        *({"limit": limit} for limit in (0, 101, -1, True, 1.5, "10", math.nan)),
        *({"cursor": cursor} for cursor in ("", 7, "\udcff", "x" * 4097)),
        *({"project_id": "ws_1"}, {"workspace_id": "prj_1"}, {"status": ""}, {"status": 1}),
    ],
)
def test_list_requests_that_are_refused(changes: dict[str, Any]) -> None:
    """The error names the argument."""
    with pytest.raises(ConfigurationError, match=next(iter(changes))):
        list_url(**changes)


def plain(method: Any, path: Any, params: Any = None, body: object = None, key: Any = None) -> Request:
    """Build a custom request."""
    return custom_request(FLORA, method, path, params=params, json=body, idempotency_key=key)


def test_plain_requests() -> None:
    """Below the base URL, with a query, a body and a key."""
    request = plain("post", "techniques/run", {"a": "x y", "n": 1, "f": 2.5, "yes": True, "no": False}, {"k": 1}, "k-1")
    assert request.url == "https://app.flora.ai/api/v1/techniques/run?a=x%20y&n=1&f=2.5&yes=true&no=false"
    assert (request.method, request.body, request.idempotent) == ("POST", b'{"k":1}', True)
    assert plain("GET", "/models").idempotent
    assert not plain("POST", "/models").idempotent
    assert plain("GET", "/runs/run_%C3%A4").url.endswith("/runs/run_%C3%A4")


@pytest.mark.parametrize(
    "path",
    [
        *("", "https://evil.example/", "//evil.example/", "/../admin", "/a/%2e%2e/b", "/a?b", "/a#b", "/a b", "/a\\b"),
        *("/ä", "/a//b", "/%zz", "/a\n", 7),
    ],
)
def test_plain_paths_that_are_refused(path: Any) -> None:
    """Nothing leads away from the base URL."""
    with pytest.raises(ConfigurationError, match="path"):
        plain("GET", path)


@pytest.mark.parametrize("method", ["", "GET /", "GE\r\nT", 1])
def test_methods_that_are_refused(method: Any) -> None:
    """A method is a word."""
    with pytest.raises(ConfigurationError, match="method"):
        plain(method, "/models")


# -- what comes back


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_json", BadRequestError),
        (400, "input_validation_error", BadRequestError),
        (401, "unauthorized", AuthenticationError),
        (401, "invalid_api_key", AuthenticationError),
        (402, "insufficient_credits", InsufficientCreditsError),
        (403, "forbidden", PermissionDeniedError),
        (404, "not_found", NotFoundError),
        (409, "conflict", ConflictError),
        (409, "idempotency_duplicate", IdempotencyConflictError),
        (418, "teapot", APIError),
        (422, "idempotency_conflict", UnprocessableEntityError),
        (429, "rate_limited", RateLimitError),
        (500, "internal_error", InternalServerError),
        (503, "service_unavailable", InternalServerError),
        (599, "new_one", InternalServerError),
    ],
)
def test_documented_errors(status: int, code: str, kind: type[APIError]) -> None:
    """Each status has its class, which carries all that FLORA said."""
    fields = [{"field": "prompt", "message": "Required", "new": 1}]
    body = {"error": {"code": code, "message": "A word.", "fields": fields, "new": 1}}
    with pytest.raises(APIError) as caught:
        parse_page(told(body, status, {"X-Word": "y", "Retry-After": "7"}))
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.message) == (status, code, "A word.")
    assert error.fields == (FieldError(field="prompt", message="Required"),)
    assert (error.request_id, error.retry_after, error.headers["x-word"]) == ("req_1", 7.0, "y")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>Bad gateway</html>",
        b"{}",
        b'{"error":"no"}',
        b'{"error":{"code":7}}',
        b"\xff",
        b"[" * 100_000,
        b"null",
    ],
)
def test_errors_in_other_shapes(body: bytes) -> None:
    """Proxies answer HTML, or nothing: the status still counts."""
    with pytest.raises(InternalServerError) as caught:
        parse_page(told(body, 502))
    assert caught.value.code is None
    assert caught.value.message


def test_null_parts_of_an_error() -> None:
    """A null code, message or list of fields is none."""
    with pytest.raises(NotFoundError) as caught:
        parse_page(told({"error": {"code": None, "message": None, "fields": None}}, 404))
    assert (caught.value.code, caught.value.fields) == (None, ())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 304])
def test_redirects_are_not_answers(status: int) -> None:
    """The error tells the foreign origin, not more."""
    with pytest.raises(ProtocolError, match=r"https://evil\.example") as caught:
        parse_page(told(b"", status, {"location": "https://evil.example/steal?token=1"}))
    assert "token" not in str(caught.value)
    assert caught.value.status == status


@pytest.mark.parametrize("status", [100, 199, 600, 999])
def test_statuses_that_http_does_not_know(status: int) -> None:
    """A status other than 200 to 599 raises ProtocolError."""
    with pytest.raises(ProtocolError):
        parse_page(told({"generations": [], "meta": {}}, status))


def test_a_create_is_a_201_that_names_a_run() -> None:
    """A create is accepted by status 201 with a valid run id alone."""
    assert parse_started_run(told(started(), 201)).run_id == "run_abc123"
    for status in (200, 202, 204):
        with pytest.raises(ProtocolError):
            parse_started_run(told(started(), status))
    for run_id in ("", "job_1", "run_", "run_\x00", "run_a/b"):
        with pytest.raises(ResponseDecodeError) as caught:
            parse_started_run(told(started(run_id), 201))
        assert caught.value.field == "$.run_id"


def test_a_run_is_the_one_that_was_asked_for() -> None:
    """An answer about another run is no answer."""
    assert parse_run("run_abc123", told(run())).succeeded
    with pytest.raises(ProtocolError, match="run_other"):
        parse_run("run_abc123", told(run(run_id="run_other")))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**run(), "status": 5}, "$.status"),
        ({key: value for key, value in run().items() if key != "progress"}, "$.progress"),
        (run(outputs=[{"output_id": "1", "type": "text"}]), "$.outputs[0].url"),
        ([], None),
        (b"", None),
        (b"<html>", None),
        (b"\xff\xfe", None),
        (b'{"run_id": "\xff"}', None),
        (b'{"x": ' + b"[" * 100_000, None),
        (b'{"run_id": "\\ud800"}', None),
        (b'{"progress": NaN}', None),
    ],
)
def test_undecodable_runs(body: object, field: str | None) -> None:
    """The error names the field, the URL without its query, and the request id."""
    with pytest.raises(ResponseDecodeError) as caught:
        parse_run("run_abc123", told(body))
    assert caught.value.field == field
    assert caught.value.url == "https://app.flora.ai/api/v1/runs/run_abc123"
    assert caught.value.request_id == "req_1"
    assert len(caught.value.excerpt) <= 200


def test_a_broken_item_names_its_place() -> None:
    """A broken item is reported with its path, and the other items of its page are returned."""
    items = [generation("run_1"), {**generation("run_2"), "workspace_id": None}]
    page = parse_page(told({"generations": items, "meta": {}}))
    assert [generation.run_id for generation in page.generations] == ["run_1"]
    assert [(item.field, item.request_id) for item in page.broken] == [("$.generations[1].workspace_id", "req_1")]


def test_any_answer_as_any_type() -> None:
    """Requests of one's own say what they expect; an empty answer is an empty object."""
    response = parse_response(GenerationPage, told({"generations": [], "meta": {}}, headers={"X-Word": "y"}))
    assert response.data.generations == ()
    assert (response.status, response.request_id, response.headers["x-word"]) == (200, "req_1", "y")
    assert parse_response(dict, told(b"", 204)).data == {}


@given(st.binary(max_size=200), st.integers(100, 999))
def test_any_bytes_are_an_answer_or_an_error_of_ours(body: bytes, status: int) -> None:
    """Nothing but FloraError leaves the readers."""
    for read in (parse_page, parse_started_run, partial(parse_run, "run_1")):
        try:
            read(told(body, status))
        except FloraError as error:
            assert "\n" not in str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5), st.lists, max_leaves=4
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(Run.__struct_fields__, JSON)))
def test_any_json_is_a_run_or_an_error_of_ours(changes: dict[str, Any]) -> None:
    """Wrong types are told, and never break."""
    try:
        seen = parse_run("run_abc123", told({**run(), **changes}))
    except (ResponseDecodeError, ProtocolError) as error:
        assert changes, error
    else:
        assert seen.run_id == "run_abc123"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        *(("5", 5.0), (" 5 ", 5.0), ("0", 0.0), ("31536000", 31536000.0), ("3.0", 3.0), ("1.5", 1.5), ("2.", 2.0)),
        *(
            (value, None)
            for value in ("", "-5", "1,5", ".5", "3.0s", "nan", "inf", "1e309", "soon", "٣", "1_000", "9" * 12)
        ),
        ("Tue, 24 Nov 2026 10:00:30 GMT", 30.0),
        ("Tue, 24 Nov 2026 09:00:00 GMT", 0.0),
        ("Tue, 24 Nov 2026 10:00:30 -0000", 30.0),
        ("Tue, 24 Nov 2026 10:00:30", 30.0),
        ("Tue, 24 Nov 2026 11:00:30 +0100", 30.0),
        ("Tuesday, 24-Nov-26 10:00:30 GMT", 30.0),
        ("Tue Nov 24 10:00:30 2026", 30.0),
        ("Tue, 24 Nov 99999 09:00:00 GMT", None),
    ],
)
def test_retry_after(value: str, seconds: float | None, in_new_york: None) -> None:
    """Retry-After is seconds, or a date against the response's own, whatever the local time zone is."""
    headers = {"retry-after": value, "date": "Tue, 24 Nov 2026 10:00:00 GMT"}
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("headers", [{}, {"date": ""}, {"date": "soon"}])
def test_retry_after_a_date_without_a_date_header(headers: dict[str, str]) -> None:
    """Without the response's own Date, a Retry-After date is measured from the time of reception."""
    late = {"retry-after": "Tue, 24 Nov 2026 10:00:30 GMT", **headers}
    now = datetime(2026, 11, 24, 10, tzinfo=UTC).timestamp()
    assert retry_after(late, now) == 30.0
    assert retry_after(late, now + 60) == 0.0
    assert retry_after(late) is None


WORDS = st.sampled_from(
    [
        *("Tue,", "Tue", "Tuesday,", "24", "Nov", "2026", "10:00:30", "10:00", "GMT", "-0000", "+9999", "+99999999"),
        *("99", "0", "-1", "1e9", "Jan", "24-Nov-26", "12.30", "25:61:61", "70", ":", "::", ",", "-", "(", ")", "(c)"),
        *(";", ".", "+", "z", "EST", "am", "\0", "\t", "é", "١"),
    ]
)


@given(st.lists(WORDS | st.text(max_size=5), max_size=9), st.sampled_from(["", " "]))
def test_no_date_is_too_odd(words: list[str], between: str) -> None:
    """Any text is a finite number of Unix seconds or no date, and never an error."""
    seconds = http_date.__wrapped__(between.join(words))
    assert seconds is None or math.isfinite(seconds)


def test_call_backs_on_this_machine() -> None:
    """A sandbox may call back over http."""
    assert encode_order(LOCAL, order(callback_url="http://127.0.0.1:9/hook"))


# -- answers that are slow to read


@pytest.mark.parametrize(
    "unit",
    [
        b"a,",
        b'\\",',
        b"\\\\,",
        b'",',
        b'"a,",',
        b'"\\",',
        b'","',
    ],
)
def test_a_torn_text_costs_no_more_than_its_length(unit: bytes) -> None:
    """An answer whose last string has no end is judged in linear time, whatever it is made of."""

    def match_creates(size: int) -> float:
        answer = told(b'["' + unit * (size // len(unit)))
        began = time.process_time()
        with pytest.raises((ResponseTooLargeError, ResponseDecodeError)):
            parse_response(list, answer)
        return time.process_time() - began

    match_creates(2**20)
    assert min(match_creates(8 * 2**20) for _ in range(3)) < 30 * min(match_creates(2**20) for _ in range(5)), (
        "8 would be linear"
    )


def test_commas_in_strings_are_no_values() -> None:
    """A text output of a million commas is read, also with escaped quotes beside them."""
    text = ',\\",\\\\' * 200_000
    assert parse_response(list[str], told(json.dumps([text, "x"]).encode())).data == [text, "x"]


def test_too_many_values_are_refused() -> None:
    """A list of as many numbers, strings or members as would hold up the event loop is not decoded."""
    for item in ("1", '""', '{"a":0,"b":0}', "[,]"):
        with pytest.raises(ResponseTooLargeError, match="more than 200000 values"):
            parse_response(list, told(f"[{','.join([item] * 250_000)}]".encode()))
