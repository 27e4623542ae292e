"""The sandbox's projects, canvases, library and feedback, all in memory."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, get_args

from aiohttp import web
from msgspec import Meta, Struct, ValidationError, convert, field

from flora_async.models import ActionOrder, GenerationType, Order
from flora_async.sandbox import _catalog
from flora_async.sandbox._contract import (
    check_project_id,
    invalid,
    json_response,
    list_field,
    parse_history_query,
    read_body,
    refusal,
)
from flora_async.sandbox._kinds import Host, Kinds
from flora_async.sandbox._runs import EXTENSIONS, SandboxRun, encode_cursor, run_record, started_record

_MERMAID_NODE = re.compile(r"(\w+)\[\"?([^\]\"]*)\"?\]")
_MERMAID_EDGE = re.compile(r"(\w+)(?:\[[^\]]*\])?\s*--+>\s*(\w+)")
_FEEDBACK = ("feature_request", "bug", "technique_request", "missing_capability")
_PROJECT = "/api/v1/projects/{project_id}"
_IN_WORKSPACE = "/api/v1/workspaces/{workspace_id}/projects/{project_id}"


class _Node(Struct, kw_only=True):
    id: str
    node_id: str
    type: str
    label: str = ""
    prompt: str | None = None
    model: str | None = None
    params: dict[str, Any] | None = None
    position: dict[str, float] = field(default_factory=lambda: {"x": 0.0, "y": 0.0})
    content_url: str | None = None
    asset_id: str | None = None
    action_id: str | None = None


class _Canvas(Struct):
    nodes: dict[str, _Node] = field(default_factory=dict[str, _Node])
    """The nodes by their short ids."""
    edges: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    definition: dict[str, Any] | None = None
    """A definition that replaced the canvas."""
    revision: int = 0

    def add(self, kind: str, fields: Mapping[str, object]) -> _Node:
        """Add a node with those of *fields* that nodes have."""
        self.revision += 1
        known = {name: value for name, value in fields.items() if name in _Node.__struct_fields__}
        place = {"id": f"n{self.revision}", "node_id": f"node_{secrets.token_hex(8)}", "type": kind}
        node = convert({**known, **place}, _Node)
        self.nodes[node.id] = node
        return node

    def find(self, name: str) -> _Node | None:
        """Return a node by its short or its full id."""
        return next((node for node in self.nodes.values() if name in (node.id, node.node_id)), None)

    def summary(self) -> dict[str, int]:
        linked = {end for edge in self.edges for end in edge[:2]}
        return {
            "node_count": len(self.nodes),
            "edge_count": len(self.edges),
            "group_count": sum(node.type == "group" for node in self.nodes.values()),
            "isolated_node_count": len(self.nodes.keys() - linked),
            "workflow_count": int(bool(linked)),
        }

    def diagram(self) -> str:
        lines = [f'  {node.id}["{node.label or node.type}"]' for node in self.nodes.values()]
        lines += [f"  {source} --> {target}" for source, target, _ in self.edges]
        return "\n".join(["flowchart LR", *lines])


class Studio:
    """Projects, canvases, library and feedback. Any project id with the right prefix exists."""

    def __init__(self, host: Host, kinds: Kinds) -> None:
        self._host = host
        self._kinds = kinds
        self._projects = [dict(project) for project in _catalog.PROJECTS]
        self._canvases: dict[str, _Canvas] = {}
        self._runs: dict[str, SandboxRun] = {}
        """The last run of each node, by the node's full id."""
        self._folders: dict[str, str] = {}

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of FLORA's operations."""
        library = "/api/v1/workspaces/{workspace_id}/library/folders"
        return [
            web.get("/api/v1/projects", self._list_projects),
            web.post("/api/v1/projects", self._create_project),
            web.post("/api/v1/workspaces/{workspace_id}/projects", self._create_project),
            web.post("/api/v1/workspaces/{workspace_id}/folders/{folder_id}/projects", self._create_project),
            web.get(_PROJECT, self._retrieve_project),
            web.get(f"{_PROJECT}/nodes", self._list_nodes),
            web.post(f"{_PROJECT}/assets/{{asset_id}}/attach", self._attach),
            web.get(f"{_PROJECT}/canvas", self._retrieve_canvas),
            web.patch(f"{_PROJECT}/canvas", self._update_canvas),
            web.post(f"{_PROJECT}/actions", self._add_action),
            web.post(f"{_PROJECT}/actions/{{node_id}}/run", self._run_action),
            web.get(f"{_IN_WORKSPACE}/graph", self._graph),
            web.post(f"{_IN_WORKSPACE}/canvas/changeset", self._change),
            web.get(f"{_IN_WORKSPACE}/canvas/definition", self._retrieve_definition),
            web.put(f"{_IN_WORKSPACE}/canvas/definition", self._replace_definition),
            web.post(f"{_IN_WORKSPACE}/nodes/run", self._run_nodes),
            web.post(library, self._create_folder),
            web.delete(f"{library}/{{folder_id}}", self._delete_folder),
            web.post(f"{library}/{{folder_id}}/items", self._add_item),
            web.post("/api/v1/feedback", self._feedback),
        ]

    # -- projects

    async def _list_projects(self, request: web.Request) -> web.Response:
        page = parse_history_query({"limit": "100", **request.query})
        wanted = request.query.get("workspace_id", "ws_demo")
        text = request.query.get("query", "").lower()
        found = [
            each for each in self._projects if each["workspace_id"] == wanted and text in str(each["name"]).lower()
        ]
        end = page.offset + page.limit
        cursor = encode_cursor(end) if end < len(found) else None
        return json_response({"projects": found[page.offset : end], "meta": {"next_cursor": cursor}})

    async def _create_project(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        workspace_id = request.match_info.get("workspace_id") or given.get("workspace_id")
        name = given.get("name")
        if not isinstance(name, str) or not name or not str(workspace_id or "").startswith("ws_"):
            raise invalid({"name": "Required", "workspace_id": "Must start with ws_"})
        project: dict[str, object] = {
            "project_id": f"prj_{secrets.token_hex(8)}",
            "workspace_id": workspace_id,
            "name": name,
            "created_at": _catalog.CREATED_AT,
            "last_modified": None,
            "origin": None,
        }
        self._projects.append(project)
        return json_response(project, 201)

    async def _retrieve_project(self, request: web.Request) -> web.Response:
        project_id = _project_id(request)
        known = {each["project_id"]: each for each in self._projects}
        unnamed = {**_catalog.PROJECTS[0], "project_id": project_id, "name": project_id}
        return json_response(known.get(project_id, unnamed))

    # -- canvas

    def _canvas(self, request: web.Request) -> tuple[dict[str, object], _Canvas]:
        project_id = _project_id(request)
        place: dict[str, object] = {
            "project_id": project_id,
            "canvas_url": f"https://app.flora.ai/projects/{project_id}",
        }
        return place, self._canvases.setdefault(project_id, _Canvas())

    async def _list_nodes(self, request: web.Request) -> web.Response:
        _, canvas = self._canvas(request)
        page = parse_history_query({"limit": "100", **request.query})
        found = [node for node in canvas.nodes.values() if node.type in get_args(GenerationType)]
        end = page.offset + page.limit
        listed = [
            {
                "node_id": node.node_id,
                "type": node.type,
                "asset_id": node.asset_id,
                "url": self._output(node)[0],
                "label": node.label,
                "width": None,
                "height": None,
            }
            for node in found[page.offset : end]
        ]
        cursor = encode_cursor(end) if end < len(found) else None
        return json_response({"nodes": listed, "meta": {"next_cursor": cursor}})

    async def _attach(self, request: web.Request) -> web.Response:
        await read_body(request)
        place, canvas = self._canvas(request)
        asset_id = request.match_info["asset_id"]
        if not asset_id.startswith("asset_"):
            raise refusal(404, message="There is no such asset.")
        node = canvas.add("image", {"asset_id": asset_id, "label": asset_id})
        return json_response({**place, "node_id": node.node_id, "asset_id": asset_id}, 201)

    async def _retrieve_canvas(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        return json_response({**place, "diagram": canvas.diagram(), "summary": canvas.summary()})

    async def _update_canvas(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        given = await read_body(request)
        diagram = given.get("diagram")
        if not isinstance(diagram, str) or not diagram:
            raise invalid({"diagram": "Required"})
        settings: dict[str, dict[str, Any]] = given.get("node_params") or {}
        ids: dict[str, str] = {}
        for name, label in _MERMAID_NODE.findall(diagram):
            chosen = settings.get(name, {})
            node = canvas.add("image", {"prompt": label, **chosen, "label": label})
            ids[name] = node.id
        edges = [(ids[a], ids[b], None) for a, b in _MERMAID_EDGE.findall(diagram) if a in ids and b in ids]
        canvas.edges += edges
        counts = {"created_node_count": len(ids), "created_edge_count": len(edges)}
        return json_response({**place, "diagram": canvas.diagram(), **counts, "warnings": []})

    async def _graph(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        edges = [{"from": source, "to": target, "in": slot} for source, target, slot in canvas.edges]
        nodes = [self._graph_node(node) for node in canvas.nodes.values()]
        return json_response({**place, "revision": f"rev_{canvas.revision}", "edges": edges, "nodes": nodes})

    def _graph_node(self, node: _Node) -> dict[str, object]:
        url, text = self._output(node)
        states = {"pending": "generating", "running": "generating", "completed": "done", "failed": "error"}
        run = self._runs.get(node.node_id)
        status = "idle" if run is None else states[run.status(self._host.now())]
        action = None if node.action_id is None else {"action_id": node.action_id, "params": node.params}
        return {
            "id": node.id,
            "node_id": node.node_id,
            "type": node.type,
            "label": node.label,
            "prompt": node.prompt,
            "model": node.model,
            "model_id": node.model,
            "params": node.params,
            "position": node.position,
            "status": status,
            "output_url": url,
            "output_text": text,
            "action": action,
        }

    def _output(self, node: _Node) -> tuple[str | None, str | None]:
        """Return the URL and the text of a node's last result."""
        run = self._runs.get(node.node_id)
        if run is None or run.status(self._host.now()) != "completed":
            return node.content_url, None
        record: Any = run_record(run, self._host.now(), self._host.base_url)
        output = record["outputs"][0]
        return (None, output["url"]) if output["type"] == "text" else (output["url"], None)

    async def _change(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        given = await read_body(request)
        created: dict[str, _Node] = {}
        for each in list_field(given, "add"):
            created[each["ref"]] = canvas.add(each["type"], each)

        def find(name: str) -> _Node:
            node = created.get(name) or canvas.find(name)
            if node is None:
                raise invalid({"id": f"There is no node {name}"})
            return node

        for each in list_field(given, "update"):
            node = find(each["id"])
            for name in ("label", "model", "params", "position", "prompt"):
                setattr(node, name, each.get(name, getattr(node, name)))
        for each in list_field(given, "connect"):
            canvas.edges.append((find(each["from"]).id, find(each["to"]).id, each.get("in")))
        cut = {(find(each["from"]).id, find(each["to"]).id) for each in list_field(given, "disconnect")}
        gone = {find(each["id"]).id for each in list_field(given, "remove")}
        canvas.edges = [edge for edge in canvas.edges if edge[:2] not in cut and not gone & set(edge[:2])]
        for name in gone:
            del canvas.nodes[name]
        canvas.revision += 1
        names = {"add": "added", "update": "updated", "connect": "connected", "disconnect": "disconnected"}
        names["remove"] = "removed"
        return json_response(
            {
                **place,
                "revision": f"rev_{canvas.revision}",
                "warnings": [],
                "applied": {done: len(list_field(given, name)) for name, done in names.items()},
                "created": {name: {"id": node.id, "node_id": node.node_id} for name, node in created.items()},
            }
        )

    async def _retrieve_definition(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        return json_response({**place, "definition": _definition(canvas), "summary": canvas.summary()})

    async def _replace_definition(self, request: web.Request) -> web.Response:
        _, canvas = self._canvas(request)
        given = await read_body(request)
        try:
            definition = convert(given.get("definition"), dict[str, Any])
        except ValidationError:
            raise invalid({"definition": "Must be an object"}) from None
        if not {"nodes", "edges"} <= definition.keys():
            raise invalid({"definition": "Must have nodes and edges"})
        canvas.nodes = {
            str(each["id"]): _Node(id=str(each["id"]), node_id=str(each["id"]), type=str(each["type"]))
            for each in list_field(definition, "nodes")
        }
        canvas.edges = [(str(each["source"]), str(each["target"]), None) for each in list_field(definition, "edges")]
        canvas.definition = definition
        canvas.revision += 1
        return await self._retrieve_definition(request)

    # -- runs of nodes

    async def _run_nodes(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        given = await read_body(request)
        try:
            asked = convert(given.get("node_ids"), Annotated[list[str], Meta(min_length=1, max_length=50)])
        except ValidationError:
            raise invalid({"node_ids": "Must have 1 to 50 ids"}) from None

        def plan() -> tuple[None, object]:
            runs = [self._run_node(request, canvas, name) for name in asked]
            return None, {"project_id": place["project_id"], "runs": runs}

        key = request.headers.get("Idempotency-Key")
        return self._host.accept(request, key, repr(asked).encode(), plan, status=200)

    def _run_node(self, request: web.Request, canvas: _Canvas, name: str) -> dict[str, object]:
        node = canvas.find(name)
        reason = "node_not_found" if node is None else self._reason_to_skip(node)
        if node is None or reason is not None:
            return {"node_id": name, "status": "skipped", "reason": reason, "message": f"{reason}: {name}"}
        kind: Any = node.type
        run = self._host.plan(
            Order(
                type=kind,
                prompt=node.prompt or node.label,
                workspace_id=request.match_info["workspace_id"],
                project_id=request.match_info["project_id"],
                model=node.model,
                params=node.params,
            )
        )
        self._host.runs.add(run)
        self._host.count_accepted()
        self._runs[node.node_id] = run
        started = started_record(run, self._host.base_url)
        return {"node_id": name, "status": "started", **started}

    def _reason_to_skip(self, node: _Node) -> str | None:
        if node.type not in (*EXTENSIONS, "text") or node.action_id or not (node.prompt or node.label):
            return "node_not_executable"
        run = self._runs.get(node.node_id)
        running = run is not None and run.status(self._host.now()) in ("pending", "running")
        return "generation_already_running" if running else None

    async def _add_action(self, request: web.Request) -> web.Response:
        place, canvas = self._canvas(request)
        given = await read_body(request)
        action_id = given.get("action_id")
        if not isinstance(action_id, str):
            raise invalid({"action_id": "Required"})
        node = canvas.add("action", {"label": action_id, **given})
        return json_response({**place, "action_id": action_id, "node_id": node.node_id}, 201)

    async def _run_action(self, request: web.Request) -> web.Response:
        await read_body(request)
        _, canvas = self._canvas(request)
        node = canvas.find(request.match_info["node_id"])
        if node is None or node.action_id is None:
            raise refusal(404, message="There is no such action on the canvas.")
        order = ActionOrder(
            action_id=node.action_id,
            inputs=list(self._inputs_of(canvas, node)),
            workspace_id="ws_demo",
            project_id=request.match_info["project_id"],
            params=node.params,
        )
        return self._kinds.accept_action(request, order, None)

    def _inputs_of(self, canvas: _Canvas, node: _Node) -> Iterable[dict[str, Any]]:
        """Yield the results of the nodes that are connected to an action, or a picture of the sandbox."""
        is_text = str(node.action_id).removesuffix("-browser").endswith("-text")
        sources = [canvas.nodes[source] for source, target, _ in canvas.edges if target == node.id]
        for source in sources:
            url, text = self._output(source)
            yield {"type": "text", "text": text or source.prompt or ""} if is_text else {"type": "image", "url": url}
        if not sources:
            yield (
                {"type": "text", "text": "a text"} if is_text else {"type": "image", "url": "https://example.com/a.png"}
            )

    # -- library and feedback

    async def _create_folder(self, request: web.Request) -> web.Response:
        name = str((await read_body(request)).get("name") or "New folder")
        folder_id = f"libfolder_{secrets.token_hex(8)}"
        self._folders[folder_id] = name
        workspace_id = request.match_info["workspace_id"]
        return json_response({"folder_id": folder_id, "name": name, "workspace_id": workspace_id}, 201)

    def _folder(self, request: web.Request) -> dict[str, object]:
        folder_id = request.match_info["folder_id"]
        if folder_id not in self._folders:
            raise refusal(404, message="There is no such folder.")
        return {"folder_id": folder_id, "workspace_id": request.match_info["workspace_id"]}

    async def _delete_folder(self, request: web.Request) -> web.Response:
        place = self._folder(request)
        del self._folders[request.match_info["folder_id"]]
        return json_response({"deleted": True, **place})

    async def _add_item(self, request: web.Request) -> web.Response:
        place, given = self._folder(request), await read_body(request)
        if not (given.get("source") or given.get("text")):
            raise invalid({"source": "Or text is required"})
        about = {"asset_id": f"asset_{secrets.token_hex(8)}", "url": given["source"]} if given.get("source") else {}
        return json_response({**place, "saved_node_id": f"node_{secrets.token_hex(8)}", **about}, 201)

    async def _feedback(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        wrong = {name: "Required" for name in ("summary", "detail") if not given.get(name)}
        if given.get("kind") not in _FEEDBACK:
            wrong["kind"] = f"Must be one of {', '.join(_FEEDBACK)}"
        if wrong:
            raise invalid(wrong)
        return json_response({"feedback_id": f"fb_{secrets.token_hex(8)}", "received_at": _catalog.CREATED_AT}, 201)


def _project_id(request: web.Request) -> str:
    project_id = request.match_info["project_id"]
    check_project_id(project_id)
    if not project_id.startswith("prj_"):
        raise refusal(404, message="There is no such project.")
    return project_id


def _definition(canvas: _Canvas) -> Mapping[str, object]:
    if canvas.definition is not None:
        return canvas.definition
    nodes = [
        {"id": node.id, "type": "emptyImageBlock", "position": node.position, "data": {"label": node.label}}
        for node in canvas.nodes.values()
    ]
    edges = [
        {"id": f"{source}-{target}", "source": source, "target": target, "source_handle": None, "target_handle": slot}
        for source, target, slot in canvas.edges
    ]
    return {"nodes": nodes, "edges": edges, "node_inputs": {}, "node_outputs": {}}
