"""The sandbox's actions: pure functions of pictures and texts. Call those of pictures in a worker thread."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

Params = Mapping[str, Any]


def apply_to_image(effect: str, params: Params, source: bytes) -> bytes:
    """Return the picture that an action makes of *source*, as PNG."""
    with Image.open(io.BytesIO(source)) as opened:
        picture = IMAGE_EFFECTS[effect](opened.convert("RGB"), params)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _filter(picture: Image.Image, params: Params) -> Image.Image:
    name = params.get("filter", "grayscale")
    if name == "invert":
        return ImageOps.invert(picture)
    if name == "posterize":
        return ImageOps.posterize(picture, int(params.get("posterize_bits", 2)))
    if name == "solarize":
        return ImageOps.solarize(picture)
    gray = ImageOps.grayscale(picture)
    return ImageOps.colorize(gray, "#22170a", "#f3e2c0") if name == "sepia" else gray.convert("RGB")


def _rotate(picture: Image.Image, params: Params) -> Image.Image:
    return picture.rotate(-float(params.get("angle", 90)), expand=True)


def _flip(picture: Image.Image, params: Params) -> Image.Image:
    direction = params.get("direction", "horizontal")
    return ImageOps.flip(picture) if direction == "vertical" else ImageOps.mirror(picture)


def _blur(picture: Image.Image, params: Params) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(float(params.get("radius", 8))))


def _resize(picture: Image.Image, params: Params) -> Image.Image:
    return picture.resize((int(params.get("width", 256)), int(params.get("height", 256))))


def _label(picture: Image.Image, params: Params) -> Image.Image:
    ImageDraw.Draw(picture).text((24, 24), str(params.get("text", "")), "white", ImageFont.load_default(36))
    return picture


IMAGE_EFFECTS: dict[str, Callable[[Image.Image, Params], Image.Image]] = {
    "add-text-to-image": _label,
    "blur-image": _blur,
    "color-filter-image": _filter,
    "flip-image": _flip,
    "resize-image": _resize,
    "rotate-image": _rotate,
}


def _concat(texts: Sequence[str], params: Params) -> list[str]:
    return [str(params.get("separator", "\n")).join(texts)]


def _split(texts: Sequence[str], params: Params) -> list[str]:
    separator = str(params.get("separator", "\n")) or "\n"
    return [part for text in texts for part in text.split(separator) if part]


def _replace(texts: Sequence[str], params: Params) -> list[str]:
    return [text.replace(str(params.get("find", "")) or text, str(params.get("replace", ""))) for text in texts]


TEXT_EFFECTS: dict[str, Callable[[Sequence[str], Params], list[str]]] = {
    "concat-text": _concat,
    "find-and-replace-text": _replace,
    "split-text": _split,
}


def _param(key: str, kind: str, **more: object) -> dict[str, object]:
    return {"key": key, "type": kind, "label": key.replace("_", " "), **more}


def _select(key: str, *values: str) -> dict[str, object]:
    options = [{"label": value, "value": value} for value in values]
    return _param(key, "select", available_values=options, default_value=values[0])


_PARAMS: dict[str, list[dict[str, object]]] = {
    "add-text-to-image": [_param("text", "text")],
    "blur-image": [_param("radius", "number", min_number_value=0, max_number_value=100, default_value=8)],
    "color-filter-image": [
        _select("filter", "grayscale", "sepia", "invert", "posterize", "solarize"),
        _param("posterize_bits", "number", min_number_value=1, max_number_value=8),
    ],
    "flip-image": [_select("direction", "horizontal", "vertical")],
    "resize-image": [_param(key, "number", min_number_value=1, max_number_value=4096) for key in ("width", "height")],
    "rotate-image": [_param("angle", "number", min_number_value=-360, max_number_value=360, default_value=90)],
    "concat-text": [_param("separator", "text", default_value="\n")],
    "find-and-replace-text": [_param("find", "text"), _param("replace", "text")],
    "split-text": [_param("separator", "text", default_value="\n")],
}


def _declaration(action_id: str, kind: str) -> dict[str, object]:
    effect = action_id.removesuffix("-browser")
    many: dict[str, object] = {"multiple": {"min": 1}} if effect == "concat-text" else {}
    return {
        "action_id": action_id,
        "name": effect.replace("-", " ").capitalize(),
        "description": f"{effect.replace('-', ' ').capitalize()}, on the sandbox.",
        "charged_cost": 0,
        "language": "python",
        "inputs": [{"name": kind, "type": kind, **many}],
        "outputs": [{"name": kind, "type": kind}],
        "params": _PARAMS[effect],
    }


ACTIONS: dict[str, dict[str, object]] = {
    f"{effect}{suffix}": _declaration(f"{effect}{suffix}", kind)
    for kind, effects in (("image", IMAGE_EFFECTS), ("text", TEXT_EFFECTS))
    for effect in effects
    for suffix in ("", "-browser")
}
"""Declarations of the actions that the sandbox runs, by id; each also under the id of its newer twin."""
