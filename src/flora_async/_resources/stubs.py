"""Pure: the declared parameters of models as Python types, one TypedDict for each model."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Iterator, Mapping

from flora_async._resources.param_checks import describe, takes_media
from flora_async.models import Model, ModelParam

HEADER = '''"""Parameters of FLORA's models, one type for each: `params: T2iExampleParams = {...}`.

Written by `flora-async models stubs`. Write it again when FLORA changes its models.
"""
'''
MEDIA = '''Media: TypeAlias = str | PathLike[str] | Asset
"""A URL, a local file, or an uploaded asset."""
'''
IMPORTS = {
    "collections.abc": ("Mapping",),
    "os": ("PathLike",),
    "typing": ("Any", "Literal", "NotRequired", "TypeAlias", "TypedDict"),
    "flora_async": ("Asset",),
}

UNLISTED_MEDIA = {
    "image_url": "Media",
    "image_urls": "list[Media] | tuple[Media, ...]",
    "video_url": "Media",
    "video_urls": "list[Media] | tuple[Media, ...]",
}
"""Media inputs of a model for which FLORA lists none: it may accept them."""

_TYPES = {
    "string": "str",
    "bool": "bool",
    "int": "int",
    "int?": "int | None",
    "seed": "int",
    "float": "float",
    "dict": "Mapping[str, Any]",
}
_WORD = r"[A-Za-z0-9]+"
_UNPRINTABLE = r"[^ -~]+"


class _Names:
    """Makes valid, distinct names."""

    def __init__(self) -> None:
        self._taken = {"Media", *(name for imported in IMPORTS.values() for name in imported)}

    def make(self, text: str, suffix: str = "") -> str:
        words = "".join(word[0].upper() + word[1:] for word in re.findall(_WORD, text))
        base = f"{words if words[:1].isalpha() else f'Model{words}'}{suffix}"
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def write_stubs(models: Iterable[Model]) -> str:
    """Return a Python module that is valid as ``.py`` and ``.pyi``: a TypedDict for the parameters of each model.

    Names of models and parameters are FLORA's own and are quoted, so that no name becomes code.
    """
    names = _Names()
    listed = sorted({model.model_id: model for model in models}.values(), key=lambda model: model.model_id)
    parts: list[str] = []
    for kind in sorted({model.type for model in listed}):
        ids = ", ".join(repr(model.model_id) for model in listed if model.type == kind)
        parts.append(f"{names.make(kind, 'Model')}: TypeAlias = Literal[{ids}]\n")
    for model in listed:
        parts += _write_model(model, names)
    body = "\n".join(parts)
    if re.search(r"\bMedia\b", body):
        body = f"{MEDIA}\n{body}"
    return "\n".join([HEADER, *_write_imports(body), body])


def _write_imports(body: str) -> Iterator[str]:
    """Write the imports that the body uses; a strict type checker reports the others."""
    for module, names in IMPORTS.items():
        if used := [name for name in names if re.search(rf"\b{name}\b", body)]:
            yield f"from {module} import {', '.join(used)}"
    yield ""


def _write_model(model: Model, names: _Names) -> Iterator[str]:
    name = names.make(model.model_id, "Params")
    title = f"# {_comment(model.model_id)}: {_comment(model.type)}"
    if not model.params:
        yield f"{title}, for which FLORA lists no parameters\n{name}: TypeAlias = Mapping[str, Any]\n"
        return
    fields: dict[str, tuple[str, str]] = {}
    for param in model.params:
        kind = _param_type(param)
        if param.properties:
            kind = names.make(f"{model.model_id} {param.name}")
            yield _write_dict(kind, dict.fromkeys(param.properties, ("NotRequired[float]", "")))
        optional = not param.required or param.default is not None or param.name == "prompt"
        default = "" if param.default is None else f", by default {param.default!r}"
        fields[param.name] = (f"NotRequired[{kind}]" if optional else kind, _comment(describe(param) + default))
    if not any(takes_media(param) for param in model.params):
        fields = {**{each: (f"NotRequired[{kind}]", "not listed") for each, kind in UNLISTED_MEDIA.items()}, **fields}
    yield f"{title}\n{_write_dict(name, fields)}"


def _write_dict(name: str, fields: Mapping[str, tuple[str, str]]) -> str:
    """Write a TypedDict: as a class if all names of its fields are names of Python."""
    if all(each.isidentifier() and not keyword.iskeyword(each) and not each.startswith("__") for each in fields):
        lines = [f"    {each}: {kind}{_trailing(comment)}" for each, (kind, comment) in fields.items()]
        return "\n".join([f"class {name}(TypedDict):", *lines, ""])
    lines = [f"        {each!r}: {kind},{_trailing(comment)}" for each, (kind, comment) in fields.items()]
    return "\n".join([f"{name} = TypedDict(", f"    {name!r},", "    {", *lines, "    },", ")", ""])


def _param_type(param: ModelParam) -> str:
    item = "Media" if takes_media(param) else _literal(param) or _TYPES.get(param.type.removesuffix("[]"), "Any")
    return f"list[{item}] | tuple[{item}, ...]" if param.type == "string[]" else item


def _literal(param: ModelParam) -> str | None:
    """Return the options of a parameter as a Literal; ``None`` if a Literal cannot hold them."""
    values = [option.value for option in param.options or ()]
    if not values or not all(isinstance(value, str | int) for value in values):
        return None
    if param.type in ("int", "int?", "seed", "float") and all(isinstance(value, str) for value in values):
        return None  # FLORA lists the options of a number as texts
    return f"Literal[{', '.join(map(repr, dict.fromkeys(values)))}]"


def _trailing(comment: str) -> str:
    return f"  # {comment}" if comment else ""


def _comment(text: str) -> str:
    """Return text that cannot end a comment."""
    return re.sub(_UNPRINTABLE, "?", text)[:200]
