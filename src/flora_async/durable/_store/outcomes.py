"""Pure: an order, and how it ended, as plain JSON and back."""

from __future__ import annotations

from inspect import signature
from typing import Any

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async.models import AnyOrder, FieldError, Run, convert_order


class StoredError(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error as the database and a line of the results have it: the name of its class, and its fields."""

    type: str
    message: str
    code: str | None = None
    advice: str | None = None
    """Reaction to a failed run."""
    status: int | None = None
    request_id: str | None = None
    fields: tuple[FieldError, ...] = ()
    run: Run | None = None
    """A failed run, or one that was not waited for any longer, as last seen."""
    run_id: str | None = None
    timeout: float | None = None
    window: tuple[float, float] | None = None
    """When a create whose outcome is unknown can have been accepted, in Unix seconds."""
    attempts: int = 1
    accepted: bool = False
    candidates: tuple[str, ...] = ()


class StoredOutcome(Struct, frozen=True, omit_defaults=True):
    """The completed run of an order, or the error."""

    run: Run | None = None
    error: StoredError | None = None


_RESTORED = (errors.APIError, errors.RunFailedError, errors.RunTimeoutError, errors.CreateOutcomeUnknownError)
_decoder: msgspec.json.Decoder[StoredOutcome] = msgspec.json.Decoder(StoredOutcome)
_attempts_decoder: msgspec.json.Decoder[list[StoredError]] = msgspec.json.Decoder(list[StoredError])


def decode_order(body: str) -> AnyOrder:
    """Return a stored order."""
    return convert_order(msgspec.json.decode(body))


def encode_outcome(run: Run | None, error: errors.FloraError | None) -> str:
    """Return an outcome as the database stores it."""
    return msgspec.json.encode(StoredOutcome(run, None if error is None else store_error(error))).decode()


def add_attempt(attempts: str | None, failure: errors.RunFailedError) -> str:
    """Return the stored attempts of an order with one more."""
    return msgspec.json.encode([*decode_attempts(attempts), store_error(failure)]).decode()


def decode_attempts(attempts: str | None) -> list[StoredError]:
    """Return the stored attempts of an order, oldest first."""
    return _attempts_decoder.decode(attempts) if attempts else []


def decode_outcome(text: str | None) -> StoredOutcome:
    """Return a stored outcome."""
    return _decoder.decode(text) if text else StoredOutcome()


def store_error(error: errors.FloraError) -> StoredError:
    """Return the parts of an error that are kept."""
    fields: dict[str, Any] = {name: getattr(error, name, None) for name in StoredError.__struct_fields__}
    message = getattr(error, "reason", error.args[0]) if isinstance(error, _RESTORED) else str(error)
    fields |= {"type": type(error).__name__, "message": message}
    return StoredError(**{name: value for name, value in fields.items() if value is not None})


def restore_error(stored: StoredError, order: AnyOrder, key: str) -> errors.FloraError:
    """Return the error again; one of a class that is not restored keeps its text."""
    kind: Any = getattr(errors, stored.type, errors.FloraError)
    if not issubclass(kind, _RESTORED):
        known = kind is errors.ConfigurationError
        return errors.ConfigurationError(stored.message) if known else errors.FloraError(stored.message)
    fields: dict[str, Any] = msgspec.structs.asdict(stored)
    fields |= {"order": order, "idempotency_key": key, "reason": stored.message, "trouble": None}
    error: errors.FloraError = kind(**{name: fields[name] for name in signature(kind).parameters if name in fields})
    return error
