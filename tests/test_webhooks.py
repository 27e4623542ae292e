"""Whether a call-back is FLORA's."""

import hashlib
import hmac
import io
import json
import wsgiref.headers
from collections.abc import Iterator
from email.message import Message
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict
from starlette.datastructures import Headers

from flora_async import ConfigurationError, FloraError, WebhookVerificationError
from flora_async.webhooks import sign, verify

SECRET = "whsec_0123456789abcdef"
NOW = 1_800_000_000.0
BODY = json.dumps(
    {
        "id": "whd_1",
        "type": "run.failed",
        "api_version": "2026-06-11",
        "created_at": 1_800_000_000_000,
        "data": {
            "run_id": "run_1",
            "run_type": "generation",
            "workspace_id": "ws_1",
            "status": "failed",
            "error_code": "safety_blocked",
            "error_message": "No. Nein. いいえ",
        },
        "brand_new": [1],
    }
).encode()
GOOD = sign(BODY, SECRET, now=NOW)["Flora-Signature"]
DIGEST = GOOD.partition("v1=")[2]


def checked(header: Any, body: Any = BODY, secret: Any = SECRET, **more: Any) -> Any:
    """Verify a body under a signature header."""
    return verify(body, {"flora-signature": header}, secret, **{"now": NOW, **more})


def test_a_call_back_of_floras() -> None:
    """What it tells, and what tells it from a replay; the case of header names does not matter."""
    event = checked(GOOD)
    assert (event.id, event.type, event.data.run_id, event.data.error_code) == (
        "whd_1",
        "run.failed",
        "run_1",
        "safety_blocked",
    )
    assert (event.signed_at, event.digest) == (NOW, DIGEST)
    assert verify(BODY, {"FLORA-SIGNATURE": GOOD, "Accept": "*/*"}, SECRET, now=NOW) == event


def test_the_signature_is_the_documented_one() -> None:
    """HMAC-SHA256 over the time as sent, a dot and the body, keyed with the whole secret."""
    expected = hmac.new(SECRET.encode(), f"{NOW:.0f}.".encode() + BODY, hashlib.sha256).hexdigest()
    assert sign(BODY, SECRET, now=NOW) == {
        "Flora-Signature": f"t={NOW:.0f},v1={expected}",
        "Flora-Webhook-Id": "whd_1",
        "Flora-Event": "run.failed",
    }
    assert list(sign(b"anything", SECRET)) == ["Flora-Signature"]


@pytest.mark.parametrize(
    "header",
    [
        f"t={NOW:.0f},v1={'0' * 64},v1={DIGEST}",
        f"v1={DIGEST},t={NOW:.0f}",
        f"t={NOW:.0f}, v1={DIGEST}",
        f"t={NOW:.0f},v0=what,v2=ever,x,v1={DIGEST}",
        f"t={NOW:.0f},v1=short,v1={DIGEST}",
    ],
)
def test_secrets_that_rotate_and_schemes_to_come(header: str) -> None:
    """Any of several signatures will do, and what nobody knows is passed over."""
    assert checked(header).id == "whd_1"


@pytest.mark.parametrize("skew", [-300, -1, 0, 299, 300])
def test_clocks_that_differ(skew: float) -> None:
    """By five minutes, to either side."""
    assert checked(GOOD, now=NOW + skew)


@pytest.mark.parametrize("skew", [-86400, -301, 301, 1e9, float("nan"), float("inf")])
def test_times_that_are_too_far_off(skew: float) -> None:
    """Early ones like late ones."""
    with pytest.raises(WebhookVerificationError, match="clock"):
        checked(GOOD, now=NOW + skew)


T = f"{NOW:.0f}"


@pytest.mark.parametrize(
    "header",
    [
        *("", "nonsense", ",", "=", f"t={T}", f"v1={DIGEST}", f"t={T},v1=", f"t={T},v1={'0' * 64}"),
        *(f"t=0{T},v1={DIGEST}", f"t=+{T},v1={DIGEST}", f"t= {T},v1={DIGEST}", f"t={T}.0,v1={DIGEST}"),
        *(f"t={T},t={T},v1={DIGEST}", f"t={T},t=1,v1={DIGEST}", f"t=,v1={DIGEST}", f"t=-5,v1={DIGEST}"),
        "t=١٢٣٤٥٦٧٨٩٠,v1=" + DIGEST,
        f"t={T},v1={'é' * 64}",
        f"t={T},v1={DIGEST.upper()}",
        f"t={T},v1={DIGEST}x",
        f"T={T},V1={DIGEST}",
        f"t={T},v1={DIGEST}," + f"v1={'0' * 64}," * 8,
        f"t={T},v1={DIGEST}," + "x" * 5000,
        f"t={T}\r\n,v1={DIGEST}",
        None,
        5,
        b"t=1",
    ],
)
def test_signatures_that_are_none(header: Any) -> None:
    """One error for all of them, which shows neither signature nor secret."""
    with pytest.raises(WebhookVerificationError) as caught:
        checked(header)
    assert DIGEST not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY[:-1], b"x" * (2**20 + 1), "text", "\ud800"])
def test_bodies_that_were_not_signed(body: Any) -> None:
    """A body is checked before it is decoded."""
    with pytest.raises(WebhookVerificationError):
        checked(GOOD, body)


@pytest.mark.parametrize("body", [BODY, bytearray(BODY), memoryview(BODY), BODY.decode()])
def test_body_types(body: Any) -> None:
    """A body is bytes of any kind, or the text that they encode, for verifying and signing alike."""
    assert checked(GOOD, body).run_id == "run_1"
    assert sign(body, SECRET, now=NOW)["Flora-Signature"] == GOOD


@pytest.mark.parametrize("body", [None, {"a": 1}, [BODY], io.BytesIO(BODY)])
def test_body_types_that_cannot_be_verified(body: Any) -> None:
    """The error names the type of the body."""
    with pytest.raises(WebhookVerificationError, match=type(body).__name__):
        checked(GOOD, body)
    with pytest.raises(WebhookVerificationError, match=type(body).__name__):
        sign(body, SECRET)


PAIRS = [("Host", "x"), ("Flora-Signature", GOOD), ("Accept", "a"), ("Accept", "b")]
MESSAGE = Message()
for name, value in PAIRS:
    MESSAGE[name] = value


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(dict(PAIRS), id="mapping"),
        pytest.param(PAIRS, id="pairs"),
        pytest.param(iter(PAIRS), id="iterator_of_pairs"),
        pytest.param(tuple([name.lower().encode(), value.encode()] for name, value in PAIRS), id="asgi"),
        pytest.param({name.encode(): value.encode() for name, value in PAIRS}, id="bytes"),
        pytest.param({name: [value] for name, value in PAIRS}, id="lambda_multi_value_headers"),
        pytest.param({"HTTP_FLORA_SIGNATURE": GOOD, "wsgi.input": io.BytesIO(), "wsgi.version": (1, 0)}, id="wsgi"),
        pytest.param(MESSAGE, id="email_message"),
        pytest.param(MultiDict(PAIRS), id="multidict"),
        pytest.param(CIMultiDict(PAIRS), id="aiohttp"),
        pytest.param(Headers(raw=[(name.lower().encode(), value.encode()) for name, value in PAIRS]), id="starlette"),
        pytest.param(wsgiref.headers.Headers(PAIRS), id="wsgiref"),
    ],
)
def test_shapes_of_headers(headers: Any) -> None:
    """The signature is found in each shape in which frameworks pass headers."""
    assert verify(BODY, headers, SECRET, now=NOW).id == "whd_1"


class Framework:
    """A request of a web framework, which yields its body's lines."""

    headers = MESSAGE

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body."""
        raise AssertionError("the body must not be consumed")


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        (None, "NoneType"),
        (5, "int"),
        (GOOD, "str"),
        (GOOD.encode(), "bytes"),
        (dict, "type"),
        ([GOOD], "list does not consist of pairs"),
        ({"flora-signature"}, "set does not consist of pairs"),
        (Framework(), r"Framework. Pass its \.headers"),
        ({"type": "http", "headers": PAIRS}, "dict. Pass its 'headers'"),
        ({"multiValueHeaders": {"flora-signature": [GOOD]}, "body": ""}, "dict. Pass its 'multiValueHeaders'"),
        ({"flora-signature": [{"key": "Flora-Signature", "value": GOOD}]}, "is a dict"),
        ({"flora-signature": 5}, "is a int"),
        ({"flora-signature": []}, "one Flora-Signature header, not 0"),
        ({"flora-signature": [GOOD, GOOD]}, "one Flora-Signature header, not 2"),
        ({"flora-signature": GOOD, "HTTP_FLORA_SIGNATURE": GOOD}, "one Flora-Signature header, not 2"),
    ],
)
def test_shapes_of_headers_that_cannot_be_read(headers: Any, named: str) -> None:
    """The error names the shape, and the fix where there is one."""
    with pytest.raises(WebhookVerificationError, match=named) as caught:
        verify(BODY, headers, SECRET, now=NOW)
    assert DIGEST not in str(caught.value)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ({"id": "whd_2", "type": "ping", "created_at": 1, "data": {"hello": [1]}}, {"hello": [1]}),
        ({"id": "whd_2", "type": "ping"}, None),
        ({"id": "whd_2", "type": "asset.ready", "created_at": 1.5, "data": [1, "a"]}, [1, "a"]),
        ({"id": "whd_2", "type": "run.summarized", "created_at": 1, "data": {"run_id": 5}}, {"run_id": 5}),
    ],
)
def test_a_signed_event_that_is_not_about_a_run(event: dict[str, Any], data: Any) -> None:
    """An event of another kind is told apart from a forgery: it is returned with its type and its data."""
    body = json.dumps(event).encode()
    verified = verify(body, sign(body, SECRET, now=NOW), SECRET, now=NOW)
    assert (verified.id, verified.type, verified.data, verified.run_id) == ("whd_2", event["type"], data, None)
    with pytest.raises(WebhookVerificationError, match="no signature"):
        verify(body, sign(body, "whsec_other", now=NOW), SECRET, now=NOW)


@pytest.mark.parametrize(
    "odd",
    [
        {"created_at": "2026-11-25T10:00:00Z"},
        {"created_at": None},
        {"created_at": 10**400},
        {"id": None},
        {"id": 7},
        {"api_version": 2},
        {"v": 1},
    ],
)
@pytest.mark.parametrize("message", ["No", {"text": "No"}])
def test_a_signed_event_with_an_odd_field_is_no_forgery(odd: dict[str, Any], message: object) -> None:
    """The run and its status are returned: a refusal would lose the webhook after FLORA's last retry."""
    data = {"run_id": "run_1", "status": "failed", "error_message": message}
    body = json.dumps({"id": "whd_1", "type": "run.failed", "created_at": 5, "data": data, **odd}).encode()
    event = verify(body, sign(body, SECRET, now=NOW), SECRET, now=NOW)
    assert (event.run_id, event.data.status) == ("run_1", "failed")  # type: ignore[union-attr]
    assert event.id == ("" if "id" in odd else "whd_1")
    assert event.created_at == (0 if "created_at" in odd else 5)


@pytest.mark.parametrize("padded", [f"{SECRET}\n", f" {SECRET}", f"\t{SECRET}\r\n "])
def test_white_space_around_a_secret(padded: str) -> None:
    """A secret from a file ends with a newline: verifying and signing remove it alike."""
    assert checked(GOOD, secret=padded).id == "whd_1"
    assert sign(BODY, padded, now=NOW)["Flora-Signature"] == GOOD


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b"{" * 100_000, b'{"id": 5}', b"null"])
def test_signed_bodies_that_are_no_events(body: bytes) -> None:
    """Whoever has the secret may still send nonsense."""
    with pytest.raises(WebhookVerificationError, match="not an event"):
        verify(body, sign(body, SECRET, now=NOW), SECRET, now=NOW)


@pytest.mark.parametrize("secret", ["", " \n", None, 5, b"whsec_", "\ud800", "whsec_other"])
def test_secrets_that_are_none(secret: Any) -> None:
    """An empty one would sign whatever anybody sends."""
    with pytest.raises(WebhookVerificationError):
        checked(GOOD, secret=secret)


@pytest.mark.parametrize("headers", [{}, None, [], {"flora-signature": GOOD, "Flora-Signature": GOOD}, {5: GOOD}])
def test_headers_without_one_signature(headers: Any) -> None:
    """Two are as bad as none."""
    with pytest.raises(WebhookVerificationError):
        verify(BODY, headers, SECRET, now=NOW)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), float("inf"), True, "300", None])
def test_tolerances_that_are_none(tolerance: Any) -> None:
    """That is the caller's mistake, not the call-back's."""
    with pytest.raises(ConfigurationError, match="tolerance"):
        checked(GOOD, tolerance=tolerance)


@given(st.binary(), st.text(), st.floats(), st.text(max_size=20))
def test_nothing_else_leaves(body: bytes, header: str, now: float, secret: str) -> None:
    """Whatever comes."""
    with pytest.raises(FloraError):
        verify(body, {"Flora-Signature": header}, secret, now=now)


@given(st.text(min_size=1).filter(lambda text: text.isascii() and text.strip()), st.integers(0, 10**11))
def test_what_is_signed_is_verified(secret: str, now: int) -> None:
    """By the same secret, at the same time."""
    assert verify(BODY, sign(BODY, secret, now=now), secret, now=now).id == "whd_1"
    with pytest.raises(WebhookVerificationError):
        verify(BODY, sign(BODY, secret, now=now), secret + "x", now=now)
