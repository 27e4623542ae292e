"""Pure: compare an order with the declaration of its model. Returns faults; raises nothing and sends nothing.

FLORA does not check the parameters of an order: an unknown value runs with the default and is billed, a misnamed input
is ignored. A fault is ``certain`` if the declaration rules the value out, and a doubt if the declaration cannot tell.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async._inputs import is_file
from flora_async._validation import is_list, is_mapping, to_json
from flora_async.models import AnyOrder, FieldError, GenerationType, Model, ModelParam, Order

CheckParams: TypeAlias = Literal["off", "warn", "refuse"]
"""Treatment of an order that its model's declaration rules out: send it, log a warning and send it, or refuse it."""

MAX_NAMES = 20
"""Maximum number of names or options that a sentence lists."""
MAX_QUOTED = 60
"""Characters of a value that a sentence quotes."""
NEAR = 0.6
"""Least similarity of a name that is proposed, from 0 to 1."""

_MEDIA_NAME = r"(?i)(?:\w+_)?(?:image|video|audio|media|file|document|mask|frame|url)s?(?:_\d+)?"
_TYPES: dict[str, Any] = {
    "string": str,
    "string[]": list[str],
    "bool": bool,
    "int": int,
    "int?": int | None,
    "seed": int,
    "float": float,
    "dict": dict[str, Any],
}
"""Python types of FLORA's parameter types. A type that is not listed accepts any value."""
_NUMBER_TYPES = ("int", "int?", "seed", "float")
_WORDS = {
    "string": "text",
    "string[]": "a list of texts",
    "bool": "True or False",
    "int": "a whole number",
    "int?": "a whole number or None",
    "seed": "a whole number",
    "float": "a number",
    "dict": "a mapping",
}


class Fault(Struct, frozen=True):
    """A field of an order that its model does not accept, as one sentence."""

    field: str
    """``model``, or the name of the parameter."""
    message: str
    certain: bool = True
    """Whether the declaration rules the value out. Otherwise it cannot tell, and the order is not refused."""


class Catalog(Struct, frozen=True):
    """The models that FLORA lists, by id, as read at one time. ``check`` compares an order with them."""

    models: Mapping[str, Model]
    gateway: Collection[str] = ()
    """Ids of the gateway's models, if they were read."""

    def check(self, order: AnyOrder) -> tuple[FieldError, ...]:
        """Return the errors of an order, each as one sentence; an empty tuple without errors.

        An error is a model for another type, an unknown parameter, a missing required one, or a value of a wrong type,
        out of range or outside the options. What the list of models cannot tell is no error.
        """
        faults = find_faults(order, self)
        return tuple(FieldError(field=each.field, message=each.message) for each in faults if each.certain)


def find_faults(order: AnyOrder, catalog: Catalog) -> list[Fault]:
    """Return the faults of an order: of its model first, then of its parameters. Without a model there are none."""
    if not isinstance(order, Order) or not isinstance(order.model, str):
        return []
    model = catalog.models.get(order.model)
    if model is None:
        return [_check_unknown_model(order.model, catalog)]
    faults = list(_check_model_type(order.type, model, catalog))
    params: object = order.params
    if params is None or is_mapping(params):
        faults += check_params(model, {} if params is None else params)
    return faults


def _check_unknown_model(model_id: str, catalog: Catalog) -> Fault:
    if not catalog.models:
        return Fault("model", f"model {model_id!r} cannot be checked: FLORA lists no models", certain=False)
    if model_id in catalog.gateway:
        reason = f"model {model_id!r} is one of the gateway, and this operation takes the ids of GET /models"
        return Fault("model", reason + _propose(model_id.rpartition("/")[2], catalog.models, near=0.3))
    reason = f"model {model_id!r} is not in FLORA's list of models{_propose(model_id, catalog.models, near=0.4)}"
    return Fault("model", reason, certain=False)  # the list can lack a model, and FLORA refuses an unknown one unbilled


def _check_model_type(wanted: str, model: Model, catalog: Catalog) -> Iterator[Fault]:
    if model.type == wanted or wanted not in get_args(GenerationType):
        return
    if model.type not in get_args(GenerationType):
        reason = f"model {model.model_id!r} cannot be checked: its type {model.type!r} is unknown"
        yield Fault("model", reason, certain=False)
        return
    fitting = [other.model_id for other in catalog.models.values() if other.type == wanted]
    near = find_near(model.model_id, fitting, near=0.0)
    other = f", or a model for {wanted} like {near!r}" if near else ""
    yield Fault("model", f"model {model.model_id!r} makes {model.type}, not {wanted}: use type={model.type!r}{other}")


def check_params(model: Model, params: Mapping[Any, object]) -> list[Fault]:
    """Return the faults in the parameters for a model."""
    known = {param.name: param for param in model.params}
    faults: list[Fault] = []
    for name, value in params.items():
        if not isinstance(name, str):
            continue  # the check of the JSON types refuses it
        if name in known:
            faults += _check_param(model, known[name], _to_plain(value))
        else:
            faults.append(_check_unknown_name(model, name, _to_plain(value)))
    for name, param in known.items():
        # The prompt has its own field in an order.
        if param.required and param.default is None and params.get(name) is None and name != "prompt":
            reason = f"params[{name!r}] of {model.model_id} is required and missing: give {describe(param)}"
            faults.append(Fault(name, reason))
    return faults


def _check_unknown_name(model: Model, name: str, value: object) -> Fault:
    subject = f"params[{name!r}]"
    if not model.params:
        reason = f"{subject} of {model.model_id} cannot be checked: FLORA lists no parameters for it"
        return Fault(name, reason, certain=False)
    media = [param.name for param in model.params if takes_media(param)]
    if not media and _is_media(name, value):
        reason = f"{subject} of {model.model_id} cannot be checked: FLORA lists no media inputs for it"
        return Fault(name, reason, certain=False)
    names = [param.name for param in model.params]
    twin = next((other for other in names if other == f"{name}s" or f"{other}s" == name), None)
    near = twin or find_near(name, names)
    meant = f": did you mean {near!r}?" if near else "."
    reason = f"{subject} ({quote(value)} given) is not a parameter of {model.model_id}{meant} It takes {listing(names)}"
    return Fault(name, reason)


def _check_param(model: Model, param: ModelParam, value: object) -> Iterator[Fault]:
    if value is _UNREADABLE or (value is None and param.required):
        return  # reported as missing, or by the check of the JSON types
    subject = f"params[{param.name!r}]"
    if value is None and param.type != "int?":
        reason = f"{subject} of {model.model_id} is None, which FLORA may not accept: leave it out"
        yield Fault(param.name, reason, certain=False)
        return
    if not _fits(param, value):
        options = [str(option) for option in _options(param)]
        near = _propose(value, options) if isinstance(value, str) and value not in options else ""
        reason = f"{subject} of {model.model_id} must be {describe(param)}, not {quote(value)}{near}"
        yield Fault(param.name, reason)
    elif param.properties and is_mapping(value):
        yield from _check_properties(model, param, value)


def _check_properties(model: Model, param: ModelParam, value: Mapping[object, object]) -> Iterator[Fault]:
    known = param.properties or {}
    for name, item in value.items():
        subject = f"params[{param.name!r}][{name!r}]"
        if not isinstance(name, str) or name not in known:
            near = _propose(str(name), known)
            reason = f"{subject} is not a property of {model.model_id}{near or '.'} It takes {listing(known)}"
            yield Fault(param.name, reason)
            continue
        bounds = known[name]
        if not _is_number(item) or not _in_bounds(item, bounds.min, bounds.max):
            wanted = f"a number{_describe_bounds(bounds.min, bounds.max)}"
            yield Fault(param.name, f"{subject} of {model.model_id} must be {wanted}, not {quote(item)}")


def _fits(param: ModelParam, value: object) -> bool:
    options = _options(param) if param.options else ()
    if isinstance(value, float) and value.is_integer() and param.type in _NUMBER_TYPES:
        value = int(value)  # JSON has one type of numbers
    if options and param.type != "string[]" and any(_is_same(value, option) for option in options):
        return True
    try:
        msgspec.convert(value, _TYPES.get(param.type, Any))
    except msgspec.ValidationError:
        return False
    if options and value is not None:
        if is_list(value):
            return all(_is_option(item, options) for item in value)
        return _is_option(value, options)
    return param.type not in _NUMBER_TYPES or not _is_number(value) or _in_bounds(value, param.min, param.max)


def _options(param: ModelParam) -> list[object]:
    return [option.value for option in param.options or ()]


def _is_option(value: object, options: Sequence[object]) -> bool:
    # FLORA can list the options of a number as texts.
    return any(_is_same(value, option) or str(value) == str(option) for option in options)


def _is_same(value: object, option: object) -> bool:
    return value == option and isinstance(value, bool) == isinstance(option, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _in_bounds(value: object, least: float | None, most: float | None) -> bool:
    number = value if isinstance(value, int | float) else 0
    return (least is None or number >= least) and (most is None or number <= most)


def takes_media(param: ModelParam) -> bool:
    """Return whether a declared parameter is a media input, by its name and type."""
    is_text = param.type not in _NUMBER_TYPES and param.type not in ("bool", "dict")
    return is_text and not param.options and _is_media(param.name, "")


def _is_media(name: str, value: object) -> bool:
    """Return whether a parameter can be a media input, by its name and value."""
    is_text = isinstance(value, str | list)
    return value is _FILE or value is _UNREADABLE or (is_text and re.fullmatch(_MEDIA_NAME, name) is not None)


# -- values


_FILE = "a local file"
"""Stands for a file: the URL of its upload takes its place later."""
_UNREADABLE = object()
"""Stands for a value that is no JSON, and is refused later."""


def _to_plain(value: object) -> object:
    """Return the JSON value that is sent for *value*."""
    if is_list(value):
        plain = [_to_plain_item(item) for item in value]
        return [_FILE if item is _UNREADABLE else item for item in plain]
    return _to_plain_item(value)


def _to_plain_item(value: object) -> object:
    if type(value) in (str, int, float, bool):
        return value
    if is_file(value):
        return _FILE
    try:
        return to_json("params", value)
    except errors.ConfigurationError:
        return _UNREADABLE


# -- words


def describe(param: ModelParam) -> str:
    """Return the allowed values of a parameter, like "a whole number from 1 to 50"."""
    if param.options:
        chosen = listing(_options(param))
        return f"a list of {chosen}" if param.type == "string[]" else f"one of {chosen}"
    word = _WORDS.get(param.type, f"of type {param.type}")
    return word + (_describe_bounds(param.min, param.max) if param.type in _NUMBER_TYPES else "")


def _describe_bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:.15g} to {most:.15g}"
    if least is not None:
        return f" of at least {least:.15g}"
    return "" if most is None else f" of at most {most:.15g}"


def listing(values: Iterable[object]) -> str:
    """Return values as a sentence lists them."""
    quoted = [quote(value) for value in values]
    more = f" and {len(quoted) - MAX_NAMES} more" if len(quoted) > MAX_NAMES else ""
    return f"{', '.join(quoted[:MAX_NAMES])}{more}"


def quote(value: object) -> str:
    """Return a value as a sentence quotes it: short, and without the query of a URL, which can hold a signature."""
    if value is _UNREADABLE or value is _FILE:
        return "a file"
    text = repr(value.partition("?")[0] if isinstance(value, str) and "://" in value else value)
    return text if len(text) <= MAX_QUOTED else f"{text[: MAX_QUOTED - 3]}..."


def find_near(name: str, names: Iterable[str], *, near: float = NEAR) -> str | None:
    """Return the most similar of *names*, or ``None``. Upper and lower case are equal."""
    from difflib import get_close_matches  # Its import takes a millisecond, and few calls need it.

    lower = {each.lower(): each for each in names}
    found = get_close_matches(name.lower(), lower, n=1, cutoff=near)
    return lower[found[0]] if found else None


def _propose(name: str, names: Iterable[str], *, near: float = NEAR) -> str:
    found = find_near(name, names, near=near)
    return f": did you mean {found!r}?" if found else ""
