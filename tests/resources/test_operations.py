"""Each simple operation against a scripted FLORA: its request, success, nulls, unknown fields, documented errors."""

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from scripted import Scripted, answer, error, started
from test_single_response import fails

from flora_async import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConfigurationError,
    ConflictError,
    CreateOutcomeUnknownError,
    Flora,
    IdempotencyConflictError,
    InsufficientCreditsError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    StartedRun,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries")]

ERRORS: dict[int, type[APIError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientCreditsError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    429: RateLimitError,
    500: InternalServerError,
}
PROJECT = {"project_id": "prj_1", "workspace_id": "ws_1", "name": "One", "created_at": 1, "last_modified": None}
TECHNIQUE = {
    "technique_id": "tech_1",
    "name": "Poster",
    "run_cost": 0.1,
    "inputs": [{"id": "subject", "name": "Subject", "type": "text", "optional": None}],
    "outputs": [{"id": "out", "name": "Out", "type": "imageUrl"}],
}
ACTION = {
    "action_id": "blur-image",
    "name": "Blur",
    "description": "d",
    "charged_cost": 0,
    "language": "python",
    "inputs": [{"name": "image", "type": "image", "multiple": {"min": 1, "max": None}}],
    "outputs": [{"name": "image", "type": "image", "multiple": True}],
    "params": [{"key": "radius", "type": "number", "min_number_value": 0, "available_values": None}],
}
PLACED = {"node_id": "n1", "project_id": "prj_1", "canvas_url": "https://flora.ai/c"}
SUMMARY = {"node_count": 2, "edge_count": 1, "group_count": 0, "isolated_node_count": 0, "workflow_count": 1}
NODE = {"id": "a", "node_id": "n1", "type": "image", "status": None, "model": None, "action": None}
RUN = {"run_id": "run_1", "status": "completed", "progress": 100, "created_at": 1}
IN_PROJECT = "/workspaces/ws_1/projects/prj_1"
WS: dict[str, Any] = {"workspace_id": "ws_1"}
PRJ: dict[str, Any] = {"project_id": "prj_1"}


class Case(Struct):
    """An operation: the call, the request that it sends, and FLORA's response."""

    call: Callable[[Flora], Coroutine[Any, Any, Any]]
    method: str
    path: str
    response: dict[str, Any]
    body: dict[str, Any] | None = None
    keyed: bool = True
    declaration: tuple[str, dict[str, Any]] | None = None


CASES = {
    "projects.create": Case(
        lambda f: f.projects.create(name="One", workspace_id="ws_1"),
        "POST", "/projects", PROJECT, {"name": "One", "workspace_id": "ws_1"},
    ),
    "projects.retrieve": Case(lambda f: f.projects.retrieve("prj_1"), "GET", "/projects/prj_1", PROJECT),
    "projects.list": Case(
        lambda f: f.projects.list(workspace_id="ws_1", query="o"), "GET", "/projects", {"projects": [PROJECT]}
    ),
    "workspaces.list": Case(
        lambda f: f.workspaces.list(),
        "GET", "/workspaces", {"workspaces": [{"workspace_id": "ws_1", "name": "W", "created_at": None}]},
    ),
    "workspaces.create_project": Case(
        lambda f: f.workspaces.create_project(workspace_id="ws_1", name="One"),
        "POST", "/workspaces/ws_1/projects", PROJECT, {"name": "One"},
    ),
    "workspaces.create_project in a folder": Case(
        lambda f: f.workspaces.create_project(workspace_id="ws_1", name="One", folder_id="fld_1"),
        "POST", "/workspaces/ws_1/folders/fld_1/projects", PROJECT, {"name": "One"},
    ),
    "techniques.list": Case(
        lambda f: f.techniques.list(query="p"), "GET", "/techniques", {"techniques": [TECHNIQUE], "meta": {}}
    ),
    "techniques.retrieve": Case(lambda f: f.techniques.retrieve("poster"), "GET", "/techniques/poster", TECHNIQUE),
    "technique_runs.retrieve": Case(
        lambda f: f.technique_runs.retrieve(technique_id="tech_1", run_id="run_1"),
        "GET", "/techniques/tech_1/runs/run_1", RUN,
    ),
    "technique_runs.list": Case(
        lambda f: anext(f.technique_runs.list(technique_id="tech_1").pages()),
        "GET", "/technique-runs",
        {
            "technique_runs": [
                {
                    **RUN,
                    "technique_run_id": "run_1",
                    "technique": {"technique_id": "tech_1", "name": "Poster"},
                    "workspace_id": "ws_1",
                    "project_id": None,
                }
            ],
            "meta": {"next_cursor": None},
        },
    ),
    "techniques.run": Case(
        lambda f: f.techniques.run(technique_id="tech_1", inputs={"subject": "a mug"}, workspace_id="ws_1"),
        "POST", "/runs/technique", started("run_1", type="technique", estimated_seconds=None, model=None),
        {"technique_id": "tech_1", "inputs": {"subject": "a mug"}, "workspace_id": "ws_1"},
        declaration=("/techniques/tech_1", TECHNIQUE),
    ),
    "actions.list": Case(lambda f: f.actions.list(), "GET", "/actions", {"actions": [ACTION]}),
    "actions.retrieve": Case(lambda f: f.actions.retrieve("blur-image"), "GET", "/actions/blur-image", ACTION),
    "actions.run": Case(
        lambda f: f.actions.run(
            action_id="blur-image",
            inputs=[{"type": "image", "url": "https://a.example/a.png"}],
            params={"radius": 3},
            **WS, **PRJ,
        ),
        "POST", "/runs/action", started("run_1", type="action", action=None),
        {
            "action_id": "blur-image",
            "inputs": [{"type": "image", "url": "https://a.example/a.png"}],
            "params": {"radius": 3},
            **WS, **PRJ,
        },
        declaration=("/actions/blur-image", ACTION),
    ),
    "canvas.list_nodes": Case(
        lambda f: f.canvas.list_nodes("prj_1"),
        "GET", "/projects/prj_1/nodes", {"nodes": [{"node_id": "n1", "type": "image", "url": None}], "meta": {}},
    ),
    "canvas.attach_asset": Case(
        lambda f: f.canvas.attach_asset(project_id="prj_1", asset_id="asset_1"),
        "POST", "/projects/prj_1/assets/asset_1/attach", {**PLACED, "asset_id": "asset_1"}, {},
    ),
    "canvas.retrieve": Case(
        lambda f: f.canvas.retrieve("prj_1"),
        "GET", "/projects/prj_1/canvas", {"project_id": "prj_1", "diagram": "graph", "summary": SUMMARY},
    ),
    "canvas.update": Case(
        lambda f: f.canvas.update(project_id="prj_1", diagram="graph"),
        "PATCH", "/projects/prj_1/canvas",
        {"project_id": "prj_1", "diagram": "graph", "created_node_count": 1, "warnings": None},
        {"diagram": "graph"}, keyed=False,
    ),
    "canvas.add_action": Case(
        lambda f: f.canvas.add_action(project_id="prj_1", action_id="blur-image", params={"radius": 3}),
        "POST", "/projects/prj_1/actions", {**PLACED, "action_id": "a new one"},
        {"action_id": "blur-image", "params": {"radius": 3}}, keyed=False,
    ),
    "canvas.run_action": Case(
        lambda f: f.canvas.run_action(project_id="prj_1", node_id="n1"),
        "POST", "/projects/prj_1/actions/n1/run", started("run_1", type="action"), {}, keyed=False,
    ),
    "canvas.retrieve_graph": Case(
        lambda f: f.canvas.retrieve_graph(**WS, **PRJ),
        "GET", f"{IN_PROJECT}/graph",
        {"project_id": "prj_1", "revision": "r", "nodes": [NODE], "edges": [{"from": "a", "to": "b", "in": None}]},
    ),
    "canvas.change": Case(
        lambda f: f.canvas.change(add=[{"ref": "x", "type": "image"}], **WS, **PRJ),
        "POST", f"{IN_PROJECT}/canvas/changeset",
        {
            "project_id": "prj_1", "revision": "r", "warnings": [],
            "applied": {"added": 1}, "created": {"x": {"id": "a", "node_id": "n1"}},
        },
        {"add": [{"ref": "x", "type": "image"}]},
    ),
    "canvas.run_nodes": Case(
        lambda f: f.canvas.run_nodes(["n1", "n2"], **WS, **PRJ),
        "POST", f"{IN_PROJECT}/nodes/run",
        {
            "project_id": "prj_1",
            "runs": [
                {"node_id": "n2", "status": "skipped", "reason": "node_locked", "message": "locked"},
                {"node_id": "n1", "status": "started", "run_id": "run_1", "charged_cost": None, "model": None},
            ],
        },
        {"node_ids": ["n1", "n2"]},
    ),
    "canvas.retrieve_definition": Case(
        lambda f: f.canvas.retrieve_definition(**WS, **PRJ),
        "GET", f"{IN_PROJECT}/canvas/definition", {"project_id": "prj_1", "definition": {"nodes": []}},
    ),
    "canvas.replace_definition": Case(
        lambda f: f.canvas.replace_definition({"nodes": []}, **WS, **PRJ),
        "PUT", f"{IN_PROJECT}/canvas/definition",
        {"project_id": "prj_1", "definition": {"nodes": []}, "summary": SUMMARY}, {"definition": {"nodes": []}},
    ),
    "library.create_folder": Case(
        lambda f: f.library.create_folder(workspace_id="ws_1"),
        "POST", "/workspaces/ws_1/library/folders", {"folder_id": "libfolder_1", "name": "New", **WS}, {},
    ),
    "library.delete_folder": Case(
        lambda f: f.library.delete_folder(workspace_id="ws_1", folder_id="libfolder_1"),
        "DELETE", "/workspaces/ws_1/library/folders/libfolder_1",
        {"deleted": True, "folder_id": "libfolder_1", **WS}, keyed=False,
    ),
    "library.add_item": Case(
        lambda f: f.library.add_item(workspace_id="ws_1", folder_id="libfolder_1", type="text", text="t"),
        "POST", "/workspaces/ws_1/library/folders/libfolder_1/items",
        {"folder_id": "libfolder_1", "saved_node_id": "n1", "url": None, **WS}, {"type": "text", "text": "t"},
    ),
    "feedback.record": Case(
        lambda f: f.feedback.record(kind="bug", summary="s", detail="d", run_id="run_1"),
        "POST", "/feedback", {"feedback_id": "fb_1", "received_at": 1},
        {"kind": "bug", "summary": "s", "detail": "d", "run_id": "run_1"},
    ),
    "gateway.models": Case(
        lambda f: f.gateway.models(type="image"),
        "GET", "/gateway/models",
        {"models": [{"model_id": "org/m", "name": "M", "type": "image", "params": [{"name": "a", "kind": "media"}]}]},
    ),
    "gateway.generate": Case(
        lambda f: f.gateway.generate(model="org/m", prompt="a mug", workspace_id="ws_1"),
        "POST", "/gateway/generate", started("run_1"), {"model": "org/m", "prompt": "a mug", "workspace_id": "ws_1"},
    ),
}  # fmt: skip


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Give a FLORA to be scripted."""
    async with Scripted() as scripted:
        yield scripted


def client(server: Scripted) -> Flora:
    """Open a client that sends each request once."""
    return Flora("any", base_url=server.base_url, max_retries=0)


def with_unknown_fields(value: Any) -> Any:
    """Return a JSON value with an unknown field in each of its objects."""
    if isinstance(value, dict):
        return {**{name: with_unknown_fields(item) for name, item in value.items()}, "x_new": {"a": [1]}}
    return [with_unknown_fields(item) for item in value] if isinstance(value, list) else value


def script(server: Scripted, case: Case, *answers: Any) -> None:
    """Write the answers to a case, and its declaration."""
    server.on(case.method, case.path, *answers)
    if case.declaration is not None:
        server.on("GET", case.declaration[0], answer(case.declaration[1]))


@pytest.mark.parametrize("name", CASES)
async def test_a_success(server: Scripted, name: str) -> None:
    """The request is as documented, nulls are accepted, and unknown fields change nothing of the record."""
    case = CASES[name]
    script(server, case, answer(case.response))
    async with client(server) as flora:
        plain = await case.call(flora)
        asked = next(each for each in server.asked if (each.method, each.path) == (case.method, case.path))
        maps = ("applied", "definition", "action", "params", "position", "created")
    if not any(key in case.response for key in maps):
        script(server, case, answer(with_unknown_fields(case.response)))
        async with client(server) as another:
            seen = await case.call(another)
        assert (seen.run_id if isinstance(seen, StartedRun) else seen) == (
            plain.run_id if isinstance(plain, StartedRun) else plain
        )
    assert (msgspec.json.decode(asked.body) if asked.body else None) == case.body
    assert ("Idempotency-Key" in asked.headers) == (case.method != "GET" and case.keyed)


@pytest.mark.parametrize("status", ERRORS)
@pytest.mark.parametrize("name", CASES)
async def test_each_documented_error(server: Scripted, name: str, status: int) -> None:
    """It is the error of its status, with FLORA's code, and the request was sent once."""
    case = CASES[name]
    script(server, case, error(status, "some_code"))
    async with client(server) as flora:
        failure = await fails(case.call(flora))
        if status == 500 and name in ("techniques.run", "actions.run"):
            # No history shows that nothing was started.
            assert isinstance(failure, CreateOutcomeUnknownError)
        else:
            assert type(failure) is ERRORS[status]
            assert isinstance(failure, APIError)
            assert failure.code == "some_code"
        gateway = status == 404 and name.startswith("gateway.")
        assert ("may not be live" in str(failure)) == gateway
    assert server.count(case.method, case.path) == 1


async def test_nodes_come_in_the_order_asked(server: Scripted) -> None:
    """Each is matched by its id; one that FLORA does not mention has a reason."""
    case = CASES["canvas.run_nodes"]
    script(server, case, answer(case.response))
    async with client(server) as flora:
        first, second, third = await flora.canvas.run_nodes(["n1", "n2", "n3"], workspace_id="ws_1", project_id="prj_1")
        assert (first.node_id, first.reason) == ("n1", None)
        assert first.run == StartedRun(run_id="run_1", type="generation", charged_cost=0.0, project_id="prj_1")
        assert (second.run, second.reason, second.message) == (None, "node_locked", "locked")
        assert (third.node_id, third.run, third.reason) == ("n3", None, "unknown")
        wrongs: list[Any] = [[], ["n"] * 2, [f"n{number}" for number in range(51)], "abc", ["a/b"], 5, None]
        for wrong in wrongs:
            with pytest.raises(ConfigurationError):
                await flora.canvas.run_nodes(wrong, workspace_id="ws_1", project_id="prj_1")
    assert server.count("POST", case.path) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"prompt": ""}, {"model": ""}, {"callback_url": "http://example.com/hook"}, {"params": {"image": b"png"}}],
)
async def test_a_generation_of_the_gateway_is_checked_before_it_is_sent(
    server: Scripted, wrong: dict[str, Any]
) -> None:
    """It is billed at once, so its fields are checked like those of an order."""
    async with client(server) as flora:
        order: dict[str, Any] = {"model": "a/b", "prompt": "x", "workspace_id": "ws_1", **wrong}
        assert isinstance(await fails(flora.gateway.generate(**order)), ConfigurationError)
    assert server.asked == []


async def test_an_odd_item_does_not_hide_the_runs_of_other_nodes(server: Scripted) -> None:
    """FLORA bills all started nodes: each run id of the response is returned, and the request is sent once."""
    case = CASES["canvas.run_nodes"]
    items = [
        {"node_id": "n1", "status": "started", "run_id": "run_1", "charged_cost": "0.5"},
        {"node_id": "n2", "status": None, "reason": ["locked"]},
        {"node_id": "n3", "status": "started", "run_id": "run_3"},
        {"node_id": "n3", "status": "started", "run_id": "run_4"},
        {"node_id": None, "status": "started"},
    ]
    script(server, case, answer({"project_id": "prj_1", "runs": items}))
    async with client(server) as flora:
        runs = await flora.canvas.run_nodes(["n1", "n2", "n3"], workspace_id="ws_1", project_id="prj_1")
    ids = [(each.node_id, each.run and each.run.run_id, each.reason) for each in runs]
    assert ids[:4] == [
        ("n1", "run_1", None),
        ("n2", None, "unknown"),
        ("n3", "run_3", None),
        ("n3", "run_4", None),
    ]
    assert "cannot decode FLORA's response" in (runs[0].message or "")
    assert server.count("POST", case.path) == 1


@pytest.mark.parametrize("name", ["gateway.generate", "canvas.run_action"])
async def test_an_undecodable_start_names_its_run(server: Scripted, name: str) -> None:
    """The id is kept when a retry under the same key is answered with a conflict, which has none."""
    case = CASES[name]
    script(server, case, answer({"run_id": "run_7", "charged_cost": None}), error(409, "idempotency_duplicate"))
    async with Flora("any", base_url=server.base_url) as flora:
        failure = await fails(case.call(flora))
    assert failure.run_id == "run_7"
    assert failure.outcome_unknown
    assert server.count("POST", case.path) == (2 if case.keyed else 1)


async def test_a_lost_response_is_sent_again_under_the_same_key(server: Scripted) -> None:
    """A conflict then proves that the first attempt was executed: the outcome is not "refused"."""
    case = CASES["canvas.run_nodes"]
    script(server, case, error(503, "service_unavailable"), error(409, "idempotency_duplicate"))
    async with Flora("any", base_url=server.base_url) as flora:
        failure = await fails(case.call(flora))
    assert isinstance(failure, IdempotencyConflictError)
    assert failure.outcome_unknown
    keys = [asked.headers["Idempotency-Key"] for asked in server.asked]
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_what_changes_something_without_a_key_is_sent_once(server: Scripted) -> None:
    """A retry could add the nodes twice."""
    case = CASES["canvas.update"]
    script(server, case, error(503, "service_unavailable"))
    async with Flora("any", base_url=server.base_url) as flora:
        assert isinstance(await fails(case.call(flora)), InternalServerError)
    assert server.count("PATCH", case.path) == 1


@pytest.mark.parametrize("project_id", ["prj_", "x", "prj_a/b", "prj_a b", "prj_..%2f", 7])
async def test_a_malformed_project_id_is_not_sent(server: Scripted, project_id: Any) -> None:
    """FLORA answers 500 for it, which looks like an outage."""
    async with client(server) as flora:
        for call in (flora.projects.retrieve, flora.canvas.retrieve, flora.canvas.list_nodes):
            assert isinstance(await fails(call(project_id)), ConfigurationError)
        body: dict[str, Any] = {"kind": "bug", "summary": "s", "detail": "d"}
        assert isinstance(await fails(flora.feedback.record(**body, project_id=project_id)), ConfigurationError)
    assert server.asked == []
