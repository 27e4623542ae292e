"""The sandbox's techniques and actions: what they declare, what they make, and the operations that start them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import aiohttp
import msgspec
from aiohttp import web
from msgspec.structs import replace

from flora_async._aio import run_in_thread
from flora_async.models import ActionOrder, GenerationType, Order, TechniqueOrder
from flora_async.sandbox import _effects
from flora_async.sandbox._contract import (
    check_project_id,
    check_run_id,
    invalid,
    json_response,
    list_field,
    parse_history_query,
    read_body,
    refusal,
)
from flora_async.sandbox._runs import PlannedOutput, Runs, SandboxRun, encode_cursor, run_record, seeded_random
from flora_async.sandbox._texts import text

T = TypeVar("T", TechniqueOrder, ActionOrder)

_TEXT = {"id": "subject", "name": "Subject", "type": "text", "description": "What the poster shows."}
_PHOTO = {"id": "photo", "name": "Photo", "type": "imageUrl"}
TECHNIQUES: list[dict[str, Any]] = [
    {
        "technique_id": "tech_poster",
        "slug": "poster",
        "name": "Poster",
        "description": "Step 1 writes a caption, step 2 puts it on a picture.",
        "run_cost": 0.05,
        "inputs": [_TEXT, {**_PHOTO, "optional": True}],
        "outputs": [
            {"id": "caption", "name": "Caption", "type": "text"},
            {"id": "poster", "name": "Poster", "type": "imageUrl"},
        ],
    },
    {
        "technique_id": "tech_recolor",
        "slug": "recolor",
        "name": "Recolor",
        "run_cost": 0.02,
        "inputs": [_PHOTO, {"id": "filter", "name": "Filter", "type": "text", "optional": True}],
        "outputs": [{"id": "photo", "name": "Photo", "type": "imageUrl"}],
    },
]
PROJECT = "prj_demo"
"""The project of runs that were started without one."""


class Accept(Protocol):
    """Starts planned runs, or responds to a used key."""

    def __call__(
        self,
        request: web.Request,
        key: str | None,
        body: bytes,
        plan: Callable[[], tuple[SandboxRun | None, object]],
        *,
        status: int = 201,
    ) -> web.Response: ...


class Host:
    """Functions of a sandbox for the modules of its operations."""

    def __init__(
        self,
        base_url: Callable[[], str],
        now: Callable[[], float],
        plan: Callable[[Order], SandboxRun],
        accept: Accept,
        count_accepted: Callable[[], None],
        runs: Runs,
    ) -> None:
        self._base_url = base_url
        self.now = now
        self.plan = plan
        self.accept = accept
        self.count_accepted = count_accepted
        self.runs = runs

    @property
    def base_url(self) -> str:
        """The ``base_url`` for a client."""
        return self._base_url()


class Kinds:
    """Runs of techniques and actions."""

    def __init__(self, host: Host, max_runs: int) -> None:
        self._host = host
        self._techniques = Runs(max_runs)
        self._actions = Runs(max_runs)

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of FLORA's operations."""
        return [
            web.get("/api/v1/techniques", self._list_techniques),
            web.get("/api/v1/techniques/{id}", self._retrieve_technique),
            web.post("/api/v1/runs/technique", self._run_technique),
            web.post("/api/v1/techniques/{id}/runs", self._run_nested),
            web.get("/api/v1/techniques/{id}/runs/{run_id}", self._retrieve_nested),
            web.get("/api/v1/technique-runs", self._list_runs),
            web.get("/api/v1/actions", self._list_actions),
            web.get("/api/v1/actions/{id}", self._retrieve_action),
            web.post("/api/v1/runs/action", self._run_action),
        ]

    def get(self, run_id: str) -> SandboxRun | None:
        """Return a run, or ``None``."""
        return self._techniques.get(run_id) or self._actions.get(run_id)

    def orders(self) -> dict[str, TechniqueOrder | ActionOrder]:
        """Return the orders by run id."""
        return {run.run_id: run.given for runs in (self._techniques, self._actions) for run in runs if run.given}

    # -- declarations

    async def _list_techniques(self, request: web.Request) -> web.Response:
        parse_history_query(request.query)
        wanted = request.query.get("query", "").lower()
        found = [technique for technique in TECHNIQUES if wanted in technique["name"].lower()]
        return json_response({"techniques": found, "meta": {"next_cursor": None, "total_estimate": len(found)}})

    async def _retrieve_technique(self, request: web.Request) -> web.Response:
        return json_response(_find_technique(request.match_info["id"]))

    async def _list_actions(self, _request: web.Request) -> web.Response:
        return json_response({"actions": list(_effects.ACTIONS.values())})

    async def _retrieve_action(self, request: web.Request) -> web.Response:
        return json_response(_find_action(request.match_info["id"]))

    # -- starts

    async def _run_technique(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        order = _convert(given, TechniqueOrder)
        return self._accept_technique(request, order, request.headers.get("Idempotency-Key"))

    async def _run_nested(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        listed = list_field(given, "inputs")
        if not listed or given.get("mode") not in ("async", "stream"):
            raise invalid({"inputs": "Must have at least one", "mode": "Must be async or stream"})
        order = TechniqueOrder(
            technique_id=_find_technique(request.match_info["id"])["technique_id"],
            inputs={str(each["id"]): each["value"] for each in listed},
            workspace_id="ws_demo",
            callback_url=given.get("callback_url"),
        )
        return self._accept_technique(request, order, given.get("idempotency_key"), is_nested=True)

    def _accept_technique(
        self, request: web.Request, order: TechniqueOrder, key: str | None, *, is_nested: bool = False
    ) -> web.Response:
        technique = _find_technique(order.technique_id)
        _check_inputs(technique, order.inputs)

        def plan() -> tuple[SandboxRun, object]:
            prompt = " ".join(str(value) for value in order.inputs.values())
            outputs = _poster(order.inputs) if technique["technique_id"] == "tech_poster" else _recolor(order.inputs)
            run = replace(
                self._plan("image", prompt, order.workspace_id, PROJECT, order.callback_url),
                given=order,
                kind="technique",
                is_nested=is_nested,
                outputs=outputs,
                price=technique["run_cost"],
                name=technique["name"],
            )
            self._techniques.add(run)
            record = run_record(run, self._host.now(), self._host.base_url) if is_nested else self._start_record(run)
            return run, record

        return self._host.accept(request, key, msgspec.json.encode(order), plan, status=200 if is_nested else 201)

    async def _run_action(self, request: web.Request) -> web.Response:
        given = await read_body(request)
        order = _convert(given, ActionOrder)
        check_project_id(order.project_id)
        return self.accept_action(request, order, request.headers.get("Idempotency-Key"))

    def accept_action(self, request: web.Request, order: ActionOrder, key: str | None) -> web.Response:
        """Start an action, and return FLORA's response."""
        declared = _find_action(order.action_id)
        kind: GenerationType = declared["inputs"][0]["type"]
        if not order.inputs or any(each.get("type") != kind for each in order.inputs):
            raise invalid({"inputs": f"Must be of type {kind}"})
        _check_params(declared, order.params or {})

        def plan() -> tuple[SandboxRun, object]:
            words = [str(each.get("text") or each.get("url")) for each in order.inputs]
            run = replace(
                self._plan(kind, " ".join(words), order.workspace_id, order.project_id, None),
                given=order,
                kind="action",
                outputs=_act(order.action_id.removesuffix("-browser"), words, order.params or {}),
                price=0.0,
            )
            self._actions.add(run)
            return run, self._start_record(run)

        return self._host.accept(request, key, msgspec.json.encode(order), plan)

    def _plan(
        self, kind: GenerationType, prompt: str, workspace_id: str, project_id: str, callback_url: str | None
    ) -> SandboxRun:
        order = Order(
            type=kind, prompt=prompt, workspace_id=workspace_id, project_id=project_id, callback_url=callback_url
        )
        return self._host.plan(order)

    def _start_record(self, run: SandboxRun) -> dict[str, object]:
        given = run.given
        about: dict[str, object] = {"technique": None, "action": None, "model": None}
        if isinstance(given, TechniqueOrder):
            about["technique"] = {"technique_id": given.technique_id, "name": run.name}
        elif given is not None:
            about["action"] = {"action_id": given.action_id}
        return {
            "run_id": run.run_id,
            "type": run.kind,
            "estimated_seconds": run.estimate,
            "charged_cost": run.cost,
            "poll_url": f"{self._host.base_url}/runs/{run.run_id}",
            "project_id": run.order.project_id,
            **about,
        }

    # -- runs

    async def _retrieve_nested(self, request: web.Request) -> web.Response:
        check_run_id(request.match_info["run_id"])
        technique = _find_technique(request.match_info["id"])
        run = self._techniques.get(request.match_info["run_id"])
        same = run is not None and run.given is not None and run.given.endpoint == technique["technique_id"]
        if run is None or not same or not run.is_nested:  # FLORA does not find runs that were started at the top here
            raise refusal(404, message="There is no such run of this technique.")
        return json_response(run_record(run, self._host.now(), self._host.base_url))

    async def _list_runs(self, request: web.Request) -> web.Response:
        query = replace(parse_history_query(request.query), endpoint=request.query.get("technique_id"))
        now = self._host.now()
        runs, following, total = self._techniques.page(query, now)
        listed = [
            {
                **run_record(run, now, self._host.base_url),
                "technique_run_id": run.run_id,
                "technique": {"technique_id": run.given.endpoint, "name": run.name},
                "workspace_id": run.order.workspace_id,
                "project_id": run.order.project_id,
            }
            for run in runs
            if run.given is not None
        ]
        cursor = None if following is None else encode_cursor(following)
        return json_response({"technique_runs": listed, "meta": {"next_cursor": cursor, "total_estimate": total}})

    async def render(self, run: SandboxRun, name: str) -> bytes | None:
        """Return the picture of an output by its file name; ``None`` if the run has none of that name."""
        names = {f"output_{number}.png": output for number, output in enumerate(run.outputs, 1) if output.effect}
        output = names.get(name)
        if output is None or run.status(self._host.now()) != "completed":
            return None
        source = await self._read_source(output.source, run)
        return await run_in_thread(_effects.apply_to_image, output.effect, output.params, source)

    async def _read_source(self, url: str | None, run: SandboxRun) -> bytes:
        """Return the bytes of an input on this sandbox, or a picture of the run's own. No other host is asked."""
        from flora_async.sandbox import _media

        if url is not None and url.startswith(self._host.base_url.removesuffix("/api/v1") + "/"):
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                if response.status == 200:
                    return await response.read()
        return (await run_in_thread(_media.render, "image", run.order.prompt, run.seed)).content


def _poster(inputs: Mapping[str, Any]) -> tuple[PlannedOutput, ...]:
    subject = str(inputs["subject"])
    caption = text(subject, seeded_random("caption", subject))
    poster = PlannedOutput(
        "imageUrl", source=inputs.get("photo"), effect="add-text-to-image", params={"text": caption[:40]}
    )
    return PlannedOutput("text", text=caption), poster


def _recolor(inputs: Mapping[str, Any]) -> tuple[PlannedOutput, ...]:
    params = {"filter": inputs.get("filter", "grayscale")}
    photos = msgspec.convert(inputs["photo"] if isinstance(inputs["photo"], list) else [inputs["photo"]], list[str])
    return tuple(PlannedOutput("imageUrl", source=url, effect="color-filter-image", params=params) for url in photos)


def _act(effect: str, words: Sequence[str], params: Mapping[str, Any]) -> tuple[PlannedOutput, ...]:
    if effect in _effects.TEXT_EFFECTS:
        return tuple(PlannedOutput("text", text=part) for part in _effects.TEXT_EFFECTS[effect](words, params))
    return tuple(PlannedOutput("imageUrl", source=url, effect=effect, params=dict(params)) for url in words)


def _find_technique(name: str) -> dict[str, Any]:
    for technique in TECHNIQUES:
        if name in (technique["technique_id"], technique["slug"]):
            return technique
    raise refusal(404, message="There is no such technique.")


def _find_action(action_id: str) -> dict[str, Any]:
    found = _effects.ACTIONS.get(action_id)
    if found is None:
        raise refusal(404, message="There is no such action.")
    return found


def _convert(given: dict[str, Any], kind: type[T]) -> T:
    wrong = {name: "Unrecognized property" for name in given if name not in kind.__struct_fields__}
    wrong |= {"callback_url": "Unrecognized property"} if "callback_url" in given else {}
    try:
        order = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise invalid({"body": str(error), **wrong}) from None
    if wrong:
        raise invalid(wrong)
    return order


def _check_inputs(technique: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    declared = {each["id"]: each for each in technique["inputs"]}
    wrong = {name: "Is not an input" for name in inputs if name not in declared}
    wrong |= {name: "Required" for name, each in declared.items() if name not in inputs and not each.get("optional")}
    wrong |= {name: "Must not be empty" for name, value in inputs.items() if value == ""}
    if wrong:
        raise invalid(wrong)


def _check_params(declared: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    known = {param["key"]: param for param in declared["params"]}
    wrong = {name: "Is not a parameter" for name in params if name not in known}
    for name, value in params.items():
        options = [option["value"] for option in known.get(name, {}).get("available_values", ())]
        if options and value not in options:
            wrong[name] = f"Must be one of {', '.join(options)}"
    if wrong:
        raise invalid(wrong)
