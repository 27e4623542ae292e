"""``flora.canvas``: the nodes of a project, and the runs that they start."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Raw, Struct, field

from flora_async import errors
from flora_async._resources.operations import ItemPage, Operation, Resource
from flora_async._validation import check_segment, is_iterable
from flora_async.models import ActionId, ModelRef, Record, StartedRun

log = logging.getLogger("flora_async")

MAX_RUN_NODES = 50
"""Maximum number of nodes that FLORA starts in one request."""

SkipReason: TypeAlias = (
    Literal[
        "node_not_found",
        "node_not_executable",
        "node_locked",
        "no_model_configured",
        "generation_already_running",
        "run_failed_to_start",
        "video_generation_not_available",
    ]
    | str
)
"""Reason why a node was not started. Open."""


class CanvasNode(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A node of a canvas. OpenAPI: ``GET /projects/{id}/nodes``."""

    node_id: str
    type: str
    """``image``, ``video``, ``audio`` or ``text``. Open."""
    asset_id: str | None = None
    url: str | None = None
    label: str | None = None
    width: float | None = None
    height: float | None = None


class PlacedNode(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A node that was put on a canvas: an asset, or an action."""

    node_id: str
    project_id: str
    canvas_url: str | None = None
    asset_id: str | None = None
    action_id: ActionId | None = None


class CanvasSummary(Record, frozen=True, gc=False, kw_only=True):
    """Sizes of a canvas."""

    node_count: int
    edge_count: int
    group_count: int = 0
    isolated_node_count: int = 0
    workflow_count: int = 0


class CanvasDiagram(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A canvas as a Mermaid diagram. OpenAPI: ``GET /projects/{id}/canvas``, ``PATCH /projects/{id}/canvas``."""

    project_id: str
    diagram: str
    canvas_url: str | None = None
    summary: CanvasSummary | None = None
    """``None`` after an update."""
    created_node_count: int | None = None
    created_edge_count: int | None = None
    warnings: tuple[str, ...] | None = None


class GraphEdge(Record, frozen=True, gc=False, kw_only=True):
    """A connection of two nodes, each by its short id."""

    source: str = field(name="from")
    target: str = field(name="to")
    input: str | None = field(default=None, name="in")


class GraphNode(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A node with its settings and its last result."""

    id: str
    """Short id, as edges and changesets use it."""
    node_id: str
    type: str
    label: str | None = None
    prompt: str | None = None
    model: str | None = None
    model_id: str | None = None
    params: Mapping[str, Any] | None = None
    position: Mapping[str, float] | None = None
    status: str | None = None
    """``idle``, ``generating``, ``done`` or ``error``. Open."""
    output_url: str | None = None
    output_text: str | None = None
    action: Mapping[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None


class CanvasGraph(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The graph of a canvas. OpenAPI: ``GET /workspaces/{id}/projects/{id}/graph``."""

    project_id: str
    revision: str
    """Opaque: an equal revision means an unchanged canvas."""
    nodes: tuple[GraphNode, ...]
    edges: tuple[GraphEdge, ...]
    canvas_url: str | None = None


class CreatedNode(Record, frozen=True, gc=False, kw_only=True):
    """Ids of a node that a changeset added."""

    id: str
    node_id: str


class AppliedChangeset(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The result of a changeset. OpenAPI: ``POST /workspaces/{id}/projects/{id}/canvas/changeset``."""

    project_id: str
    revision: str
    applied: Mapping[str, int]
    """Numbers of changes: ``added``, ``updated``, ``connected``, ``disconnected``, ``removed``."""
    created: Mapping[str, CreatedNode] = {}
    """Ids of the added nodes by their ``ref``."""
    warnings: tuple[str, ...] | None = None
    canvas_url: str | None = None


class CanvasDefinition(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The whole canvas in FLORA's own form. OpenAPI: ``GET /workspaces/{id}/projects/{id}/canvas/definition``."""

    project_id: str
    definition: Mapping[str, Any]
    """``nodes``, ``edges``, ``node_inputs``, ``node_outputs``, and optionally ``layer_editor_documents``."""
    summary: CanvasSummary | None = None
    canvas_url: str | None = None


class NodeRun(Record, frozen=True, kw_only=True):
    """The start of one node: the started run, or the reason why there is none."""

    node_id: str
    run: StartedRun | None = None
    reason: SkipReason | None = None
    """``None`` if the node was started."""
    message: str | None = None


class _NodeRun(Struct, frozen=True):
    node_id: str
    status: str
    run_id: str | None = None
    poll_url: str | None = None
    type: str | None = None
    charged_cost: float | None = None
    estimated_seconds: float | None = None
    model: ModelRef | None = None
    reason: str | None = None
    message: str | None = None


class _NamedRun(Struct, frozen=True):
    """The fields of an item without which a run is lost."""

    node_id: str = ""
    run_id: str | None = None


class _NodeRuns(Struct, frozen=True):
    runs: tuple[Raw, ...]
    """Undecoded: one odd item must not hide the runs of the others, which FLORA bills."""


class _Nodes(ItemPage, frozen=True, kw_only=True):
    nodes: tuple[CanvasNode, ...]


_IN_WORKSPACE = "/workspaces/{workspace_id}/projects/{project_id}"
_NODES = Operation("GET", "/projects/{project_id}/nodes", _Nodes)
_ATTACH = Operation("POST", "/projects/{project_id}/assets/{asset_id}/attach", PlacedNode)
_RETRIEVE = Operation("GET", "/projects/{project_id}/canvas", CanvasDiagram)
_UPDATE = Operation("PATCH", "/projects/{project_id}/canvas", CanvasDiagram, keyed=False)
_ADD_ACTION = Operation("POST", "/projects/{project_id}/actions", PlacedNode, keyed=False)
_RUN_ACTION = Operation("POST", "/projects/{project_id}/actions/{node_id}/run", StartedRun, keyed=False)
_GRAPH = Operation("GET", f"{_IN_WORKSPACE}/graph", CanvasGraph)
_CHANGE = Operation("POST", f"{_IN_WORKSPACE}/canvas/changeset", AppliedChangeset)
_RUN_NODES = Operation("POST", f"{_IN_WORKSPACE}/nodes/run", _NodeRuns)
_DEFINITION = Operation("GET", f"{_IN_WORKSPACE}/canvas/definition", CanvasDefinition)
_REPLACE_DEFINITION = Operation("PUT", f"{_IN_WORKSPACE}/canvas/definition", CanvasDefinition)


class Canvas(Resource):
    """``flora.canvas``: the nodes of a project. Each project has one canvas."""

    async def list_nodes(self, project_id: str, *, timeout: float | None = None) -> tuple[CanvasNode, ...]:
        """Return the media nodes of a project. Each request reads 100. OpenAPI: ``GET /projects/{id}/nodes``.

        *timeout* are the seconds for one HTTP exchange, in place of the client's.
        """
        pages = await self._list(_NODES, project_id=project_id, timeout=timeout)
        return tuple(node for page in pages for node in page.nodes)

    async def attach_asset(self, *, project_id: str, asset_id: str) -> PlacedNode:
        """Add an asset to the canvas. A second call adds a second node. OpenAPI: ``POST .../assets/{id}/attach``."""
        return await self._call(_ATTACH, project_id=project_id, asset_id=asset_id)

    async def retrieve(self, project_id: str) -> CanvasDiagram:
        """Return the canvas as a Mermaid diagram. OpenAPI: ``GET /projects/{id}/canvas``."""
        return await self._call(_RETRIEVE, project_id=project_id)

    async def update(
        self, *, project_id: str, diagram: str, node_params: Mapping[str, Mapping[str, Any]] | None = None
    ) -> CanvasDiagram:
        """Add the nodes and edges of a Mermaid diagram. It is sent once. OpenAPI: ``PATCH /projects/{id}/canvas``.

        *node_params* has the settings of nodes by their Mermaid id: ``prompt``, ``model``, ``model_parameters``,
        ``content_url``, ``aspect_ratio`` and ``resolution``.
        """
        return await self._call(_UPDATE, body={"diagram": diagram, "node_params": node_params}, project_id=project_id)

    async def add_action(
        self, *, project_id: str, action_id: ActionId, params: Mapping[str, Any] | None = None
    ) -> PlacedNode:
        """Add an action to the canvas. It is sent once. OpenAPI: ``POST /projects/{id}/actions``."""
        return await self._call(_ADD_ACTION, body={"action_id": action_id, "params": params}, project_id=project_id)

    async def run_action(self, *, project_id: str, node_id: str) -> StartedRun:
        """Start an action of the canvas. It is sent once. OpenAPI: ``POST /projects/{id}/actions/{nodeId}/run``."""
        return await self._call(_RUN_ACTION, project_id=project_id, node_id=node_id)

    async def retrieve_graph(self, *, workspace_id: str, project_id: str) -> CanvasGraph:
        """Return all nodes and edges, with results. OpenAPI: ``GET /workspaces/{id}/projects/{id}/graph``."""
        return await self._call(_GRAPH, workspace_id=workspace_id, project_id=project_id)

    async def change(
        self,
        *,
        workspace_id: str,
        project_id: str,
        add: Sequence[Mapping[str, Any]] | None = None,
        update: Sequence[Mapping[str, Any]] | None = None,
        connect: Sequence[Mapping[str, Any]] | None = None,
        disconnect: Sequence[Mapping[str, Any]] | None = None,
        remove: Sequence[Mapping[str, Any]] | None = None,
    ) -> AppliedChangeset:
        """Change the canvas in one transaction. A removal cannot be undone.

        *add* has objects with a ``ref`` and a ``type``, and optionally ``prompt``, ``model``, ``params``,
        ``content_url``, ``label``, ``group`` and ``position``; *update* objects with an ``id`` and new fields;
        *connect* and *disconnect* ``{"from": ..., "to": ..., "in": ...}``; *remove* ``{"id": ...}``. OpenAPI: ``POST
        /workspaces/{id}/projects/{id}/canvas/changeset``.
        """
        body = {"add": add, "update": update, "connect": connect, "disconnect": disconnect, "remove": remove}
        return await self._call(_CHANGE, body=body, workspace_id=workspace_id, project_id=project_id)

    async def run_nodes(self, node_ids: Sequence[str], *, workspace_id: str, project_id: str) -> tuple[NodeRun, ...]:
        """Start 1 to 50 nodes in one request; return the run or a reason for each, in the order of *node_ids*.

        FLORA bills the started ones at once, without a check of the credits before. Each ``node_run.run`` is awaited
        like any run: ``flora.wait_for_run(node_run.run)``. The request has one idempotency key. An error with
        ``outcome_unknown`` means that nodes may have been started: ``retrieve_graph`` shows their status. OpenAPI:
        ``POST /workspaces/{id}/projects/{id}/nodes/run``.

        Raises:
            ConfigurationError: there are no node ids, more than 50, or one twice; nothing was sent.
        """
        asked = [check_segment("node_id", node_id) for node_id in node_ids] if is_iterable(node_ids) else []
        if not 1 <= len(asked) <= MAX_RUN_NODES or len(set(asked)) < len(asked):
            raise errors.ConfigurationError(
                f"node_ids must be 1 to {MAX_RUN_NODES} different node ids, not {len(asked)} ids"
            )
        answer = await self._call(
            _RUN_NODES, body={"node_ids": asked}, workspace_id=workspace_id, project_id=project_id
        )
        runs = [_to_node_run(item, project_id) for item in map(_decode_item, answer.runs)]
        found = {run.node_id: run for run in reversed(runs)}
        ordered = [found.get(each) or _no_run(each) for each in asked]
        return (*ordered, *(run for run in runs if run not in ordered))

    async def retrieve_definition(self, *, workspace_id: str, project_id: str) -> CanvasDefinition:
        """Return the whole canvas in FLORA's own form. OpenAPI: ``GET .../canvas/definition``."""
        return await self._call(_DEFINITION, workspace_id=workspace_id, project_id=project_id)

    async def replace_definition(
        self, definition: Mapping[str, Any], *, workspace_id: str, project_id: str
    ) -> CanvasDefinition:
        """Replace the whole canvas. Nodes that *definition* lacks are lost. OpenAPI: ``PUT .../canvas/definition``."""
        return await self._call(
            _REPLACE_DEFINITION, body={"definition": definition}, workspace_id=workspace_id, project_id=project_id
        )


def _decode_item(item: Raw) -> _NodeRun:
    """Return an item; an odd one with its ids only."""
    try:
        return msgspec.json.decode(item, type=_NodeRun)
    except msgspec.MsgspecError as error:
        reason = str(error)
    try:
        known = msgspec.json.decode(item, type=_NamedRun)
    except msgspec.MsgspecError:
        known = _NamedRun()
    log.warning("cannot decode a started node: %s", reason, extra={"run_id": known.run_id})
    return _NodeRun(known.node_id, "unknown", known.run_id, message=f"cannot decode FLORA's response: {reason}")


def _no_run(node_id: str) -> NodeRun:
    return NodeRun(node_id=node_id, reason="unknown", message="FLORA's response does not mention this node")


def _to_node_run(item: _NodeRun, project_id: str) -> NodeRun:
    if item.run_id is None:
        return NodeRun(node_id=item.node_id, reason=item.reason or item.status, message=item.message)
    started = StartedRun(
        run_id=item.run_id,
        type=item.type or "generation",
        charged_cost=item.charged_cost or 0.0,
        estimated_seconds=item.estimated_seconds,
        poll_url=item.poll_url,
        project_id=project_id,
        model=item.model,
    )
    return NodeRun(node_id=item.node_id, run=started, message=item.message)
