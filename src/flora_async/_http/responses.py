"""Pure: parse responses, and map error statuses to exceptions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from datetime import UTC
from functools import lru_cache
from typing import TypeVar

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.requests import _MAX_CURSOR, Request
from flora_async._http.urls import origin_of
from flora_async._validation import (
    check_id,
)
from flora_async.models import (
    BrokenItem,
    FieldError,
    Generation,
    GenerationPage,
    PageMeta,
    Response,
    Run,
    StartedRun,
)

T = TypeVar("T")
_EXCERPT = 200
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_COUNTED_FROM = 2**18
"""Bytes of an answer from which its values are counted: no smaller one can hold up the event loop."""
_MAX_VALUES = 200_000
_RUN_ID = re.compile(rb'"run_id"\s*:\s*"([^"\\]+)"')
_QUERY = re.compile(r"""(?<=[^\s"'<>])\?[^\s"'<>]*""")
_SECONDS = re.compile(r"[0-9]{1,11}(?:\.[0-9]{0,20})?")
_FIELD = re.compile(r"`(\$[^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


# -- what comes back ---------------------------------------------------------------------------------------------------


class RawResponse(Struct, frozen=True, gc=False, kw_only=True):
    """One answer, as it came."""

    request: Request
    status: int
    headers: Mapping[str, str]
    body: bytes
    received: float | None = None
    """Unix seconds by this machine's clock."""

    def __repr__(self) -> str:
        # Tracebacks with locals show it; what something in between echoes may hold the key.
        return f"Answer({self.status}, {len(self.body)} bytes)"

    @property
    def request_id(self) -> str | None:
        """What FLORA's support asks for."""
        return self.headers.get("request-id")

    @property
    def framed(self) -> bool:
        """Whether it says how long it is; if not, nobody can see that it was cut."""
        return "content-length" in self.headers or "transfer-encoding" in self.headers or self.status == 204


class _ErrorBody(Struct, frozen=True):
    code: str | None = None
    message: str | None = None
    fields: tuple[FieldError, ...] | None = None


class _Envelope(Struct, frozen=True):
    error: _ErrorBody


class _RawPage(Struct, frozen=True):
    generations: tuple[msgspec.Raw, ...]
    meta: PageMeta


_envelope = msgspec.json.Decoder(_Envelope)
_started_run = msgspec.json.Decoder(StartedRun)
_run = msgspec.json.Decoder(Run)
_page = msgspec.json.Decoder(GenerationPage)
_raw_page = msgspec.json.Decoder(_RawPage)
_generation = msgspec.json.Decoder(Generation)

_BY_STATUS: dict[int, type[errors.APIError]] = {
    400: errors.BadRequestError,
    401: errors.AuthenticationError,
    402: errors.InsufficientCreditsError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    422: errors.UnprocessableEntityError,
    429: errors.RateLimitError,
}


def decompress(answer: RawResponse, limit: int) -> RawResponse:
    """Unpack a compressed answer, up to *limit* bytes; one that was cut is as good as none."""
    if answer.headers.get("content-encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return answer
    unpacking = zlib.decompressobj(wbits=47)  # by its header, gzip or zlib
    try:
        body = unpacking.decompress(answer.body, limit + 1)
    except zlib.error:
        body = b""
    if len(body) > limit:
        raise errors.ResponseTooLargeError(
            f"{answer.request.path} answered with more than {limit} bytes", request_id=answer.request_id
        )
    if answer.body and not unpacking.eof:
        raise errors.APIConnectionError(
            f"{answer.request.path}: the compressed answer is broken, or was cut",
            sent="maybe_sent",
            request_id=answer.request_id,
        )
    return msgspec.structs.replace(answer, body=body)


def find_run_id(status: int, beginning: bytes) -> str | None:
    """Find the run in the *beginning* of an answer that was to say that a create was accepted."""
    named = _RUN_ID.search(beginning) if status == 201 else None
    if named is None:
        return None
    try:
        return check_id("run_id", named[1].decode(), "run_")
    except ValueError:
        return None


def parse_started_run(answer: RawResponse) -> StartedRun:
    """Read the answer to a create: exactly 201, and a run with a proper id; anything else is no receipt."""
    if answer.status != 201:
        _raise_for_status(answer)
        raise _protocol_error(answer, f"answered {answer.status}, where an accepted create is a 201")
    try:
        started = _decoded(answer, _started_run)
        _check_given_id(answer, started.run_id)
    except errors.FloraError as error:
        error.run_id = find_run_id(answer.status, answer.body)
        raise
    return started


def reused_run_error(answer: RawResponse, run_id: str) -> errors.ProtocolError:
    """Refuse a run that is another order's: a connection can deliver a stray answer."""
    return _protocol_error(answer, f"answered with {run_id}, the run of another order")


def parse_run(run_id: str, answer: RawResponse) -> Run:
    """Read a run, and make sure that it is the one that was asked for: a connection can deliver a stray answer."""
    run = _decoded(answer, _run)
    if run.run_id != run_id:
        raise _protocol_error(answer, f"asked for {run_id}, answered about {run.run_id[:80]!r}")
    return run


def parse_page(answer: RawResponse) -> GenerationPage:
    """Read one page of the history. An item that cannot be read does not take the others with it."""
    try:
        page = _decoded(answer, _page)
    except errors.ResponseDecodeError:
        page = _parse_items_one_by_one(answer)
    cursor = page.meta.next_cursor
    if cursor is not None and len(cursor) > _MAX_CURSOR:
        raise _decode_error(answer, f"a cursor of {len(cursor)} characters", field="$.meta.next_cursor")
    return page


def _parse_items_one_by_one(answer: RawResponse) -> GenerationPage:
    raw = _decoded(answer, _raw_page)
    generations: list[Generation] = []
    broken: list[BrokenItem] = []
    for index, item in enumerate(raw.generations):
        try:
            generations.append(_generation.decode(item))
        except _UNDECODABLE as error:
            reason, field = _describe_decode_error(error)
            broken.append(
                BrokenItem(
                    field=f"$.generations[{index}]{(field or '$')[1:]}",
                    reason=reason,
                    url=answer.request.path,
                    request_id=answer.request_id,
                    excerpt=_excerpt(bytes(item)),
                )
            )
    return GenerationPage(generations=tuple(generations), meta=raw.meta, broken=tuple(broken))


def check_decodable(kind: object) -> None:
    """Check that msgspec can decode into *kind*, before anything is sent."""
    try:
        msgspec.json.Decoder(kind)
    except (TypeError, ValueError, NameError, AttributeError, RecursionError, msgspec.MsgspecError) as error:
        raise errors.ConfigurationError(f"decode_as cannot be decoded into by msgspec: {error}") from None


def parse_response(kind: type[T], answer: RawResponse) -> Response[T]:
    """Read any answer as a *kind* of value; an empty one (204) as an empty object."""
    try:
        data = _decoded(answer, msgspec.json.Decoder(kind), answer.body or b"{}")
    except errors.FloraError as error:
        error.run_id = find_run_id(answer.status, answer.body)
        raise
    return Response(
        data=data,
        status=answer.status,
        headers=_lowered(answer.headers),
        request_id=answer.request_id,
    )


def _raise_for_status(answer: RawResponse) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    if 400 <= status < 600:
        raise _api_error(answer)
    if 300 <= status < 400:
        where = origin_of(answer.headers.get("location", "")) or "another path of its own"
        message = f"redirects ({status}) to {where}, which is not followed: check base_url"
        raise _protocol_error(answer, message, retryable=False)
    raise _protocol_error(answer, f"answered with status {status}, which HTTP does not know", retryable=False)


def _protocol_error(answer: RawResponse, message: str, *, retryable: bool = True) -> errors.ProtocolError:
    return errors.ProtocolError(
        f"{answer.request.path} {message}", status=answer.status, retryable=retryable, request_id=answer.request_id
    )


def _decoded(answer: RawResponse, decoder: msgspec.json.Decoder[T], body: bytes | None = None) -> T:
    if not 200 <= answer.status < 300:
        _raise_for_status(answer)
    if len(answer.body) > _COUNTED_FROM:
        _check_value_count(answer)
    try:
        return decoder.decode(answer.body if body is None else body)
    except _UNDECODABLE as error:
        reason, field = _describe_decode_error(error)
    if not answer.framed:
        raise errors.APIConnectionError(
            f"{answer.request.path}: the answer was cut", sent="maybe_sent", request_id=answer.request_id
        )
    raise _decode_error(answer, reason, field=field)


def _check_value_count(answer: RawResponse) -> None:
    """Refuse an answer of so many values that reading it would hold up the event loop."""
    if answer.body.count(b",") > _MAX_VALUES and _is_crowded(answer.body):
        raise errors.ResponseTooLargeError(
            f"{answer.request.path} answered with more than {_MAX_VALUES} values", request_id=answer.request_id
        )


def _is_crowded(body: bytes) -> bool:
    """Return whether a text of many commas has many values, or only long strings; its end may be torn off."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # each quote left begins or ends a string
    if plain.count(b'"') > 4 * _MAX_VALUES:  # a value is a string at most, with a name that is another
        return True
    return sum(between.count(b",") for between in plain.split(b'"')[::2]) > _MAX_VALUES


def _describe_decode_error(error: Exception) -> tuple[str, str | None]:
    """Say what msgspec has against an answer, and where."""
    reason = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        reason = "nested too deep"
    missing, at = _MISSING.search(reason), _FIELD.search(reason)
    path = at[1] if at else "$" if missing else None
    return reason.partition(" - at `")[0], f"{path}.{missing[1]}" if missing else path


def _decode_error(answer: RawResponse, reason: str, *, field: str | None) -> errors.ResponseDecodeError:
    return errors.ResponseDecodeError(
        reason,
        field=field,
        url=answer.request.path,
        status=answer.status,
        request_id=answer.request_id,
        excerpt=_excerpt(answer.body),
    )


def _check_given_id(answer: RawResponse, run_id: str) -> None:
    try:
        check_id("run_id", run_id, "run_")
    except errors.ConfigurationError as error:
        reason = str(error)
    else:
        return
    raise _decode_error(answer, reason, field="$.run_id")


def _excerpt(body: bytes) -> str:
    # Queries of signed URLs are credentials.
    return _QUERY.sub("?...", body[:_EXCERPT].decode(errors="replace"))


def _api_error(answer: RawResponse) -> errors.APIError:
    try:
        said = _envelope.decode(answer.body).error
    except _UNDECODABLE:
        # Proxies in front of FLORA answer HTML, or nothing.
        said = _ErrorBody()
    status = answer.status
    kind = _BY_STATUS.get(status, errors.InternalServerError if status >= 500 else errors.APIError)
    if said.code == "idempotency_duplicate" and status == 409:
        kind = errors.IdempotencyConflictError
    message = said.message or _excerpt(answer.body) or "an empty answer"
    order = answer.request.order
    if order is not None and (status, said.code) == (500, "unknown_error"):
        message += f" FLORA answers so to a malformed project_id: check {order.project_id!r}."
    return kind(
        message,
        status=status,
        code=said.code,
        fields=said.fields or (),
        request_id=answer.request_id,
        retry_after=retry_after(answer.headers, answer.received),
        headers=_lowered(answer.headers),
    )


def _lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def retry_after(headers: Mapping[str, str], received: float | None = None) -> float | None:
    """Return ``Retry-After`` in seconds: a decimal number, or a date minus the response's ``Date``.

    Without a ``Date`` that can be read, *received* stands in for it: Unix seconds by this machine's clock.
    """
    value = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    until, sent = http_date(value), http_date(headers.get("date", ""))
    now = received if sent is None else sent
    return max(0.0, until - now) if until is not None and now is not None else None


@lru_cache(maxsize=64)  # a server says the same one for a second
def http_date(value: str) -> float | None:
    """Return a date header as Unix seconds; ``None`` if it is no date. Without a zone it is in UTC."""
    from email.utils import parsedate_to_datetime  # a tenth of the time that importing this package takes

    try:
        date = parsedate_to_datetime(value) if value.isascii() else None
        return None if date is None else (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, LookupError):  # the last two from email.utils, by its version
        return None
