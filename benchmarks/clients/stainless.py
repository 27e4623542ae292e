"""Stainless clients in Python: their ``get(cast_to=)`` and ``post(cast_to=)`` reach any API."""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Callable
from typing import Any

from benchmarks.clients import PagedHistory, order, page_query


class Runtime:
    """The Stainless runtime inside a client package, with FLORA's models on it."""

    def __init__(self, package: str) -> None:
        models = importlib.import_module(f"{package}._models")
        self.make_options: Callable[..., Any] = importlib.import_module(f"{package}._base_client").make_request_options
        self._construct: Callable[..., object] = models.construct_type
        Base: Any = models.BaseModel  # noqa: N806

        class Output(Base):
            output_id: str
            type: str
            url: str

        class Model(Base):
            model_id: str | None = None

        class Run(Base):
            run_id: str
            status: str
            progress: float
            created_at: float
            started_at: float | None = None
            completed_at: float | None = None
            charged_cost: float | None = None
            outputs: list[Output] | None = None
            error_code: str | None = None
            error_message: str | None = None
            poll_url: str | None = None

        class Generation(Run):
            generation_id: str
            project_id: str
            workspace_id: str
            model: Model | None = None

        class Meta(Base):
            next_cursor: str | None = None
            total_estimate: float | None = None

        class Page(Base):
            generations: list[Generation]
            meta: Meta

        class StartedRun(Base):
            run_id: str
            type: str
            charged_cost: float
            estimated_seconds: float | None = None
            poll_url: str | None = None
            project_id: str | None = None
            model: Model | None = None

        names = {"Output": Output, "Model": Model, "Run": Run, "Generation": Generation, "Meta": Meta}
        for each in (Run, Generation, Page, StartedRun):
            each.model_rebuild(_types_namespace=names)
        self.Run, self.Page, self.StartedRun = Run, Page, StartedRun

    def decode_page(self, body: bytes) -> object:
        return self._construct(value=json.loads(body), type_=self.Page)


class Contestant(PagedHistory):
    def __init__(self, client: Any, runtime: Runtime) -> None:
        self.client = client
        self._runtime = runtime

    async def retrieve(self, run_id: str) -> Any:
        return await self.client.get(f"/runs/{run_id}", cast_to=self._runtime.Run)

    async def create(self, number: int) -> Any:
        options = self._runtime.make_options(extra_headers={"Idempotency-Key": str(uuid.uuid4())})
        started = self._runtime.StartedRun
        return (await self.client.post("/generate", body=order(number), options=options, cast_to=started)).run_id

    async def page(self, cursor: str | None) -> Any:
        options = self._runtime.make_options(query=page_query(cursor))
        return await self.client.get("/generations", options=options, cast_to=self._runtime.Page)
