"""Pure: parse and validate requests as FLORA does, and build its error responses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec
from aiohttp import web

from flora_async.models import GenerationType, Order
from flora_async.sandbox._runs import HistoryQuery, decode_cursor

PREFIXES = {"workspace_id": "ws_", "project_id": "prj_", "run_id": "run_"}
STATUSES = ("pending", "running", "completed", "failed")

_ORDER_FIELDS = ("type", "prompt", "workspace_id", "project_id", "model", "params", "callback_url")
_WEBHOOK_URL = re.compile(r"https://.|http://(localhost|127\.[0-9.]+|\[::1\])[:/]", re.IGNORECASE)
_REQUESTED_STATUS = re.compile(r"\[http:([45][0-9]{2})\]")
_PROJECT_ID = re.compile(r"prj_[A-Za-z0-9_-]+")
_REQUIRED = ("type", "prompt", "workspace_id", "project_id")


class RefusalError(Exception):
    """The error response of a request."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: Mapping[str, str] = headers or {}
        self.body: dict[str, object] = {"error": {"code": code, "message": message}}
        if fields:
            listed = [{"field": field, "message": reason} for field, reason in fields.items()]
            self.body = {"error": {"code": code, "message": message, "fields": listed}}


CODES = {
    400: "input_validation_error",
    401: "unauthorized",
    402: "insufficient_credits",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    422: "idempotency_conflict",
    429: "rate_limited",
    500: "internal_error",
    503: "service_unavailable",
}


def refusal(
    status: int, *, code: str | None = None, message: str | None = None, retry_after: float | None = None
) -> RefusalError:
    """Build the error response of a status, with FLORA's code for it by default."""
    word = code or CODES.get(status, "unknown_error")
    headers = {} if retry_after is None else {"Retry-After": f"{retry_after:.3f}".rstrip("0").rstrip(".")}
    return RefusalError(status, word, message or f"The sandbox returns {status}, as requested.", headers=headers)


def invalid(fields: Mapping[str, str]) -> RefusalError:
    """Build the error response of a request with invalid *fields*."""
    return RefusalError(400, "input_validation_error", "The request is not valid.", fields=fields)


def json_response(body: object, status: int = 200) -> web.Response:
    """Return a response with JSON."""
    return web.Response(body=msgspec.json.encode(body), status=status, content_type="application/json")


async def read_body(request: web.Request) -> dict[str, Any]:
    """Return the JSON object of a request.

    An empty body passes without a content type, as FLORA's npm client sends it. Other empty bodies are refused:
    aiohttp and others send them with a content type that is not JSON.
    """
    body = await request.read()
    if not body and request.headers.get("Content-Type", "application/json").startswith("application/json"):
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        raise refusal(400, message="The body must be a JSON object.") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise refusal(400, code="invalid_json", message="The body is not JSON.") from None


def list_field(given: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the list of objects in a field of a body; empty without it."""
    try:
        return msgspec.convert(given.get(name) or [], list[dict[str, Any]])
    except msgspec.ValidationError:
        raise invalid({name: "Must be a list of objects"}) from None


def check_project_id(project_id: str) -> None:
    """Raise the 500 with which FLORA answers a malformed project id."""
    if project_id.startswith("prj_") and not _PROJECT_ID.fullmatch(project_id):
        raise refusal(500, code="unknown_error", message="An unknown error occurred.")


def parse_order(given: dict[str, object]) -> Order:
    """Parse the body of ``POST /generate``.

    Raises:
        RefusalError: with each invalid field.
    """
    wrong = {name: "Required" for name in _REQUIRED if given.get(name) is None}
    wrong |= {name: "Unrecognized property" for name in given if name not in _ORDER_FIELDS}
    for name in ("prompt", "workspace_id", "project_id", "model", "callback_url"):
        value = given.get(name)
        if value is not None and (not isinstance(value, str) or not value):
            wrong[name] = "Must be a string with at least one character"
    for name in ("workspace_id", "project_id"):
        value = given.get(name)
        malformed = isinstance(value, str) and name == "project_id" and value[:4] == "prj_" != value  # a 500, see below
        if isinstance(value, str) and value and not malformed and not _has_prefix(value, PREFIXES[name]):
            wrong[name] = f"Must start with {PREFIXES[name]}"
    if given.get("type") is not None and given["type"] not in get_args(GenerationType):
        wrong["type"] = f"Must be one of {', '.join(get_args(GenerationType))}"
    if given.get("params") is not None and not isinstance(given["params"], dict):
        wrong["params"] = "Must be an object"
    webhook_url = given.get("callback_url")
    if isinstance(webhook_url, str) and webhook_url and not _WEBHOOK_URL.match(webhook_url):
        wrong["callback_url"] = "Must be an https URL, or an http one on this machine"
    if wrong:
        raise RefusalError(400, "input_validation_error", "The request is not valid.", fields=wrong)
    check_project_id(str(given["project_id"]))
    return msgspec.convert(given, Order)


def parse_history_query(query: Mapping[str, str]) -> HistoryQuery:
    """Parse the query of ``GET /generations``.

    Raises:
        RefusalError: with each invalid parameter.
    """
    wrong: dict[str, str] = {}
    limit = query.get("limit", "20")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:4]) <= 100 and len(limit) < 4):
        wrong["limit"] = "Must be a number from 1 to 100"
    offset = decode_cursor(query["cursor"]) if "cursor" in query else 0
    if offset is None:
        wrong["cursor"] = "Is not a cursor of this list"
    if query.get("status", STATUSES[0]) not in STATUSES:
        wrong["status"] = f"Must be one of {', '.join(STATUSES)}"
    for name in ("project_id", "workspace_id"):
        if name in query and not _has_prefix(query[name], PREFIXES[name]):
            wrong[name] = f"Must start with {PREFIXES[name]}"
    if wrong:
        raise RefusalError(400, "input_validation_error", "The request is not valid.", fields=wrong)
    return HistoryQuery(
        offset or 0, int(limit), query.get("project_id"), query.get("workspace_id"), query.get("status")
    )


def requested_status(prompt: str) -> int | None:
    """Return the HTTP status that a prompt requests as its response."""
    requested = _REQUESTED_STATUS.search(prompt)
    return int(requested[1]) if requested else None


def check_run_id(run_id: str) -> None:
    """Raise :class:`RefusalError` for a string that cannot be a run id."""
    if not _has_prefix(run_id, PREFIXES["run_id"]):
        fields = {"runId": "Must start with run_"}
        raise RefusalError(400, "input_validation_error", "The request is not valid.", fields=fields)


def _has_prefix(value: str, prefix: str) -> bool:
    return value.startswith(prefix) and len(value) > len(prefix) and not any(char.isspace() for char in value)
