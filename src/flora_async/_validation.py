"""Argument checks. Each raises ConfigurationError before anything is sent."""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from inspect import iscoroutine, iscoroutinefunction
from pathlib import Path, PurePath
from typing import TypeAlias, TypeGuard
from uuid import UUID

import msgspec

from flora_async import errors
from flora_async.models import Order, Run, StartedRun

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_MAX_ID = 512
_ID = re.compile(r"[^\s/\\?#%\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_MAX_DEPTH = 100
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_USD = 1e300
_UPLOAD = "Upload it with await flora.assets.upload(...), and send the asset's url"
_FIXES = {
    "bytes": f"{_UPLOAD}, or .decode() the text",
    "bytearray": _UPLOAD,
    "memoryview": _UPLOAD,
    "PurePath": f"{_UPLOAD}, or send str(...) if its name is meant",
    "Asset": "Send its url",
    "ndarray": f"Use .tolist() for a list of numbers. For an image: {_UPLOAD[0].lower()}{_UPLOAD[1:]}",
    "Image": _UPLOAD,
    "_IOBase": _UPLOAD,
    "Decimal": "Use float(...) for a number, str(...) for text",
    "Fraction": "Use float(...)",
    "complex": "Use a real number",
    "set": "Use a list, such as sorted(...)",
    "frozenset": "Use a list, such as sorted(...)",
    "date": "Use .isoformat() or .timestamp(), as the model expects",
    "time": "Use .isoformat()",
    "datetime64": "Use str(...)",
    "timedelta": "Use .total_seconds()",
    "UUID": "Use str(...)",
    "Struct": "Use msgspec.to_builtins(...), .to_dict() of a record",
    "BaseModel": "Use .model_dump()",
}
"""Fixes for values without a JSON type, by the name of their class or of a base class."""


def check_text(name: str, value: object, *, longest: int | None = None) -> str:
    """Check that *value* is text that can be sent, and return it as a plain str."""
    if not isinstance(value, str):
        raise errors.ConfigurationError(f"{name} must be a str, not {type(value).__name__}{text_fix(value)}")
    if type(value) is not str:
        value = str.__str__(value)
    if not value:
        raise errors.ConfigurationError(f"{name} must not be empty")
    if longest is not None and len(value) > longest:
        raise errors.ConfigurationError(f"{name} must have at most {longest} characters, not {len(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise errors.ConfigurationError(
            f"{name} has half a surrogate pair at position {error.start}, which cannot be sent"
        ) from None
    return value


def text_fix(value: object) -> str:
    if isinstance(value, bytes):
        return ". Use .decode()"
    if isinstance(value, Enum):
        return ". Use its .value"
    if isinstance(value, PurePath):
        return ". Use .read_text() for the text of the file"
    if isinstance(value, UUID):
        return ". Use str(...)"
    if iscoroutine(value):
        return ". Await it first"
    return ". Use .get_secret_value()" if hasattr(value, "get_secret_value") else ""


def check_id(name: str, value: object, prefix: str) -> str:
    """Check a public id: its prefix, and that it cannot leave its place in a path. Otherwise ids are opaque."""
    if not isinstance(value, str):
        raise errors.ConfigurationError(
            f"{name} must be a str that starts with {prefix!r}, not {type(value).__name__}. Use the id that FLORA shows"
        )
    text = value if type(value) is str and len(value) <= _MAX_ID else check_text(name, value, longest=_MAX_ID)
    if text.startswith(prefix) and _ID.fullmatch(text, len(prefix)):
        return text
    check_text(name, text)
    if not text.startswith(prefix) or len(text) == len(prefix):
        raise errors.ConfigurationError(f"{name} must start with {prefix!r} and have more characters: {text[:80]!r}")
    raise errors.ConfigurationError(
        f"{name} must not contain white space, control characters or any of / \\ ? # %: {text[:80]!r}"
    )


def check_segment(name: str, value: object) -> str:
    """Check an id without a prefix, like that of an action or node: it must be one segment of a path."""
    text = check_text(name, value, longest=_MAX_ID)
    if not _ID.fullmatch(text) or text in (".", ".."):
        raise errors.ConfigurationError(
            f"{name} must not contain white space, control characters or any of / \\ ? # %: {text[:80]!r}"
        )
    return text


def check_idempotency_key(value: object) -> str:
    """Check a caller's own idempotency key."""
    text = check_text("idempotency_key", value)
    if not _IDEMPOTENCY_KEY.fullmatch(text):
        raise errors.ConfigurationError("idempotency_key must be 1 to 255 of A-Z a-z 0-9 _ . : -")
    return text


def check_run(name: str, run: object) -> str:
    """Check that *run* is a run, by any of its records or by its id, and return the id."""
    if isinstance(run, StartedRun | Run):
        run = run.run_id
    elif not isinstance(run, str):
        raise errors.ConfigurationError(
            f"{name} must be a StartedRun, Run, Generation or run id, not {type(run).__name__}{_run_fix(run)}"
        )
    return check_id("run_id", run, "run_")


def _run_fix(run: object) -> str:
    if iscoroutine(run):
        return ". Await it first"
    if isinstance(run, Order):
        return ". Start it first with flora.generations.create(order), or use flora.generate(order)"
    if hasattr(run, "run_id") or (isinstance(run, Mapping) and "run_id" in run):
        return ". Pass its run_id"
    return ". Use flora.as_completed(runs) for many runs" if isinstance(run, Iterable) else ""


def encode(name: str, value: object) -> bytes:
    """Encode *value* as JSON; see :func:`to_json`."""
    return msgspec.json.encode(to_json(name, value))


def is_iterable(value: object) -> TypeGuard[Iterable[object]]:
    """Return whether a value has items, and is neither text nor bytes."""
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | memoryview)


def to_json(name: str, value: object) -> Json:
    """Return *value* with JSON's own types only, in one walk.

    Subclasses of str, int, float, list and tuple, any Mapping, members of enums and numpy scalars become plain
    values. Any other type raises ConfigurationError, which names its path, like ``params['image']``.
    """
    try:
        return _convert(value, 0)
    except (_UnsendableError, RecursionError) as error:
        raise _locate_error(name, error) from None


def to_json_object(name: str, value: object) -> dict[str, Json]:
    """Return the mapping *value* as :func:`to_json` does."""
    if not is_mapping(value):
        fix = ". Decode it first, with json.loads(...)" if isinstance(value, str) else ""
        if hasattr(value, "model_dump") or hasattr(value, "__dataclass_fields__"):
            fix = f". {_json_fix(value)}"
        raise errors.ConfigurationError(
            f"{name} must be a mapping of names to values, like a dict, not {type(value).__name__}{fix}"
        )
    try:
        return _convert_object(value, 1)
    except (_UnsendableError, RecursionError) as error:
        raise _locate_error(name, error) from None


def _locate_error(name: str, error: Exception) -> errors.ConfigurationError:
    if not isinstance(error, _UnsendableError):
        return errors.ConfigurationError(f"{name} is nested too deep")
    steps = error.steps[::-1]
    where = "".join(steps if len(steps) <= 8 else [*steps[:3], "...", steps[-1]])
    return errors.ConfigurationError(f"{name}{where} {error.reason}")


class _UnsendableError(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.steps: list[str] = []
        """The keys and positions that lead to the value, innermost first."""


def _convert(value: object, depth: int) -> Json:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value if type(value) is str and value.isascii() else _convert_text(value)
    if type(value) is float and math.isfinite(value):
        return value
    if isinstance(value, int | float):
        return value if type(value) is int and _MIN_INT <= value <= _MAX_INT else _convert_number(value)
    if depth == _MAX_DEPTH:
        raise _UnsendableError(f"is nested more than {_MAX_DEPTH} levels deep, or contains itself")
    if is_mapping(value):
        return _convert_object(value, depth + 1)
    if is_list(value):
        return _convert_list(value, depth + 1)
    meant = value.value if isinstance(value, Enum) else unwrap_number(value)
    if meant is value:
        raise _UnsendableError(f"is of type {type(value).__name__}, which JSON does not have. {_json_fix(value)}")
    return _convert(meant, depth + 1)


def is_mapping(value: object) -> TypeGuard[Mapping[object, object]]:
    """Return whether *value* is a mapping."""
    return type(value) is dict or isinstance(value, Mapping)


def is_list(value: object) -> TypeGuard[list[object] | tuple[object, ...]]:
    """Return whether JSON has *value* as an array."""
    return isinstance(value, list | tuple)


def _convert_number(number: float) -> int | float:
    if isinstance(number, int):
        if not _MIN_INT <= number <= _MAX_INT:
            raise _UnsendableError("is a whole number of more than 64 bits. Send it as text")
        return int(number)
    if not math.isfinite(number):
        raise _UnsendableError(f"is {float(number)}, for which JSON has no number. Send a finite number")
    return float(number)


def _convert_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _UnsendableError(f"has half a surrogate pair at position {error.start}, which cannot be sent") from None
    return str.__str__(text)


def _convert_object(mapping: Mapping[object, object], depth: int) -> dict[str, Json]:
    converted: dict[str, Json] = {}
    for key, item in mapping.items():
        if not isinstance(key, str):
            raise _UnsendableError(f"has the key {key!r}, and JSON has only text as keys. Use {str(key)!r}")
        try:
            text = key if type(key) is str and key.isascii() else _convert_text(key)
            converted[text] = _convert(item, depth)
        except _UnsendableError as error:
            error.steps.append(f"[{str.__str__(key)!r}]")
            raise
    return converted


def _convert_list(items: list[object] | tuple[object, ...], depth: int) -> list[Json]:
    converted: list[Json] = []
    for index, item in enumerate(items):
        try:
            converted.append(_convert(item, depth))
        except _UnsendableError as error:
            error.steps.append(f"[{index}]")
            raise
    return converted


def unwrap_number(value: object) -> object:
    """Return the Python number in a numpy scalar, or in an array without dimensions; anything else as it is."""
    if isinstance(value, int | float) or getattr(value, "ndim", None) != 0:
        return value
    item = getattr(value, "item", None)
    number: object = item() if callable(item) else value
    return number if type(number) in (bool, int, float, str) else value


def _json_fix(value: object) -> str:
    kind = type(value)
    for base in kind.__mro__:
        if base.__name__ in _FIXES:
            return _FIXES[base.__name__]
    if isinstance(value, os.PathLike):
        return _FIXES["PurePath"]
    if hasattr(kind, "__dataclass_fields__"):
        return "Use dataclasses.asdict(...)"
    if callable(getattr(value, "tolist", None)):
        return _FIXES["ndarray"]
    if iscoroutine(value):
        return "Await it first"
    if isinstance(value, Iterable):
        return "Use list(...)"
    return "Use str, int, float, bool, None, a list or a dict"


def check_limit(limit: object) -> int:
    """Check the size of a page. Reference: "List generation history", Parameters; at most 100."""
    number = unwrap_number(limit)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 100:
        raise errors.ConfigurationError(f"limit is the size of a page, a whole number from 1 to 100, not {limit!r}")
    return int(number)


def resolve_setting(name: str, given: object, variable: str) -> str:
    """Return the argument or the environment variable. A blank value counts as unset."""
    if given is not None and not isinstance(given, str):
        raise errors.ConfigurationError(f"{name} must be a str, not {type(given).__name__}{text_fix(given)}")
    return str.__str__(given or "").strip() or os.environ.get(variable, "").strip()


def check_seconds(name: str, value: object) -> float:
    """Return a positive, finite number of seconds as a float."""
    number = unwrap_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        fix = ". Use .total_seconds()" if hasattr(value, "total_seconds") else ""
        raise errors.ConfigurationError(f"{name} must be a number of seconds, not {type(value).__name__}{fix}")
    try:
        seconds = float(number)
    except OverflowError:
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise errors.ConfigurationError(f"{name} must be a finite number of seconds above 0, not {value}")
    return seconds


def check_flag(name: str, value: object) -> bool:
    """Return *value* as a bool."""
    flag = unwrap_number(value)
    if not isinstance(flag, bool):
        raise errors.ConfigurationError(f"{name} must be True or False, not {value!r}")
    return flag


def check_ssl(value: object) -> ssl.SSLContext:
    """Return *value* if it is a TLS context for clients."""
    if not isinstance(value, ssl.SSLContext):
        raise errors.ConfigurationError(
            f"ssl must be an ssl.SSLContext, like ssl.create_default_context(cafile=...), not {type(value).__name__}"
        )
    if value.protocol == ssl.PROTOCOL_TLS_SERVER:
        raise errors.ConfigurationError(
            "ssl must be a context for clients, not for servers. Make it with ssl.create_default_context()"
        )
    return value


def check_callback(name: str, function: object, arguments: str) -> None:
    """Check a callback of the caller. It must not be a coroutine function, which would never be awaited."""
    if not callable(function):
        kind = type(function).__name__
        raise errors.ConfigurationError(f"{name} must be a function that takes {arguments}, not {kind}")
    if iscoroutinefunction(function) or iscoroutinefunction(type(function).__call__):
        raise errors.ConfigurationError(
            f"{name} must be a plain function that takes {arguments}: a coroutine function would never be awaited"
        )


def check_timeout(timeout: float | None) -> float | None:
    """Return the timeout of a wait in seconds; ``None`` is no limit."""
    return None if timeout is None else check_seconds("timeout", timeout)


def check_time(name: str, value: object) -> datetime | None:
    """Return a time in UTC; ``None`` stays ``None``. A naive datetime is local time."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        fix = "datetime.fromisoformat(...)" if isinstance(value, str) else "datetime.fromtimestamp(..., UTC)"
        raise errors.ConfigurationError(f"{name} must be a datetime, not {type(value).__name__}. Use {fix}")
    try:
        return value.astimezone(UTC)
    except (OSError, OverflowError, ValueError):
        raise errors.ConfigurationError(f"{name} is too early or too late for UTC: {value}. Use another time") from None


def check_count(name: str, value: object, *, least: int) -> int:
    """Return a whole number of at least *least*."""
    number = unwrap_number(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise errors.ConfigurationError(f"{name} must be an int, not {type(value).__name__}")
    if number < least:
        raise errors.ConfigurationError(f"{name} must be at least {least}, not {value}")
    return int(number)


def check_usd(name: str, value: object) -> float:
    """Return an amount in USD, zero or more."""
    number = unwrap_number(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < _MAX_USD:
        fix = ". Use float(...)" if hasattr(value, "__float__") and not isinstance(value, int | float) else ""
        raise errors.ConfigurationError(f"{name} must be an amount of USD from 0 on, a float, not {value!r}{fix}")
    return float(number)


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """Return *value* as a path without NUL characters."""
    try:
        path = Path(value)
    except TypeError:
        raise errors.ConfigurationError(f"{name} must be a str or a path, not {type(value).__name__}") from None
    if "\0" in str(path):
        raise errors.ConfigurationError(f"{name} must not have a NUL character")
    return path
