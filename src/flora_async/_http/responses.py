"""Pure: parse responses, and map error statuses to exceptions."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC
from functools import lru_cache
from typing import TypeVar

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.requests import MAX_CURSOR, WEBHOOK_TECHNIQUE, Request, quote_segment
from flora_async._http.urls import origin_of
from flora_async._validation import (
    check_id,
)
from flora_async.models import (
    Asset,
    AssetPage,
    BrokenItem,
    FieldError,
    Generation,
    GenerationPage,
    ListedAsset,
    Order,
    PageMeta,
    Response,
    Run,
    StartedRun,
    TechniqueRef,
    TechniqueRun,
    TechniqueRunPage,
)

T = TypeVar("T")
_EXCERPT = 200
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_MIN_COUNTED_BYTES = 2**18
"""Minimum size in bytes of a response whose values are counted. A smaller one decodes fast enough."""
_MAX_VALUES = 200_000
_RUN_ID = rb'"run_id"\s*:\s*"([^"\\]+)"'
_ASSET_ID = rb'"asset_id"\s*:\s*"(asset_[A-Za-z0-9_.-]{1,500})"'
_QUERY = r"""(?<=[^\s"'<>])\?[^\s"'<>]*"""
_SECONDS = r"[0-9]{1,11}(?:\.[0-9]{0,20})?"
_FIELD = r"`(\$[^`]*)`$"
_MISSING = r"missing required field `([^`]+)`"


class RawResponse(Struct, frozen=True, gc=False, kw_only=True):
    """One response as it was received."""

    request: Request
    status: int
    headers: Mapping[str, str]
    body: bytes
    received: float | None = None
    """Time of receipt in Unix seconds, by this machine's clock."""

    def __repr__(self) -> str:
        # Tracebacks with locals show this repr. A proxy can echo the key in the body or a header.
        return f"RawResponse({self.status}, {len(self.body)} bytes)"

    @property
    def request_id(self) -> str | None:
        """Id of the request. FLORA's support asks for it."""
        return self.headers.get("request-id")

    @property
    def framed(self) -> bool:
        """Whether the headers define the length. Without it, a cut response looks complete."""
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


class _RawTechniquePage(Struct, frozen=True):
    technique_runs: tuple[msgspec.Raw, ...]
    meta: PageMeta


class _RawAssetPage(Struct, frozen=True):
    assets: tuple[msgspec.Raw, ...]
    meta: PageMeta = PageMeta()


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


def decompress(response: RawResponse, limit: int) -> RawResponse:
    """Return the decompressed response. Raise if it has more than *limit* bytes, or was cut."""
    if response.headers.get("content-encoding", "").strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return response
    unpacking = zlib.decompressobj(wbits=47)  # by its header, gzip or zlib
    try:
        body = unpacking.decompress(response.body, limit + 1)
    except zlib.error:
        body = b""
    if len(body) > limit:
        raise errors.ResponseTooLargeError(
            f"{response.request.path} answered with more than {limit} bytes", request_id=response.request_id
        )
    if response.body and not unpacking.eof:
        raise errors.APIConnectionError(
            f"{response.request.path}: the compressed response is invalid or was cut",
            sent="maybe_sent",
            request_id=response.request_id,
        )
    return msgspec.structs.replace(response, body=body)


def find_run_id(request: Request, status: int, beginning: bytes) -> str | None:
    """Return the run id in the *beginning* of a response to an accepted create; ``None`` if there is none."""
    match = re.search(_RUN_ID, beginning) if status == 201 or _is_accepted(request, status) else None
    if match is None:
        return None
    try:
        return check_id("run_id", match[1].decode(), "run_")
    except ValueError:
        return None


def _is_accepted(request: Request, status: int) -> bool:
    return status == 200 and request.billable and not isinstance(request.order, Order)


def parse_started_run(response: RawResponse) -> StartedRun:
    """Parse the response to a create. Only its status and a valid run id prove that it was accepted.

    An accepted generation is a 201. FLORA documents no status for other kinds of runs, so 200 is accepted for them too.
    """
    request = response.request
    if response.status != 201 and not _is_accepted(request, response.status):
        _raise_for_status(response)
        raise _protocol_error(response, f"answered {response.status}, where an accepted create is a 201")
    try:
        if request.template == WEBHOOK_TECHNIQUE:
            started = _parse_technique_run(response)
        else:
            started = _decode(response, StartedRun)
        _check_given_id(response, started.run_id)
    except errors.FloraError as error:
        error.run_id = find_run_id(response.request, response.status, response.body)
        raise
    return started


def _parse_technique_run(response: RawResponse) -> StartedRun:
    """Parse the Run that starts with a webhook. FLORA can answer 404 for it at ``/runs/{id}``."""
    run, order = _decode(response, Run), response.request.order
    return StartedRun(
        run_id=run.run_id,
        type="technique",
        charged_cost=run.charged_cost or 0.0,
        poll_url=run.poll_url or f"{response.request.url}/{quote_segment(run.run_id)}",
        technique=TechniqueRef(technique_id=order.endpoint or "", name="") if order else None,
    )


def reused_run_error(response: RawResponse, run_id: str) -> errors.ProtocolError:
    """Return the error of a response with the run of another order: a connection can deliver a stray response."""
    return _protocol_error(response, f"answered with {run_id}, the run of another order")


def parse_run(run_id: str, response: RawResponse) -> Run:
    """Parse a run. Raise if it is not the requested one: a connection can deliver a stray response."""
    run = _decode(response, Run)
    if run.run_id != run_id:
        raise _protocol_error(response, f"asked for {run_id}, answered about {run.run_id[:80]!r}")
    return run


def parse_asset(asset_id: str | None, response: RawResponse) -> Asset:
    """Parse an asset. Raise if it is not the requested one. An error carries the id of an asset that was created."""
    try:
        asset = _decode(response, Asset)
        _check_given_id(response, asset.asset_id, "asset_id", "asset_")
    except errors.FloraError as error:
        created = re.search(_ASSET_ID, response.body) if 200 <= response.status < 300 else None
        error.asset_id = asset_id or (created and created[1].decode()) or None
        raise
    if asset_id not in (None, asset.asset_id):
        raise _protocol_error(response, f"asked for {asset_id}, answered about {asset.asset_id[:80]!r}")
    return asset


def parse_page(response: RawResponse) -> GenerationPage:
    """Parse one page of the history. Invalid items are returned as ``broken``, beside the valid ones."""
    try:
        page = _decode(response, GenerationPage)
    except errors.ResponseDecodeError:
        raw = _decode(response, _RawPage)
        generations, broken = _parse_items_one_by_one(response, "generations", raw.generations, Generation)
        page = GenerationPage(generations=generations, meta=raw.meta, broken=broken)
    _check_cursor(response, page.meta)
    return page


def parse_technique_runs(response: RawResponse) -> TechniqueRunPage:
    """Parse one page of ``GET /technique-runs``, like :func:`parse_page`."""
    try:
        page = _decode(response, TechniqueRunPage)
    except errors.ResponseDecodeError:
        raw = _decode(response, _RawTechniquePage)
        runs, broken = _parse_items_one_by_one(response, "technique_runs", raw.technique_runs, TechniqueRun)
        page = TechniqueRunPage(technique_runs=runs, meta=raw.meta, broken=broken)
    _check_cursor(response, page.meta)
    return page


def parse_assets(response: RawResponse) -> AssetPage:
    """Parse one page of ``GET /assets``, like :func:`parse_page`."""
    try:
        page = _decode(response, AssetPage)
    except errors.ResponseDecodeError:
        raw = _decode(response, _RawAssetPage)
        assets, broken = _parse_items_one_by_one(response, "assets", raw.assets, ListedAsset)
        page = AssetPage(assets=assets, meta=raw.meta, broken=broken)
    _check_cursor(response, page.meta)
    return page


def _check_cursor(response: RawResponse, meta: PageMeta) -> None:
    cursor = meta.next_cursor
    if cursor is not None and len(cursor) > MAX_CURSOR:
        raise _decode_error(response, f"a cursor of {len(cursor)} characters", field="$.meta.next_cursor")


def _parse_items_one_by_one(
    response: RawResponse, name: str, items: Sequence[msgspec.Raw], kind: type[T]
) -> tuple[tuple[T, ...], tuple[BrokenItem, ...]]:
    decoded: list[T] = []
    broken: list[BrokenItem] = []
    for index, item in enumerate(items):
        try:
            decoded.append(msgspec.json.decode(item, type=kind))
        except _UNDECODABLE as error:
            reason, field = _describe_decode_error(error)
            broken.append(
                BrokenItem(
                    field=f"$.{name}[{index}]{(field or '$')[1:]}",
                    reason=reason,
                    url=response.request.path,
                    request_id=response.request_id,
                    excerpt=_excerpt(bytes(item)),
                )
            )
    return tuple(decoded), tuple(broken)


def check_decodable(kind: object) -> None:
    """Check that msgspec can decode into *kind*, before anything is sent."""
    try:
        msgspec.json.Decoder(kind)
    except (TypeError, ValueError, NameError, AttributeError, RecursionError, msgspec.MsgspecError) as error:
        raise errors.ConfigurationError(f"decode_as cannot be decoded into by msgspec: {error}") from None


def parse_response(kind: type[T], response: RawResponse) -> Response[T]:
    """Decode a response as *kind*; an empty body (204) as an empty object."""
    try:
        data = _decode(response, kind, response.body or b"{}")
    except errors.FloraError as error:
        error.run_id = find_run_id(response.request, response.status, response.body)
        raise
    return Response(
        data=data,
        status=response.status,
        headers=_lowercase_names(response.headers),
        request_id=response.request_id,
    )


def _raise_for_status(response: RawResponse) -> None:
    status = response.status
    if 200 <= status < 300:
        return
    if 400 <= status < 600:
        raise _api_error(response)
    if 300 <= status < 400:
        where = origin_of(response.headers.get("location", "")) or "another path of its own"
        message = f"redirects ({status}) to {where}, which is not followed: check base_url"
        raise _protocol_error(response, message, retryable=False)
    raise _protocol_error(response, f"answered with status {status}, which HTTP does not know", retryable=False)


def _protocol_error(response: RawResponse, message: str, *, retryable: bool = True) -> errors.ProtocolError:
    return errors.ProtocolError(
        f"{response.request.path} {message}",
        status=response.status,
        retryable=retryable,
        request_id=response.request_id,
    )


def _decode(response: RawResponse, kind: type[T], body: bytes | None = None) -> T:
    if not 200 <= response.status < 300:
        _raise_for_status(response)
    if len(response.body) > _MIN_COUNTED_BYTES:
        _check_value_count(response)
    try:
        return msgspec.json.decode(response.body if body is None else body, type=kind)
    except _UNDECODABLE as error:
        reason, field = _describe_decode_error(error)
    if not response.framed:
        raise errors.APIConnectionError(
            f"{response.request.path}: the response was cut", sent="maybe_sent", request_id=response.request_id
        )
    raise _decode_error(response, reason, field=field)


def _check_value_count(response: RawResponse) -> None:
    """Raise ResponseTooLargeError if a response has so many values that decoding would block the event loop."""
    if response.body.count(b",") > _MAX_VALUES and _has_too_many_values(response.body):
        raise errors.ResponseTooLargeError(
            f"{response.request.path} answered with more than {_MAX_VALUES} values", request_id=response.request_id
        )


def _has_too_many_values(body: bytes) -> bool:
    """Return whether a JSON text, perhaps cut, has too many values. Commas inside strings do not count."""
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # each quote left begins or ends a string
    if plain.count(b'"') > 4 * _MAX_VALUES:  # a value is a string at most, with a name that is another
        return True
    return sum(between.count(b",") for between in plain.split(b'"')[::2]) > _MAX_VALUES


def _describe_decode_error(error: Exception) -> tuple[str, str | None]:
    """Return msgspec's error message and the field path."""
    reason = str(error) or type(error).__name__
    if isinstance(error, RecursionError):
        reason = "nested too deep"
    missing, at = re.search(_MISSING, reason), re.search(_FIELD, reason)
    path = at[1] if at else "$" if missing else None
    return reason.partition(" - at `")[0], f"{path}.{missing[1]}" if missing else path


def _decode_error(response: RawResponse, reason: str, *, field: str | None) -> errors.ResponseDecodeError:
    return errors.ResponseDecodeError(
        reason,
        field=field,
        url=response.request.path,
        status=response.status,
        request_id=response.request_id,
        excerpt=_excerpt(response.body),
    )


def _check_given_id(response: RawResponse, value: str, name: str = "run_id", prefix: str = "run_") -> None:
    try:
        check_id(name, value, prefix)
    except errors.ConfigurationError as error:
        reason = str(error)
    else:
        return
    raise _decode_error(response, reason, field=f"$.{name}")


def _excerpt(body: bytes) -> str:
    # Queries of signed URLs are credentials.
    return re.sub(_QUERY, "?...", body[:_EXCERPT].decode(errors="replace"))


def _api_error(response: RawResponse) -> errors.APIError:
    try:
        error = msgspec.json.decode(response.body, type=_Envelope).error
    except _UNDECODABLE:
        # Proxies in front of FLORA respond with HTML or an empty body.
        error = _ErrorBody()
    status = response.status
    kind = _BY_STATUS.get(status, errors.InternalServerError if status >= 500 else errors.APIError)
    if error.code == "idempotency_duplicate" and status == 409:
        kind = errors.IdempotencyConflictError
    message = error.message or _excerpt(response.body) or "empty response"
    order = response.request.order
    if order is not None and order.project_id is not None and (status, error.code) == (500, "unknown_error"):
        message += f" FLORA returns this error for a malformed project_id. Check {order.project_id!r}."
    return kind(
        message,
        status=status,
        code=error.code,
        fields=error.fields or (),
        request_id=response.request_id,
        retry_after=retry_after(response.headers, response.received),
        headers=_lowercase_names(response.headers),
    )


def _lowercase_names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def retry_after(headers: Mapping[str, str], received: float | None = None) -> float | None:
    """Return ``Retry-After`` in seconds: a decimal number, or a date minus the response's ``Date``.

    Without a ``Date`` that can be read, *received* stands in for it: Unix seconds by this machine's clock.
    """
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(_SECONDS, value):
        return float(value)
    until, sent = http_date(value), http_date(headers.get("date", ""))
    now = received if sent is None else sent
    return max(0.0, until - now) if until is not None and now is not None else None


@lru_cache(maxsize=64)  # a server sends the same date for a second
def http_date(value: str) -> float | None:
    """Return a date header as Unix seconds; ``None`` if it is no date. Without a zone it is in UTC."""
    from email.utils import parsedate_to_datetime  # a tenth of the time that importing this package takes

    try:
        date = parsedate_to_datetime(value) if value.isascii() else None
        return None if date is None else (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, LookupError):  # the last two from email.utils, by its version
        return None
