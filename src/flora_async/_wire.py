"""Pure: requests out, answers in. What may be asked for and how, and what an answer means.

Nothing here touches a socket, a clock or aiohttp.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from datetime import UTC
from enum import Enum
from functools import lru_cache
from typing import Any, TypeVar, get_args
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._addresses import ENCODED_PATH, Origin, dotted, named_origin, secure
from flora_async._arguments import (
    check_id,
    check_idempotency_key,
    check_limit,
    check_text,
    encode,
    to_json_object,
    unwrap_number,
)
from flora_async.models import (
    BrokenItem,
    FieldError,
    Generation,
    GenerationPage,
    GenerationType,
    Order,
    PageMeta,
    Response,
    Run,
    StartedRun,
)

T = TypeVar("T")

_TYPES: tuple[GenerationType, ...] = get_args(GenerationType)
_EXCERPT = 200
_MAX_CURSOR = 4096
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_COUNTED_FROM = 2**18
"""Bytes of an answer from which its values are counted: no smaller one can hold up the event loop."""
_MAX_VALUES = 200_000
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+")
_ID_IN_PATH = re.compile(r"(?<=/)(?:run|ws|prj|tech|asset|whd)_[^/]+")
_RUN_ID = re.compile(rb'"run_id"\s*:\s*"([^"\\]+)"')
_QUERY = re.compile(r"""(?<=[^\s"'<>])\?[^\s"'<>]*""")
_SECONDS = re.compile(r"[0-9]{1,11}(?:\.[0-9]{0,20})?")
_FIELD = re.compile(r"`(\$[^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")


# -- what goes out -----------------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, gc=False, kw_only=True):
    """One request, ready for the wire. With an *order* it is a create, which has rules of its own."""

    method: str
    url: str
    body: bytes | None = None
    idempotency_key: str | None = None
    order: Order | None = None
    template: str = "/runs/{id}"
    """Its path below the base URL, without ids: what events tell."""

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        return self.idempotency_key is not None or not self.billable

    @property
    def billable(self) -> bool:
        """Whether FLORA may start something that costs money when it receives the request."""
        return self.method not in ("GET", "HEAD", "OPTIONS")

    @property
    def path(self) -> str:
        """What it asks for, without its query: fit for a log."""
        return self.url.partition("?")[0]


def check_order(origin: Origin, order: Order) -> Order:
    """Check an order before it is paid, and return it as it is sent: a plain Order of plain values.

    Reference: "Start a generation", Parameters.
    """
    if order.callback_url is not None and not secure(origin, check_text("callback_url", order.callback_url)):
        raise errors.ConfigurationError("callback_url must be an https URL, like https://example.com/flora")
    return Order(
        type=_check_type(order.type),
        prompt=check_text("prompt", order.prompt),
        workspace_id=check_id("workspace_id", order.workspace_id, "ws_"),
        project_id=check_id("project_id", order.project_id, "prj_"),
        model=None if order.model is None else check_text("model", order.model),
        params=None if order.params is None else to_json_object("params", order.params),
        callback_url=None if order.callback_url is None else check_text("callback_url", order.callback_url),
    )


def _check_type(kind: object) -> GenerationType:
    if isinstance(kind, str) and kind in _TYPES:
        return _TYPES[_TYPES.index(kind)]
    kinds = ", ".join(map(repr, _TYPES))
    fix = ". Use its .value" if isinstance(kind, Enum) else ""
    raise errors.ConfigurationError(f"type must be one of {kinds}, not {kind!r}{fix}")


def order_of(order: object, fields: Mapping[str, Any]) -> Order:
    """Return the Order that a create was given: whole, or as *fields*, which are ``None`` where they were left out."""
    given = [name for name, value in fields.items() if value is not None]
    if order is None:
        missing = [name for name in ("type", "prompt", "workspace_id", "project_id") if name not in given]
        if missing:
            raise errors.ConfigurationError(
                f"the order lacks {', '.join(missing)}. Pass an Order, or type, prompt, workspace_id and project_id"
            )
        return Order(**fields)
    if not isinstance(order, Order):
        raise errors.ConfigurationError(
            f"the positional argument must be an Order, not {type(order).__name__}. "
            "Pass an Order, or type=..., prompt=..., workspace_id=..., project_id=..."
        )
    if given:
        raise errors.ConfigurationError(
            f"an Order has its fields already. Leave out {', '.join(given)}, or use msgspec.structs.replace(order, ...)"
        )
    return order


def create_request(origin: Origin, order: Order, idempotency_key: str) -> Request:
    """``POST /generate``, under one key for all its attempts."""
    plain = check_order(origin, order)
    return Request(
        method="POST",
        url=f"{origin.url}/generate",
        body=msgspec.json.encode(plain),
        idempotency_key=idempotency_key,
        order=plain,
        template="/generate",
    )


def retrieve_request(origin: Origin, run_id: str) -> Request:
    """``GET /runs/{runId}``."""
    place = check_id("run_id", run_id, "run_")
    if not _UNRESERVED.fullmatch(place):
        place = quote(place, safe="")
    return Request(method="GET", url=f"{origin.url}/runs/{place}")


def list_request(
    origin: Origin,
    *,
    cursor: str | None,
    limit: int | None,
    project_id: str | None,
    status: str | None,
    workspace_id: str | None,
) -> Request:
    """``GET /generations``, one page of it."""
    query: dict[str, str] = {}
    if cursor is not None:
        query["cursor"] = check_text("cursor", cursor, longest=_MAX_CURSOR)
    if limit is not None:
        query["limit"] = str(check_limit(limit))
    if project_id is not None:
        query["project_id"] = check_id("project_id", project_id, "prj_")
    if status is not None:
        query["status"] = check_text("status", status)
    if workspace_id is not None:
        query["workspace_id"] = check_id("workspace_id", workspace_id, "ws_")
    return Request(method="GET", url=_with_query(f"{origin.url}/generations", query), template="/generations")


def plain_request(
    origin: Origin,
    method: str,
    path: str,
    *,
    params: Mapping[str, str | int | float | bool] | None,
    json: object,
    idempotency_key: str | None,
) -> Request:
    """Anything else below the base URL."""
    verb = check_text("method", method)
    if not (verb.isascii() and verb.isalpha()):
        raise errors.ConfigurationError(f"method must be a word like GET, not {verb!r}")
    encoded = "/" + check_text("path", path).removeprefix("/")
    if not ENCODED_PATH.fullmatch(encoded) or "//" in encoded or dotted(encoded):
        raise errors.ConfigurationError(
            f"path must lie below the base URL, percent-encoded and without a query, not {path[:80]!r}"
        )
    query = {check_text("a name in params", name): _query_value(name, value) for name, value in (params or {}).items()}
    return Request(
        method=verb.upper(),
        url=_with_query(origin.url + encoded, query),
        # Several operations answer 400 to a POST without a body.
        body=encode("json", json) if json is not None else b"{}" if verb.upper() == "POST" else None,
        idempotency_key=None if idempotency_key is None else check_idempotency_key(idempotency_key),
        template=_ID_IN_PATH.sub("{id}", encoded),
    )


def _query_value(name: str, value: object) -> str:
    plain = unwrap_number(value)
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, int):
        return str(int(plain))
    if isinstance(plain, float):
        if not math.isfinite(plain):
            raise errors.ConfigurationError(f"params[{name!r}] is {plain}. Send a finite number")
        return str(float(plain))
    return check_text(f"params[{name!r}]", plain)


def _with_query(url: str, query: Mapping[str, str]) -> str:
    return f"{url}?{urlencode(query, quote_via=quote)}" if query else url


# -- what comes back ---------------------------------------------------------------------------------------------------


class Answer(Struct, frozen=True, gc=False, kw_only=True):
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


def unpacked(answer: Answer, limit: int) -> Answer:
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


def salvaged_run_id(status: int, beginning: bytes) -> str | None:
    """Find the run in the *beginning* of an answer that was to say that a create was accepted."""
    named = _RUN_ID.search(beginning) if status == 201 else None
    if named is None:
        return None
    try:
        return check_id("run_id", named[1].decode(), "run_")
    except ValueError:
        return None


def read_started_run(answer: Answer) -> StartedRun:
    """Read the answer to a create: exactly 201, and a run with a proper id; anything else is no receipt."""
    if answer.status != 201:
        _refuse_errors(answer)
        raise _protocol_error(answer, f"answered {answer.status}, where an accepted create is a 201")
    try:
        started = _decoded(answer, _started_run)
        _check_given_id(answer, started.run_id)
    except errors.FloraError as error:
        error.run_id = salvaged_run_id(answer.status, answer.body)
        raise
    return started


def given_before(answer: Answer, run_id: str) -> errors.ProtocolError:
    """Refuse a run that is another order's: a connection can deliver a stray answer."""
    return _protocol_error(answer, f"answered with {run_id}, the run of another order")


def read_run(run_id: str, answer: Answer) -> Run:
    """Read a run, and make sure that it is the one that was asked for: a connection can deliver a stray answer."""
    run = _decoded(answer, _run)
    if run.run_id != run_id:
        raise _protocol_error(answer, f"asked for {run_id}, answered about {run.run_id[:80]!r}")
    return run


def read_page(answer: Answer) -> GenerationPage:
    """Read one page of the history. An item that cannot be read does not take the others with it."""
    try:
        page = _decoded(answer, _page)
    except errors.ResponseDecodeError:
        page = _mended_page(answer)
    cursor = page.meta.next_cursor
    if cursor is not None and len(cursor) > _MAX_CURSOR:
        raise _decode_error(answer, f"a cursor of {len(cursor)} characters", field="$.meta.next_cursor")
    return page


def _mended_page(answer: Answer) -> GenerationPage:
    raw = _decoded(answer, _raw_page)
    generations: list[Generation] = []
    broken: list[BrokenItem] = []
    for index, item in enumerate(raw.generations):
        try:
            generations.append(_generation.decode(item))
        except _UNDECODABLE as error:
            reason, field = _explained(error)
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


def read_response(kind: type[T], answer: Answer) -> Response[T]:
    """Read any answer as a *kind* of value; an empty one (204) as an empty object."""
    try:
        data = _decoded(answer, msgspec.json.Decoder(kind), answer.body or b"{}")
    except errors.FloraError as error:
        error.run_id = salvaged_run_id(answer.status, answer.body)
        raise
    return Response(
        data=data,
        status=answer.status,
        headers=_lowered(answer.headers),
        request_id=answer.request_id,
    )


def _refuse_errors(answer: Answer) -> None:
    status = answer.status
    if 200 <= status < 300:
        return
    if 400 <= status < 600:
        raise _api_error(answer)
    if 300 <= status < 400:
        where = named_origin(answer.headers.get("location", "")) or "another path of its own"
        message = f"redirects ({status}) to {where}, which is not followed: check base_url"
        raise _protocol_error(answer, message, retryable=False)
    raise _protocol_error(answer, f"answered with status {status}, which HTTP does not know", retryable=False)


def _protocol_error(answer: Answer, message: str, *, retryable: bool = True) -> errors.ProtocolError:
    return errors.ProtocolError(
        f"{answer.request.path} {message}", status=answer.status, retryable=retryable, request_id=answer.request_id
    )


def _decoded(answer: Answer, decoder: msgspec.json.Decoder[T], body: bytes | None = None) -> T:
    if not 200 <= answer.status < 300:
        _refuse_errors(answer)
    if len(answer.body) > _COUNTED_FROM:
        _refuse_crowds(answer)
    try:
        return decoder.decode(answer.body if body is None else body)
    except _UNDECODABLE as error:
        reason, field = _explained(error)
    if not answer.framed:
        raise errors.APIConnectionError(
            f"{answer.request.path}: the answer was cut", sent="maybe_sent", request_id=answer.request_id
        )
    raise _decode_error(answer, reason, field=field)


def _refuse_crowds(answer: Answer) -> None:
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


def _explained(error: Exception) -> tuple[str, str | None]:
    """Say what msgspec has against an answer, and where."""
    reason = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        reason = "nested too deep"
    missing, at = _MISSING.search(reason), _FIELD.search(reason)
    path = at[1] if at else "$" if missing else None
    return reason.partition(" - at `")[0], f"{path}.{missing[1]}" if missing else path


def _decode_error(answer: Answer, reason: str, *, field: str | None) -> errors.ResponseDecodeError:
    return errors.ResponseDecodeError(
        reason,
        field=field,
        url=answer.request.path,
        status=answer.status,
        request_id=answer.request_id,
        excerpt=_excerpt(answer.body),
    )


def _check_given_id(answer: Answer, run_id: str) -> None:
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


def _api_error(answer: Answer) -> errors.APIError:
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
