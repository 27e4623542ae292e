"""Simple operations, each defined by one line: method, path, and the record that it returns."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, Mapping
from functools import partial
from typing import Generic, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from flora_async import errors
from flora_async._http.requests import custom_request, quote_segment, with_timeout
from flora_async._http.responses import parse_response
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._validation import check_id, check_segment
from flora_async.models import PageMeta

T = TypeVar("T")
PageT = TypeVar("PageT", bound="ItemPage")

_PLACEHOLDER = re.compile(r"\{\w+\}")
_PREFIXES = {"workspace_id": "ws_", "project_id": "prj_", "run_id": "run_", "asset_id": "asset_"}
"""Prefixes of the ids in paths, queries and bodies. FLORA returns 500 for a malformed project id."""
_PAGE_LIMIT = "100"


class Operation(Struct, Generic[T], frozen=True):
    """An operation of FLORA's API."""

    method: str
    path: str
    """Path below the base URL, with ids as placeholders, like ``/projects/{project_id}``."""
    kind: type[T]
    """Record of the response."""
    keyed: bool = True
    """Whether FLORA reads an ``Idempotency-Key``. Without it, a request that changes something is sent once."""


class ItemPage(Struct, frozen=True):
    """Base class of pages of a list."""

    meta: PageMeta = PageMeta()


class Resource:
    """Base class of resources: sends operations."""

    def __init__(self, origin: BaseURL, transport: Transport) -> None:
        self._origin = origin
        self._transport = transport

    async def _call(
        self,
        operation: Operation[T],
        *,
        query: Mapping[str, str | None] | None = None,
        body: Mapping[str, object] | None = None,
        timeout: float | None = None,
        **ids: str,
    ) -> T:
        """Send an operation and return its record. Fields of *query* and *body* that are ``None`` are left out."""
        path = operation.path
        for name, value in ids.items():
            path = path.replace(f"{{{name}}}", quote_segment(_check_id(name, value)))
        sent = None if body is None else _check_fields(body)
        parameters = {name: str(value) for name, value in _check_fields(query or {}).items()}
        key = str(uuid.uuid4()) if operation.keyed and operation.method != "GET" else None
        request = custom_request(
            self._origin, operation.method, path, params=parameters, json=sent, idempotency_key=key
        )
        request = with_timeout(replace(request, template=_PLACEHOLDER.sub("{id}", operation.path)), timeout)
        try:
            return (await self._transport.send(request, partial(parse_response, operation.kind))).data
        except errors.IdempotencyConflictError as error:
            error.outcome_unknown = True  # The key is new: FLORA has executed an attempt whose response was lost.
            raise

    async def _list(
        self,
        operation: Operation[PageT],
        *,
        query: Mapping[str, str | None] | None = None,
        timeout: float | None = None,
        **ids: str,
    ) -> list[PageT]:
        """Return all pages of a list. Each request reads 100 items."""
        asked = {**(query or {}), "limit": _PAGE_LIMIT}
        return [page async for page in self._pages(operation, query=asked, timeout=timeout, **ids)]

    async def _pages(
        self,
        operation: Operation[PageT],
        *,
        query: Mapping[str, str | None],
        timeout: float | None = None,
        **ids: str,
    ) -> AsyncGenerator[PageT]:
        """Yield the pages of a list, from the cursor in *query* on.

        Raises:
            PaginationError: FLORA returned a cursor twice. The pages before it were yielded.
        """
        asked = dict(query)
        visited_cursors = {asked.get("cursor")}
        while True:
            page = await self._call(operation, query=asked, body=None, timeout=timeout, **ids)
            yield page
            cursor = page.meta.next_cursor
            if not cursor:
                return
            if cursor in visited_cursors:
                raise errors.PaginationError(cursor)
            visited_cursors.add(cursor)
            asked["cursor"] = cursor


def _check_id(name: str, value: object) -> str:
    return check_id(name, value, _PREFIXES[name]) if name in _PREFIXES else check_segment(name, value)


def _check_fields(fields: Mapping[str, object]) -> dict[str, object]:
    return {
        name: _check_id(name, value) if name in _PREFIXES else value
        for name, value in fields.items()
        if value is not None
    }
