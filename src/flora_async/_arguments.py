"""Pure: what an argument or a setting may be. Whatever may not is one clear error, before anything is sent."""

from __future__ import annotations

import asyncio
import math
import os
import re
from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from flora_async import errors

_Json: TypeAlias = "bool | int | float | str | list[_Json] | tuple[_Json, ...] | dict[str, _Json] | None"

_MAX_ID = 512
_ID = re.compile(r"[^\s/\\?#%\x00-\x1f\x7f-\x9f\ud800-\udfff]+")
_IDEMPOTENCY_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,255}")


def check_text(name: str, value: object, *, longest: int | None = None) -> str:
    """Check that *value* is text that can be sent."""
    if not isinstance(value, str):
        raise errors.ConfigurationError(f"{name} must be a str, not {type(value).__name__}")
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


def check_id(name: str, value: object, prefix: str) -> str:
    """Check a public id: its prefix, and that it cannot leave its place in a path. Otherwise ids are opaque."""
    text = value if isinstance(value, str) and len(value) <= _MAX_ID else check_text(name, value, longest=_MAX_ID)
    if text.startswith(prefix) and _ID.fullmatch(text, len(prefix)):
        return text
    check_text(name, text)
    if not text.startswith(prefix) or len(text) == len(prefix):
        raise errors.ConfigurationError(f"{name} must start with {prefix!r} and go on: {text[:80]!r}")
    raise errors.ConfigurationError(
        f"{name} must not contain white space, control characters or any of / \\ ? # %: {text[:80]!r}"
    )


def check_idempotency_key(value: object) -> str:
    """Check a caller's own idempotency key."""
    text = check_text("idempotency_key", value)
    if not _IDEMPOTENCY_KEY.fullmatch(text):
        raise errors.ConfigurationError("idempotency_key must be 1 to 255 of A-Z a-z 0-9 _ . : -")
    return text


def encode(name: str, value: object) -> bytes:
    """Encode *value* as JSON, refusing what JSON cannot say; a NaN would silently become ``null``."""
    try:
        plain: _Json = msgspec.to_builtins(value, str_keys=True)
        _check_finite(name, plain)
        return msgspec.json.encode(plain)
    except errors.ConfigurationError:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise errors.ConfigurationError(f"{name} cannot be sent as JSON: {error}") from None


def _check_finite(where: str, value: _Json) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise errors.ConfigurationError(f"{where} is {value}, which JSON cannot say: send a finite number")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_finite(f"{where}[{key!r}]", item)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_finite(f"{where}[{index}]", item)


def check_mapping(name: str, value: object) -> None:
    """Check that *value* has names and values."""
    if not isinstance(value, Mapping):
        raise errors.ConfigurationError(f"{name} must be a mapping, not {type(value).__name__}")


def check_limit(limit: object) -> int:
    """Check the size of a page. Reference: "List generation history", Parameters; at most 100."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= 100:
        raise errors.ConfigurationError(f"limit is the size of a page, a whole number from 1 to 100, not {limit!r}")
    return limit


def setting(name: str, given: object, variable: str) -> str:
    """Take an argument, or the environment's word for it; nothing but space counts as unset."""
    if given is not None and not isinstance(given, str):
        raise errors.ConfigurationError(f"{name} must be a str, not {type(given).__name__}")
    return (given or "").strip() or os.environ.get(variable, "").strip()


class Secret:
    """The API key as it is kept: it shows as ``***``, and neither pickles nor copies."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key: str = key

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise errors.ConfigurationError("an API key is neither pickled nor copied: read it where it is needed")

    def bearer(self) -> str:
        """Say what goes into the ``Authorization`` header."""
        return f"Bearer {self._key}"

    def stands_in(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """Say whether an answer shows it."""
        return self._key.encode() in body or any(self._key in value for value in headers.values())

    def struck_out(self, body: bytes) -> bytes:
        """Take it out of a body."""
        return body.replace(self._key.encode(), b"***")

    def struck_from(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Take it out of headers."""
        return {name.lower(): value.replace(self._key, "***") for name, value in headers.items()}


def find_key(given: object) -> tuple[Secret, str | None]:
    """Find the API key, and say what is wrong with it, if anything is.

    The caller raises that: a traceback shows the locals of its frames to whoever records them, and these hold the key.
    """
    if given is not None and not isinstance(given, str):
        return Secret(""), f"api_key must be a str, not {type(given).__name__}"
    key = setting("api_key", given, "FLORA_API_KEY")
    if not key:
        return Secret(""), "no API key: pass api_key=..., or set FLORA_API_KEY"
    if not (key.isascii() and key.isprintable()):
        return Secret(""), (
            "the API key (api_key or FLORA_API_KEY) has characters that no key has: copy it again, plain ASCII only"
        )
    return Secret(key), None


def check_seconds(name: str, value: object) -> float:
    """Check a span of time."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.ConfigurationError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not (value > 0 and math.isfinite(value)):
        raise errors.ConfigurationError(f"{name} must be a finite number of seconds above 0, not {value}")
    return float(value)


def check_flag(name: str, value: object) -> bool:
    """Check a choice of two."""
    if not isinstance(value, bool):
        raise errors.ConfigurationError(f"{name} must be True or False, not {value!r}")
    return value


def check_timeout(timeout: float | None) -> float | None:
    """Check the time for a whole wait; ``None`` is no limit."""
    return None if timeout is None else check_seconds("timeout", timeout)


def check_count(name: str, value: object, *, least: int) -> int:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise errors.ConfigurationError(f"{name} must be an int, not {type(value).__name__}")
    if value < least:
        raise errors.ConfigurationError(f"{name} must be at least {least}, not {value}")
    return value


def check_usd(name: str, value: object) -> float:
    """Check an amount of money."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise errors.ConfigurationError(f"{name} must be an amount of USD from 0 on, not {value!r}")
    return float(value)


def bind_loop(bound: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """Give the running event loop: asyncio's, and no other than the one that a client is *bound* to."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise errors.ConfigurationError("flora-async runs on asyncio: call it inside asyncio.run(...)") from None
    if bound is not None and bound is not loop:
        raise errors.ConfigurationError(
            "this client belongs to another event loop: open one Flora(...) in each asyncio.run(...)"
        )
    return loop
