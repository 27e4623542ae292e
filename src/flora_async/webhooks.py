"""Pure: verify and sign webhook requests.

FLORA signs the body of each webhook with the secret of its endpoint (``whsec_...``): ``Flora-Signature: t=<unix
seconds>,v1=<hex>``, an HMAC-SHA256 over ``t``, a dot and the body's bytes. Verify the received bytes before anything
else: a body that was parsed and encoded again has another signature.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Literal, Protocol, TypeAlias, TypeGuard, runtime_checkable

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._bounded_dict import BoundedDict
from flora_async._validation import is_iterable
from flora_async.models import Record

SIGNATURE_HEADER = "Flora-Signature"
"""The header that proves a webhook: its time and its signatures."""
ID_HEADER = "Flora-Webhook-Id"
"""The header with the delivery's id; it is in the body too, where it is signed."""
EVENT_HEADER = "Flora-Event"
"""The header with the event's type; it is in the body too, where it is signed."""

_MAX_BODY = 2**20
_MAX_MILLISECONDS = 1e15
_MAX_HEADER = 4096
_MAX_SIGNATURES = 8
_TIME = r"[0-9]{1,12}"
_HEX_DIGEST = r"[0-9a-f]{64}"
_SIGNATURE_NAMES = frozenset({"flora-signature", "http_flora_signature"})
"""The header's name in HTTP and in WSGI's environ, in lower case."""
_HEADERS_RULE = "headers must be a mapping or name/value pairs, str or bytes"

WebhookType: TypeAlias = Literal["run.completed", "run.failed"] | str
"""The kind of an event. Open: FLORA may send others."""

JSONValue: TypeAlias = dict[str, object] | list[object] | str | int | float | bool | None
"""Decoded JSON."""


@runtime_checkable
class HeaderItems(Protocol):
    """Headers with ``items()``: mappings, multi-dicts of web frameworks, :class:`email.message.Message`."""

    def items(self) -> Iterable[tuple[object, object]]:
        """Return names with values."""
        ...


Headers: TypeAlias = HeaderItems | Iterable[tuple[str | bytes, str | bytes]]
"""Headers of a request, as web frameworks pass them: a mapping, a multi-dict, ASGI's list of byte pairs, WSGI's environ
(``HTTP_FLORA_SIGNATURE``), AWS Lambda's ``headers`` or ``multiValueHeaders``. Names and values are str or bytes; the
case of names does not matter.
"""
Body: TypeAlias = bytes | bytearray | memoryview | str
"""The body of a request as received; text is encoded as UTF-8."""


class WebhookData(Record, frozen=True, kw_only=True):
    """The data of an event about a run: its final status, without its outputs."""

    run_id: str
    status: str
    run_type: str | None = None
    workspace_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None


class WebhookEvent(Record, frozen=True, kw_only=True):
    """A webhook that FLORA signed. FLORA sends each at least once: repeated deliveries have the same :attr:`id`."""

    id: str
    """``whd_...``; empty if the event has none."""
    type: WebhookType
    created_at: float
    """Unix milliseconds; 0 if the event has none, or names its time in another form."""
    data: WebhookData | JSONValue
    """A :class:`WebhookData` if the event is about a run (``run.*``); else the event's data as decoded JSON."""
    api_version: str | None = None
    signed_at: float = msgspec.field(default=0.0, name="signed_at_for_client")
    """Unix seconds, as signed."""
    digest: str = msgspec.field(default="", name="digest_for_client")
    """The signature that matched. Together with :attr:`signed_at` it identifies one HTTP request."""
    repeated: bool = msgspec.field(default=False, name="repeated_for_client")
    """Whether the same :class:`~flora_async.Inbox` received this delivery before. Always false after :func:`verify`."""

    @property
    def run_id(self) -> str | None:
        """The id of the event's run; ``None`` if the event is not about a run."""
        return self.data.run_id if isinstance(self.data, WebhookData) else None


class _Envelope(Struct, frozen=True, kw_only=True):
    """The fields of an event, of any type: the event is signed, and one odd field must not make it a forgery."""

    type: str
    id: object = ""
    created_at: object = 0.0
    api_version: object = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _RunOutcome(Struct, frozen=True):
    run_id: str
    status: str


_RUN_DATA: tuple[type[WebhookData | _RunOutcome], ...] = (WebhookData, _RunOutcome)
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def verify(
    body: Body,
    headers: Headers,
    secret: str,
    *,
    tolerance: float = 300,
    now: float | None = None,
) -> WebhookEvent:
    """Verify that a webhook comes from FLORA, and decode it.

    An event that is not about a run (a ping, a type that FLORA adds later) is returned too, with its ``type`` and the
    decoded ``data``.

    Args:
        body: the request's body as received.
        headers: the request's headers: a mapping, a multi-dict, ASGI's pairs, WSGI's environ or AWS Lambda's
            ``multiValueHeaders``, str or bytes. The case of their names does not matter.
        secret: the endpoint's, ``whsec_`` included. White space at both ends is removed.
        tolerance: largest difference in seconds between the signature's time and *now*, to either side.
        now: Unix seconds; by default this machine's clock.

    Raises:
        WebhookVerificationError: the request is not proven to come from FLORA, or *body* or *headers* have a type that
            cannot be read. The message names the reason, and contains neither signature nor secret.
        ConfigurationError: *tolerance* is not a finite number of seconds.
    """
    _check_tolerance(tolerance)
    raw = _raw(body)
    signed_at, signatures = _parse_signature_header(_find_signature_header(headers))
    expected = _digest(secret, signed_at, raw)
    if not any(hmac.compare_digest(expected, signature) for signature in signatures):
        raise _refusal(
            "no signature matches this body and secret. Pass the body as received, and the secret of this endpoint"
        )
    if not abs((time.time() if now is None else now) - float(signed_at)) <= tolerance:
        raise _refusal(f"it was signed more than {tolerance:g} s from now. Check this machine's clock")
    event = _decode_event(raw)
    if event is None:
        raise _refusal("the signed body is not an event")
    return msgspec.structs.replace(event, signed_at=float(signed_at), digest=expected.decode())


def sign(body: Body, secret: str, *, now: float | None = None) -> dict[str, str]:
    """Return the headers of a webhook with this *body*, signed as FLORA does, for tests of an endpoint.

    The delivery's id and type are read from the body, if it has them. *now* is in Unix seconds.

    Raises:
        WebhookVerificationError: *body* or *secret* cannot be signed.
    """
    raw = _raw(body)
    signed_at = str(int(time.time() if now is None else now))
    headers = {SIGNATURE_HEADER: f"t={signed_at},v1={_digest(secret, signed_at, raw).decode()}"}
    event = _decode_event(raw)
    if event is None:
        return headers
    return {**headers, **({ID_HEADER: event.id} if event.id else {}), EVENT_HEADER: event.type}


def _decode_event(raw: bytes) -> WebhookEvent | None:
    """Return the event that *raw* encodes; ``None`` if it encodes something else."""
    try:
        envelope = msgspec.json.decode(raw, type=_Envelope)
        return WebhookEvent(
            id=envelope.id if isinstance(envelope.id, str) else "",
            type=envelope.type,
            created_at=_milliseconds(envelope.created_at),
            data=_decode_data(envelope),
            api_version=envelope.api_version if isinstance(envelope.api_version, str) else None,
        )
    except _UNDECODABLE:
        return None


def _milliseconds(created_at: object) -> float:
    return float(created_at) if isinstance(created_at, int | float) and abs(created_at) < _MAX_MILLISECONDS else 0.0


def _decode_data(envelope: _Envelope) -> WebhookData | JSONValue:
    if envelope.type.startswith("run."):
        for kind in _RUN_DATA:
            try:
                known = msgspec.json.decode(envelope.data, type=kind)
            except _UNDECODABLE:
                continue  # FLORA may add types of events with other data. The caller gets the decoded JSON.
            return known if isinstance(known, WebhookData) else WebhookData(run_id=known.run_id, status=known.status)
    data: JSONValue = msgspec.json.decode(envelope.data)
    return data


def _refusal(reason: str) -> errors.WebhookVerificationError:
    return errors.WebhookVerificationError(f"cannot verify the webhook: {reason}")


def _check_tolerance(tolerance: object) -> None:
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise errors.ConfigurationError(f"tolerance must be at least 0 seconds, not {tolerance!r}")


def _raw(body: object) -> bytes:
    if isinstance(body, str):
        try:
            raw = body.encode()
        except UnicodeEncodeError:
            raise _refusal("the body is text with half a surrogate pair. Pass the bytes as received") from None
    elif _is_buffer(body):
        raw = bytes(body)
    else:
        raise _refusal(
            f"the body must be the bytes or text as received, not {type(body).__name__}. "
            "A parsed body cannot be verified"
        )
    if len(raw) > _MAX_BODY:
        raise _refusal(f"the body is larger than {_MAX_BODY} bytes")
    return raw


def _find_signature_header(headers: object) -> str:
    """Return the only signature header in *headers*, or raise an error that names the type of *headers*."""
    items = _header_items(headers)
    found = [value for name, value in items if _text(name).lower() in _SIGNATURE_NAMES]
    if not found:
        raise _refusal(f"there is no {SIGNATURE_HEADER} header in this {_kind(headers)}{_hint(n for n, _ in items)}")
    values = [item for value in found for item in (value if _is_sequence(value) else [value])]
    if len(values) != 1:
        raise _refusal(f"there must be one {SIGNATURE_HEADER} header, not {len(values)}")
    if not isinstance(values[0], str | bytes):
        raise _refusal(f"the value of {SIGNATURE_HEADER} is a {_kind(values[0])}. It must be str or bytes")
    header = _text(values[0])
    if len(header) > _MAX_HEADER or not header.isascii():
        raise _refusal(f"the {SIGNATURE_HEADER} header is malformed")
    return header


def _header_items(headers: object) -> list[tuple[object, object]]:
    """Return the names and values of *headers*."""
    kind = _kind(headers)
    if hasattr(headers, "headers"):
        raise _refusal(f"{_HEADERS_RULE}, not a whole {kind}. Pass its .headers")
    try:
        items: object = headers.items() if isinstance(headers, HeaderItems) else headers
        listed = list(items) if is_iterable(items) else None
    except (AttributeError, LookupError, TypeError, ValueError):
        listed = None
    if listed is None:
        raise _refusal(f"{_HEADERS_RULE}, not {kind}")
    pairs = [(pair[0], pair[1]) for pair in listed if _is_sequence(pair) and len(pair) == 2]
    if len(pairs) != len(listed):
        raise _refusal(f"{_HEADERS_RULE}; this {kind} does not consist of pairs")
    return pairs


def _is_buffer(value: object) -> TypeGuard[bytes | bytearray | memoryview]:
    return isinstance(value, bytes | bytearray | memoryview)


def _is_sequence(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, list | tuple)


def _kind(value: object) -> str:
    return type(value).__name__


def _hint(names: Iterable[object]) -> str:
    """Return the fix if the caller passed a whole ASGI scope or Lambda event instead of its headers."""
    nested = next((name for name in names if name in ("headers", "multiValueHeaders")), None)
    return f". Pass its {nested!r}" if nested else ""


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""


def _parse_signature_header(header: str) -> tuple[str, list[bytes]]:
    """Return the time and the signatures of a header. Unknown schemes are ignored."""
    times: list[str] = []
    signatures: list[bytes] = []
    for part in header.split(","):
        scheme, _, value = part.strip(" \t").partition("=")
        if scheme == "t":
            times.append(value)
        elif scheme == "v1" and re.fullmatch(_HEX_DIGEST, value):
            signatures.append(value.encode())
    if len(times) != 1 or not re.fullmatch(_TIME, times[0]):
        raise _refusal(f"the {SIGNATURE_HEADER} header must have one time")
    if not 1 <= len(signatures) <= _MAX_SIGNATURES:
        raise _refusal(f"the {SIGNATURE_HEADER} header must have 1 to {_MAX_SIGNATURES} signatures")
    return times[0], signatures


def _digest(secret: object, signed_at: str, body: bytes) -> bytes:
    if not isinstance(secret, str):
        raise _refusal(f"the secret must be a str, not {_kind(secret)}. Pass the endpoint's whsec_...")
    text = secret.strip()
    if not text:
        raise _refusal("the secret is empty. Pass the endpoint's whsec_...")
    try:
        key = text.encode()
    except UnicodeEncodeError:
        raise _refusal("the secret has half a surrogate pair, which cannot be encoded") from None
    return hmac.new(key, f"{signed_at}.".encode() + body, "sha256").hexdigest().encode()


log: logging.Logger = logging.getLogger("flora_async")

MAX_REMEMBERED_DELIVERIES = 100_000
"""Maximum number of delivery ids that are remembered, to mark repeated deliveries."""
UNFINISHED = frozenset({"pending", "running"})
"""Statuses of a run that can still change. A webhook with one of them resolves no wait."""


class Inbox:
    """Receives FLORA's webhooks from any web framework: ``flora.inbox()``, then ``inbox.receive(body, headers)``.

    A webhook resolves the waits for its run by one poll, since it contains no outputs. Before the webhook, a run with a
    ``callback_url`` is polled rarely. Its first poll comes long after the run's expected end.
    """

    def __init__(self, notify_finished: Callable[[str], None], secret: str) -> None:
        self._notify_finished = notify_finished
        self._secret = secret
        self._lock = Lock()
        self._seen: BoundedDict[str, None] = BoundedDict(MAX_REMEMBERED_DELIVERIES)

    def __repr__(self) -> str:
        return "Inbox(***)"

    def receive(self, body: Body, headers: Headers) -> WebhookEvent:
        """Verify a webhook, resolve the waits for its run, and return the event. Safe to call from any thread.

        FLORA sends each delivery at least once. A delivery that this inbox received before is returned again, with
        ``repeated`` true: if your own processing of the first one failed, process it now. An event that is not about a
        run (a ping, a type that FLORA adds later) is returned too, and resolves no wait.

        Respond with 2xx if it returns and with 400 if it raises. FLORA waits for 10 seconds, and retries after 10
        seconds, a minute and five minutes.

        Args:
            body: the request's body as received.
            headers: the request's headers, in any form that :func:`~flora_async.webhooks.verify` accepts.

        Raises:
            WebhookVerificationError: the request is not proven to come from FLORA; nothing was done.
        """
        event = verify(body, headers, self._secret)
        repeated = self._record(event.id)
        extra = {"run_id": event.run_id, "webhook_type": event.type, "webhook_id": event.id}
        log.info("%s: received webhook %s", event.run_id or event.id, event.type, extra=extra)
        if repeated:
            return msgspec.structs.replace(event, repeated=True)
        if isinstance(event.data, WebhookData) and event.data.status not in UNFINISHED:
            self._notify_finished(event.data.run_id)
        return event

    def _record(self, delivery: str) -> bool:
        """Remember a delivery; return whether it was received before."""
        if not delivery:
            return False
        with self._lock:
            if delivery in self._seen:
                return True
            self._seen[delivery] = None
            return False
