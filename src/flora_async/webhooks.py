"""Pure: is this call-back FLORA's?

FLORA signs the body of each call-back with the secret of its endpoint (``whsec_...``): ``Flora-Signature: t=<unix
seconds>,v1=<hex>``, an HMAC-SHA256 over ``t``, a dot and the body's bytes. Verify before anything else, with the bytes
as they came: a body that was parsed and written again is another body.
"""

from __future__ import annotations

import hmac
import math
import re
import time
from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

from flora_async import errors

SIGNATURE_HEADER = "Flora-Signature"
"""The header that proves a call-back: its time and its signatures."""
ID_HEADER = "Flora-Webhook-Id"
"""The header with the delivery's id; it is in the body too, where it is signed."""
EVENT_HEADER = "Flora-Event"
"""The header with the event's type; it is in the body too, where it is signed."""

_MAX_BODY = 2**20
_MAX_HEADER = 4096
_MAX_SIGNATURES = 8
_TIME = re.compile(r"[0-9]{1,12}")
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

WebhookType: TypeAlias = Literal["run.completed", "run.failed"] | str
"""What happened. Open."""


class WebhookData(Struct, frozen=True, kw_only=True):
    """What a call-back tells of a run: how it ended, but not its outputs."""

    run_id: str
    status: str
    run_type: str | None = None
    workspace_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class WebhookEvent(Struct, frozen=True, kw_only=True):
    """A call-back that is FLORA's. The same one may come more than once: :attr:`id` is the same then."""

    id: str
    type: WebhookType
    created_at: float
    """Unix milliseconds."""
    data: WebhookData
    api_version: str | None = None
    signed_at: float = msgspec.field(default=0.0, name="signed_at_for_client")
    """Unix seconds, as signed."""
    digest: str = msgspec.field(default="", name="digest_for_client")
    """The signature that was right; with :attr:`signed_at` it tells a replayed call-back, where ids do not matter."""


_event = msgspec.json.Decoder(WebhookEvent)


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance: float = 300,
    now: float | None = None,
) -> WebhookEvent:
    """Make sure that a call-back comes from FLORA, and read it.

    Args:
        body: the request's bytes as they came.
        headers: the request's headers; the case of their names does not matter.
        secret: the endpoint's, ``whsec_...`` and all.
        tolerance: seconds by which the signature's time may be off, to either side.
        now: Unix seconds; by default this machine's clock.

    Raises:
        WebhookVerificationError: it is not proven to be FLORA's, whatever is wrong with it. The text shows neither
            signature nor secret.
        ConfigurationError: *tolerance* is no finite number of seconds.
    """
    _check_tolerance(tolerance)
    raw = _raw(body)
    signed_at, signatures = _taken_apart(_header(headers))
    expected = _digest(secret, signed_at, raw)
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise _refusal("no signature is that of this body under this secret")
    if not abs((time.time() if now is None else now) - float(signed_at)) <= tolerance:
        raise _refusal(f"it was signed more than {tolerance:g} s from now: check this machine's clock")
    try:
        event = _event.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        event = None
    if event is None:
        raise _refusal("the body is signed, but is no event")
    return msgspec.structs.replace(event, signed_at=float(signed_at), digest=expected.decode())


def sign(body: bytes, secret: str, *, now: float | None = None) -> dict[str, str]:
    """Sign *body* as FLORA does, for tests of an endpoint: the headers of a call-back.

    The delivery's id and type are read from the body, if it has them. *now* is in Unix seconds.
    """
    signed_at = str(int(time.time() if now is None else now))
    headers = {SIGNATURE_HEADER: f"t={signed_at},v1={_digest(secret, signed_at, body).decode()}"}
    try:
        event = _event.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return headers
    return {**headers, ID_HEADER: event.id, EVENT_HEADER: event.type}


def _refusal(reason: str) -> errors.WebhookVerificationError:
    return errors.WebhookVerificationError(f"not FLORA's call-back: {reason}")


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise errors.ConfigurationError(f"tolerance must be seconds from 0 on, not {tolerance!r}")


def _raw(body: object) -> bytes:
    if not isinstance(body, bytes | bytearray):
        raise _refusal(f"the body must be the bytes as they came, not {type(body).__name__}")
    if len(body) > _MAX_BODY:
        raise _refusal(f"the body has more than {_MAX_BODY} bytes")
    return bytes(body)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _header(headers: Mapping[str, str]) -> str:
    wanted = SIGNATURE_HEADER.lower()
    try:
        found = [_text(value) for name, value in headers.items() if name.lower() == wanted]
    except (AttributeError, TypeError, ValueError):
        found = []
    if len(found) != 1:
        raise _refusal(f"it must have one {SIGNATURE_HEADER} header")
    if len(found[0]) > _MAX_HEADER or not found[0].isascii():
        raise _refusal(f"its {SIGNATURE_HEADER} header is malformed")
    return found[0]


def _taken_apart(header: str) -> tuple[str, list[bytes]]:
    """Read the one time and the signatures; schemes that nobody here knows are passed over."""
    times: list[str] = []
    signatures: list[bytes] = []
    for part in header.split(","):
        scheme, _, value = part.strip(" \t").partition("=")
        if scheme == "t":
            times.append(value)
        elif scheme == "v1" and _HEX_DIGEST.fullmatch(value):
            signatures.append(value.encode())
    if len(times) != 1 or not _TIME.fullmatch(times[0]):
        raise _refusal(f"its {SIGNATURE_HEADER} header must have one time")
    if not 1 <= len(signatures) <= _MAX_SIGNATURES:
        raise _refusal(f"its {SIGNATURE_HEADER} header must have 1 to {_MAX_SIGNATURES} signatures")
    return times[0], signatures


def _digest(secret: object, signed_at: str, body: bytes) -> bytes:
    if not isinstance(secret, str) or not secret:
        raise _refusal("there is no secret to check it with: set it to the endpoint's whsec_...")
    try:
        key = secret.encode()
    except UnicodeEncodeError:
        key = b""
    if not key:
        raise _refusal("the secret is no text that can be encoded")
    return hmac.new(key, f"{signed_at}.".encode() + body, "sha256").hexdigest().encode()
