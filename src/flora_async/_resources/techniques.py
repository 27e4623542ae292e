"""``flora.techniques`` and ``flora.technique_runs``: saved workflows and their runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flora_async._http.requests import Request, list_request
from flora_async._http.responses import parse_technique_runs
from flora_async._http.transport import Transport
from flora_async._http.urls import BaseURL
from flora_async._resources.declarations import RETRIEVE_TECHNIQUE
from flora_async._resources.operations import ItemPage, Operation, Resource
from flora_async._resources.pagination import TechniqueRunList, open_list
from flora_async._resources.starting import RunStarter
from flora_async.models import Run, RunStatus, StartedRun, Technique, TechniqueOrder


class _Techniques(ItemPage, frozen=True, kw_only=True):
    techniques: tuple[Technique, ...]


_LIST = Operation("GET", "/techniques", _Techniques)
_RETRIEVE_RUN = Operation("GET", "/techniques/{technique_id}/runs/{run_id}", Run)


class Techniques(Resource):
    """``flora.techniques``: saved workflows, with declared inputs."""

    def __init__(self, origin: BaseURL, transport: Transport, starter: RunStarter) -> None:
        super().__init__(origin, transport)
        self._starter = starter

    async def list(
        self, *, query: str | None = None, workspace_id: str | None = None, timeout: float | None = None
    ) -> tuple[Technique, ...]:
        """Return the techniques, or those that match *query*. Each request reads 100. OpenAPI: ``GET /techniques``.

        *timeout* are the seconds for one HTTP exchange, in place of the client's.
        """
        pages = await self._list(_LIST, query={"query": query, "workspace_id": workspace_id}, timeout=timeout)
        return tuple(technique for page in pages for technique in page.techniques)

    async def retrieve(self, technique_id: str) -> Technique:
        """Return a technique by its id or its slug. OpenAPI: ``GET /techniques/{id}``."""
        return await self._call(RETRIEVE_TECHNIQUE, technique_id=technique_id)

    async def run(
        self,
        *,
        technique_id: str,
        inputs: Mapping[str, Any],
        workspace_id: str,
        callback_url: str | None = None,
        idempotency_key: str | None = None,
    ) -> StartedRun:
        """Start a technique exactly once, as ``generations.create`` starts a generation, with its errors.

        *inputs* are compared with the declared ones first: a technique is read once in ten minutes. *workspace_id*
        pays ``technique.run_cost`` USD. With a *callback_url*, the key's default workspace pays, see
        :class:`TechniqueOrder`. A lost response is searched in ``GET /technique-runs``. OpenAPI: ``POST
        /runs/technique``; with a *callback_url* ``POST /techniques/{id}/runs``.

        Raises:
            ConfigurationError: an argument is invalid, or the inputs do not match the declared ones; nothing was sent.
            NotFoundError: there is no such technique; nothing was sent.
        """
        order = TechniqueOrder(
            technique_id=technique_id, inputs=inputs, workspace_id=workspace_id, callback_url=callback_url
        )
        return await self._starter.start(order, idempotency_key)


class TechniqueRuns(Resource):
    """``flora.technique_runs``: the history of techniques."""

    def list(
        self,
        *,
        cursor: str | None = None,
        limit: int | None = 100,
        project_id: str | None = None,
        status: RunStatus | None = None,
        technique_id: str | None = None,
        workspace_id: str | None = None,
        timeout: float | None = None,
    ) -> TechniqueRunList:
        """Return the history of techniques, newest first: ``async for run in flora.technique_runs.list()``.

        *limit* is the size of a page, 1 to 100, not a total; ``None`` leaves it to FLORA. *timeout* are the seconds for
        each HTTP exchange, in place of the client's. OpenAPI: ``GET /technique-runs``.
        """
        origin = self._origin

        def request(cursor: str | None) -> Request:
            return list_request(
                origin,
                path="/technique-runs",
                cursor=cursor,
                limit=limit,
                project_id=project_id,
                status=status,
                technique_id=technique_id,
                workspace_id=workspace_id,
            )

        return open_list(
            TechniqueRunList, self._transport, request, parse_technique_runs, cursor=cursor, timeout=timeout
        )

    async def retrieve(self, *, technique_id: str, run_id: str) -> Run:
        """Return a run that was started with a ``callback_url``. OpenAPI: ``GET /techniques/{id}/runs/{runId}``.

        ``generations.retrieve`` returns any other run of a technique; FLORA returns 404 for those here.
        """
        return await self._call(_RETRIEVE_RUN, technique_id=technique_id, run_id=run_id)
