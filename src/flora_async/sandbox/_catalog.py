"""The sandbox's models, workspace and projects. Any other id with the right prefix works too."""

from __future__ import annotations

from collections.abc import Mapping

from flora_async.models import GenerationType
from flora_async.sandbox._runs import SECONDS, USD

_CREATED_AT = 1_790_000_000_000

WORKSPACES: list[dict[str, object]] = [
    {"workspace_id": "ws_demo", "name": "Sandbox", "role": "owner", "created_at": _CREATED_AT},
]
PROJECTS: list[dict[str, object]] = [
    {
        "project_id": project_id,
        "workspace_id": "ws_demo",
        "name": name,
        "created_at": _CREATED_AT,
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


def _model(kind: GenerationType, name: str, *params: Mapping[str, object]) -> dict[str, object]:
    return {
        "model_id": f"sandbox-{kind}",
        "name": name,
        "provider": "sandbox",
        "type": kind,
        "estimated_seconds": SECONDS[kind],
        "estimated_credits": round(100 * USD[kind]),
        "capabilities": [f"text-to-{kind}"],
        "params": [_SEED, *params],
    }


MODELS: list[dict[str, object]] = [
    _model("image", "Landscapes", _STYLE),
    _model("video", "A day over landscapes"),
    _model("audio", "Little tunes"),
    _model("text", "A few sentences"),
]
