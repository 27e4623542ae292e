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
from msgspec.structs import replace

from flora_async import errors
from flora_async._http.urls import ENCODED_PATH, BaseURL, has_dot_segments, is_https_or_loopback
from flora_async._validation import (
    Json,
    check_id,
    check_idempotency_key,
    check_limit,
    check_seconds,
    check_segment,
    check_text,
    encode,
    is_iterable,
    is_mapping,
    to_json_object,
    unwrap_number,
)
from flora_async.models import ActionOrder, AnyOrder, GenerationType, Order, TechniqueOrder

_TYPES: tuple[GenerationType, ...] = get_args(GenerationType)
MAX_CURSOR = 4096
WEBHOOK_TECHNIQUE = "/techniques/{id}/runs"
"""Template of the create that starts a technique with a webhook. Its response is a Run, not a StartedRun."""
_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]+")
_HEADER_NAME = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"
_HEADER_VALUE = r"[\x21-\x7e](?:[\t\x20-\x7e]*[\x21-\x7e])?"
_OWN_HEADER = (
    r"(?i)accept|accept-encoding|authorization|connection|content-(encoding|length|type)|cookie|expect|host"
    r"|idempotency-key|if-(match|modified-since|none-match|range|unmodified-since)|keep-alive"
    r"|proxy-(authorization|connection)|range|te|trailer|transfer-encoding|upgrade|user-agent"
)
"""Headers that the client sets itself, or that change what a response means."""
_ID_IN_PATH = r"(?<=/)(?:run|ws|prj|tech|asset|whd)_[^/]+"


class Request(Struct, frozen=True, gc=False, kw_only=True):
    """One encoded request. With an *order* it is a create."""

    method: str
    url: str
    body: bytes | None = None
    idempotency_key: str | None = None
    order: AnyOrder | None = None
    fresh: bool = False
    """Whether it is sent over a new connection, on which nothing from before can come."""
    timeout: float | None = None
    """Seconds for one exchange, in place of the client's timeout."""
    content_type: str = "application/json"
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
    return Order(
        type=_check_type(order.type),
        prompt=check_text("prompt", order.prompt),
        workspace_id=check_id("workspace_id", order.workspace_id, "ws_"),
        project_id=check_id("project_id", order.project_id, "prj_"),
        model=None if order.model is None else check_text("model", order.model),
        params=None if order.params is None else to_json_object("params", order.params),
        callback_url=None if order.callback_url is None else check_callback_url(origin, order.callback_url),
    )


def encode_technique_order(origin: BaseURL, order: TechniqueOrder) -> TechniqueOrder:
    """Check an order of a technique, and return it with plain JSON values. OpenAPI: ``POST /runs/technique``."""
    return TechniqueOrder(
        technique_id=check_id("technique_id", order.technique_id, "tech_"),
        inputs=to_json_object("inputs", order.inputs),
        workspace_id=check_id("workspace_id", order.workspace_id, "ws_"),
        callback_url=None if order.callback_url is None else check_callback_url(origin, order.callback_url),
    )


def encode_action_order(order: ActionOrder) -> ActionOrder:
    """Check an order of an action, and return it with plain JSON values. OpenAPI: ``POST /runs/action``."""
    return ActionOrder(
        action_id=check_segment("action_id", order.action_id),
        inputs=_check_action_inputs(order.inputs),
        workspace_id=check_id("workspace_id", order.workspace_id, "ws_"),
        project_id=check_id("project_id", order.project_id, "prj_"),
        params=None if order.params is None else to_json_object("params", order.params),
    )


def encode_any_order(origin: BaseURL, order: AnyOrder) -> AnyOrder:
    """Check an order of any kind, and return it with plain JSON values."""
    if isinstance(order, Order):
        return encode_order(origin, order)
    return encode_technique_order(origin, order) if isinstance(order, TechniqueOrder) else encode_action_order(order)


def check_callback_url(origin: BaseURL, url: str) -> str:
    """Return the address of a webhook as plain text. Raise if FLORA cannot send one there."""
    if not is_https_or_loopback(origin, check_text("callback_url", url)):
        raise errors.ConfigurationError("callback_url must be an https URL, like https://example.com/flora")
    return str.__str__(url)


def _check_action_inputs(inputs: object) -> list[dict[str, Json]]:
    if isinstance(inputs, Mapping) or not is_iterable(inputs) or not inputs:
        raise errors.ConfigurationError(
            'inputs must be a list of at least one object, like [{"type": "image", "url": "https://..."}]'
        )
    checked = [to_json_object(f"inputs[{index}]", each) for index, each in enumerate(inputs)]
    for index, each in enumerate(checked):
        if each.get("type") is None or (each.get("url") is None and each.get("text") is None):
            raise errors.ConfigurationError(f"inputs[{index}] must have a type, and a url or a text: {each!r:.200}")
    return checked


def _check_type(kind: object) -> GenerationType:
    if isinstance(kind, str) and kind in _TYPES:
        return _TYPES[_TYPES.index(kind)]
    kinds = ", ".join(map(repr, _TYPES))
    fix = ". Use its .value" if isinstance(kind, Enum) else ""
    raise errors.ConfigurationError(f"type must be one of {kinds}, not {kind!r}{fix}")


def order_of(order: object, fields: Mapping[str, Any]) -> AnyOrder:
    """Return the order of a create: *order*, or a new Order from *fields*. A field that was left out is ``None``."""
    if order is None:
        return generation_order_of(None, fields)
    if not isinstance(order, AnyOrder):
        return generation_order_of(order, fields)  # which raises
    _refuse_fields(order, fields)
    return order


def generation_order_of(order: object, fields: Mapping[str, Any]) -> Order:
    """Return the Order of a generation: *order*, or a new one from *fields*. A field that was left out is ``None``."""
    if order is None:
        if None in (fields["type"], fields["prompt"], fields["workspace_id"], fields["project_id"]):
            missing = [name for name in ("type", "prompt", "workspace_id", "project_id") if fields[name] is None]
            raise errors.ConfigurationError(
                f"the order lacks {', '.join(missing)}. Pass an Order, or type, prompt, workspace_id and project_id"
            )
        return Order(**fields)
    if not isinstance(order, Order):
        fix = (
            "Start it with flora.start_run(order)"
            if isinstance(order, TechniqueOrder | ActionOrder)
            else "Pass an Order, or type=..., prompt=..., workspace_id=..., project_id=..."
        )
        raise errors.ConfigurationError(f"the positional argument must be an Order, not {type(order).__name__}. {fix}")
    _refuse_fields(order, fields)
    return order


def with_timeout(request: Request, timeout: float | None) -> Request:
    """Return the request with a *timeout* of its own; ``None`` leaves the client's."""
    return request if timeout is None else replace(request, timeout=check_seconds("timeout", timeout))


def check_headers(given: object) -> dict[str, str]:
    """Check a caller's further headers, and return them as plain text. No error shows a value: it can be a secret."""
    if not is_mapping(given):
        raise errors.ConfigurationError(f"default_headers must be a mapping, like a dict, not {type(given).__name__}")
    headers: dict[str, str] = {}
    for name, value in given.items():
        plain = check_text("a name in default_headers", name)
        if not re.fullmatch(_HEADER_NAME, plain):
            raise errors.ConfigurationError(f"default_headers has a name that HTTP does not allow: {plain[:80]!r}")
        if re.fullmatch(_OWN_HEADER, plain):
            raise errors.ConfigurationError(f"default_headers must not have {plain}, which the client sets itself")
        if plain.lower() in map(str.lower, headers):
            raise errors.ConfigurationError(f"default_headers has {plain} twice, in upper and lower case")
        if not isinstance(value, str) or not re.fullmatch(_HEADER_VALUE, value):
            raise errors.ConfigurationError(
                f"default_headers[{plain!r}] must be printable ASCII text without white space at its ends"
            )
        headers[plain] = str(value)
    return headers


def _refuse_fields(order: AnyOrder, fields: Mapping[str, Any]) -> None:
    if given := [name for name, value in fields.items() if value is not None]:
        raise errors.ConfigurationError(
            f"an {type(order).__name__} has its fields already. Leave out {', '.join(given)}, or use "
            "msgspec.structs.replace(order, ...)"
        )


_CREATE_PATHS = {Order: "/generate", TechniqueOrder: "/runs/technique", ActionOrder: "/runs/action"}


def create_request(
    origin: BaseURL, order: AnyOrder, idempotency_key: str, input_types: Mapping[str, str] | None = None
) -> Request:
    """Build the create of an order, with one idempotency key for all attempts.

    *input_types* are the declared types of a technique's inputs: only the operation that takes a ``callback_url`` needs
    them.
    """
    plain = encode_order(origin, order) if isinstance(order, Order) else encode_any_order(origin, order)
    if isinstance(plain, TechniqueOrder) and plain.callback_url is not None:
        return _webhook_technique_request(origin, plain, idempotency_key, input_types or {})
    path = _CREATE_PATHS[type(plain)]
    return Request(
        method="POST",
        url=origin.url + path,
        body=msgspec.json.encode(plain),
        idempotency_key=idempotency_key,
        order=plain,
        template=path,
    )


def _webhook_technique_request(
    origin: BaseURL, order: TechniqueOrder, idempotency_key: str, input_types: Mapping[str, str]
) -> Request:
    """Build ``POST /techniques/{id}/runs``. FLORA reads its key from the body, and ignores the header there."""
    inputs = [
        {"id": name, "type": input_types.get(name, "text"), "value": value} for name, value in order.inputs.items()
    ]
    body = {"inputs": inputs, "mode": "async", "callback_url": order.callback_url, "idempotency_key": idempotency_key}
    return Request(
        method="POST",
        url=f"{origin.url}/techniques/{quote_segment(order.technique_id)}/runs",
        body=msgspec.json.encode(body),
        idempotency_key=idempotency_key,
        order=order,
        template=WEBHOOK_TECHNIQUE,
    )


def quote_segment(segment: str) -> str:
    """Return an id that is one segment of a path."""
    return segment if _UNRESERVED.fullmatch(segment) else quote(segment, safe="")


def retrieve_request(origin: BaseURL, run_id: str) -> Request:
    """Build ``GET /runs/{runId}``. The id was checked: it is the caller's own after its check, or FLORA's."""
    return Request(method="GET", url=f"{origin.url}/runs/{quote_segment(run_id)}")


def list_request(
    origin: BaseURL,
    *,
    cursor: str | None,
    limit: int | None,
    project_id: str | None,
    status: str | None,
    workspace_id: str | None,
    path: str = "/generations",
    technique_id: str | None = None,
    search: str | None = None,
) -> Request:
    """Build ``GET /generations``, ``GET /technique-runs`` or ``GET /assets``, for one page."""
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
    if technique_id is not None:
        query["technique_id"] = check_id("technique_id", technique_id, "tech_")
    if search is not None:
        query["query"] = check_text("query", search)
    return Request(method="GET", url=_with_query(origin.url + path, query), template=path)


def custom_request(
    origin: BaseURL,
    method: str,
    path: str,
    *,
    params: Mapping[str, str | int | float | bool] | None = None,
    json: object = None,
    idempotency_key: str | None = None,
) -> Request:
    """Build any other request below the base URL."""
    verb = check_text("method", method)
    if not (verb.isascii() and verb.isalpha()):
        raise errors.ConfigurationError(f"method must be a word like GET, not {verb!r}")
    encoded = "/" + check_text("path", path).removeprefix("/")
    if not re.fullmatch(ENCODED_PATH, encoded) or "//" in encoded or has_dot_segments(encoded):
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
        template=re.sub(_ID_IN_PATH, "{id}", encoded),
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
