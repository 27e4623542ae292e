"""The API key: load it, send it, and redact it."""

from __future__ import annotations

from collections.abc import Mapping

from flora_async import errors
from flora_async._validation import resolve_setting, text_fix


class APIKey:
    """The API key. Its repr is ``***``; it cannot be pickled or copied."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key: str = key

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise errors.ConfigurationError("cannot pickle or copy an API key. Load it in each process")

    def bearer(self) -> str:
        """Return the value of the ``Authorization`` header."""
        return f"Bearer {self._key}"

    def appears_in(self, body: bytes, headers: Mapping[str, str]) -> bool:
        """Return whether a response contains the key."""
        return self._key.encode() in body or any(self._key in value for value in headers.values())

    def redact_body(self, body: bytes) -> bytes:
        """Return the body with the key replaced by ``***``."""
        return body.replace(self._key.encode(), b"***")

    def redact_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers with the key replaced by ``***``, their names in lower case."""
        return {name.lower(): value.replace(self._key, "***") for name, value in headers.items()}


def load_api_key(given: object) -> tuple[APIKey, str | None]:
    """Return the API key, and a message if it is invalid.

    The caller raises the error: tracebacks can show the locals of their frames, and these hold the key.
    """
    if given is not None and not isinstance(given, str):
        return APIKey(""), f"api_key must be a str, not {type(given).__name__}{text_fix(given)}"
    key = resolve_setting("api_key", given, "FLORA_API_KEY")
    if not key:
        return APIKey(""), "no API key: pass api_key=..., or set FLORA_API_KEY"
    if not (key.isascii() and key.isprintable()):
        return APIKey(""), (
            "the API key (api_key or FLORA_API_KEY) has characters that no key has: copy it again, plain ASCII only"
        )
    if key[0] in "\"'":
        return APIKey(""), "the API key (api_key or FLORA_API_KEY) begins with a quotation mark. Remove the quotes"
    if key.lower().startswith("bearer "):
        return APIKey(""), "the API key (api_key or FLORA_API_KEY) begins with 'Bearer'. Pass the key alone"
    return APIKey(key), None
