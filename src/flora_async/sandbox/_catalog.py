"""The sandbox's models, workspace and projects. Any other id with the right prefix works too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from flora_async.models import GenerationType, ModelParam, Order
from flora_async.sandbox._runs import SECONDS, USD

CREATED_AT = 1_790_000_000_000

WORKSPACES: list[dict[str, object]] = [
    {"workspace_id": "ws_demo", "name": "Sandbox", "role": "owner", "created_at": CREATED_AT},
]
PROJECTS: list[dict[str, object]] = [
    {
        "project_id": project_id,
        "workspace_id": "ws_demo",
        "name": name,
        "created_at": CREATED_AT,
        "last_modified": None,
        "origin": None,
    }
    for project_id, name in (("prj_demo", "Demo"), ("prj_other", "Another"))
]

_SEED = {"name": "seed", "required": False, "type": "seed", "label": "Seed", "default": 0, "min": 0}
_STYLE = {
    "name": "style",
    "required": False,
    "type": "string",
    "label": "Style",
    "default": "plain",
    "options": [{"label": "Plain", "value": "plain"}, {"label": "Bold", "value": "bold"}],
}
_DURATION = {
    "name": "duration",
    "required": False,
    "type": "int",
    "label": "Duration in seconds",
    "default": 5,
    "min": 1,
    "max": 10,
}
_CAMERA = {
    "name": "camera",
    "required": False,
    "type": "dict",
    "label": "Camera",
    "properties": {"zoom": {"min": 0, "max": 10, "default": 0}, "pan": {"min": -10, "max": 10, "default": 0}},
}


def _media(name: str, kind: str) -> dict[str, object]:
    return {"name": name, "required": True, "type": kind, "label": "Input"}


def _model(
    kind: GenerationType, name: str, *params: Mapping[str, object], model_id: str | None = None
) -> dict[str, object]:
    return {
        "model_id": model_id or f"sandbox-{kind}",
        "name": name,
        "provider": "sandbox",
        "type": kind,
        "estimated_seconds": SECONDS[kind],
        "estimated_credits": round(1000 * USD[kind]),
        "capabilities": [f"text-to-{kind}"],
        "params": [_SEED, *params],
    }


MODELS: list[dict[str, object]] = [
    _model("image", "Landscapes", _STYLE),
    _model("video", "A day over landscapes", _DURATION),
    _model(
        "video",
        "A picture that moves",
        _media("image_url", "string"),
        _DURATION,
        _CAMERA,
        model_id="sandbox-video-from-image",
    ),
    _model(
        "video", "Pictures in a row", _media("image_urls", "string[]"), _DURATION, model_id="sandbox-video-from-images"
    ),
    _model("audio", "Little tunes"),
    _model("text", "A few sentences"),
]


def missing_inputs(order: Order, models: Iterable[Mapping[str, object]]) -> list[str]:
    """Return the required parameters that an order lacks: FLORA accepts it, and its run fails."""
    declared = next((model for model in models if model["model_id"] == order.model), None)
    params = [] if declared is None else msgspec.convert(declared.get("params", ()), list[ModelParam])
    required = [param.name for param in params if param.required and param.default is None]
    return [name for name in required if (order.params or {}).get(name) is None]
