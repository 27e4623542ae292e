"""Pure: build requests: URL, query, body, headers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any, get_args
from urllib.parse import quote, urlencode

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._http.urls import ENCODED_PATH, BaseURL, has_dot_segments, is_https_or_loopback
from flora_async._validation import (
    check_id,
    check_idempotency_key,
    check_limit,
    check_text,
    encode,
    to_json_object,
    unwrap_number,
)
from flora_async.models import (
    GenerationType,
    Order,
)

_TYPES: tuple[GenerationType, ...] = get_args(GenerationType)
MAX_CURSOR = 4096
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+")
_ID_IN_PATH = re.compile(r"(?<=/)(?:run|ws|prj|tech|asset|whd)_[^/]+")


class Request(Struct, frozen=True, gc=False, kw_only=True):
    """One encoded request. With an *order* it is a create."""

    method: str
    url: str
    body: bytes | None = None
    idempotency_key: str | None = None
    order: Order | None = None
    fresh: bool = False
    """Whether it is sent over a new connection, on which nothing from before can come."""
    template: str = "/runs/{id}"
    """The path below the base URL, without ids, as events and logs show it."""

    @property
    def idempotent(self) -> bool:
        """Whether sending it twice has the same effect as sending it once (RFC 9110)."""
        return self.idempotency_key is not None or not self.billable

    @property
    def billable(self) -> bool:
        """Whether FLORA may start something that costs money when it receives the request."""
        return self.method not in ("GET", "HEAD", "OPTIONS")

    @property
    def path(self) -> str:
        """The URL without its query, as logs and errors show it."""
        return self.url.partition("?")[0]


def encode_order(origin: BaseURL, order: Order) -> Order:
    """Check an order before it is sent; return an Order of plain JSON values.

    Reference: "Start a generation", Parameters.
    """
    if order.callback_url is not None and not is_https_or_loopback(
        origin, check_text("callback_url", order.callback_url)
    ):
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
    """Return the Order of a create: *order*, or a new one from *fields*. A field that was left out is ``None``."""
    if order is None:
        if None in (fields["type"], fields["prompt"], fields["workspace_id"], fields["project_id"]):
            missing = [name for name in ("type", "prompt", "workspace_id", "project_id") if fields[name] is None]
            raise errors.ConfigurationError(
                f"the order lacks {', '.join(missing)}. Pass an Order, or type, prompt, workspace_id and project_id"
            )
        return Order(**fields)
    if not isinstance(order, Order):
        raise errors.ConfigurationError(
            f"the positional argument must be an Order, not {type(order).__name__}. "
            "Pass an Order, or type=..., prompt=..., workspace_id=..., project_id=..."
        )
    given = [name for name, value in fields.items() if value is not None]
    if given:
        raise errors.ConfigurationError(
            f"an Order has its fields already. Leave out {', '.join(given)}, or use msgspec.structs.replace(order, ...)"
        )
    return order


def create_request(origin: BaseURL, order: Order, idempotency_key: str) -> Request:
    """Build ``POST /generate``, with one idempotency key for all attempts."""
    plain = encode_order(origin, order)
    return Request(
        method="POST",
        url=f"{origin.url}/generate",
        body=msgspec.json.encode(plain),
        idempotency_key=idempotency_key,
        order=plain,
        template="/generate",
    )


def retrieve_request(origin: BaseURL, run_id: str) -> Request:
    """Build ``GET /runs/{runId}``."""
    place = check_id("run_id", run_id, "run_")
    if not _UNRESERVED.fullmatch(place):
        place = quote(place, safe="")
    return Request(method="GET", url=f"{origin.url}/runs/{place}")


def list_request(
    origin: BaseURL,
    *,
    cursor: str | None,
    limit: int | None,
    project_id: str | None,
    status: str | None,
    workspace_id: str | None,
) -> Request:
    """Build ``GET /generations`` for one page."""
    query: dict[str, str] = {}
    if cursor is not None:
        query["cursor"] = check_text("cursor", cursor, longest=MAX_CURSOR)
    if limit is not None:
        query["limit"] = str(check_limit(limit))
    if project_id is not None:
        query["project_id"] = check_id("project_id", project_id, "prj_")
    if status is not None:
        query["status"] = check_text("status", status)
    if workspace_id is not None:
        query["workspace_id"] = check_id("workspace_id", workspace_id, "ws_")
    return Request(method="GET", url=_with_query(f"{origin.url}/generations", query), template="/generations")


def custom_request(
    origin: BaseURL,
    method: str,
    path: str,
    *,
    params: Mapping[str, str | int | float | bool] | None,
    json: object,
    idempotency_key: str | None,
) -> Request:
    """Build any other request below the base URL."""
    verb = check_text("method", method)
    if not (verb.isascii() and verb.isalpha()):
        raise errors.ConfigurationError(f"method must be a word like GET, not {verb!r}")
    encoded = "/" + check_text("path", path).removeprefix("/")
    if not ENCODED_PATH.fullmatch(encoded) or "//" in encoded or has_dot_segments(encoded):
        raise errors.ConfigurationError(
            f"path must lie below the base URL, percent-encoded and without a query, not {path[:80]!r}"
        )
    query = {check_text("a name in params", name): _query_value(name, value) for name, value in (params or {}).items()}
    return Request(
        method=verb.upper(),
        url=_with_query(origin.url + encoded, query),
        # Several operations respond with 400 to a POST without a body.
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
