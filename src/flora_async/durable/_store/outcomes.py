"""Pure: how an order ended, as plain JSON and back."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async.models import FieldError, Order, Run


class StoredError(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error as the database and a line of the results have it."""

    type: str
    """Name of the class, like ``RunFailedError``."""
    message: str
    code: str | None = None
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


_decoder: msgspec.json.Decoder[StoredOutcome] = msgspec.json.Decoder(StoredOutcome)


def encode_outcome(run: Run | None, error: errors.FloraError | None) -> str:
    """Return an outcome as the database stores it."""
    return msgspec.json.encode(StoredOutcome(run, None if error is None else store_error(error))).decode()


def decode_outcome(text: str | None) -> StoredOutcome:
    """Return a stored outcome."""
    return _decoder.decode(text) if text else StoredOutcome()


def store_error(error: errors.FloraError) -> StoredError:
    """Return the parts of an error that are kept."""
    kind = type(error).__name__
    if isinstance(error, errors.RunFailedError):
        return StoredError(type=kind, message=str(error), code=error.code, run=error.run)
    if isinstance(error, errors.RunTimeoutError):
        return StoredError(type=kind, message=str(error), run=error.run, run_id=error.run_id, timeout=error.timeout)
    if isinstance(error, errors.CreateOutcomeUnknownError):
        return StoredError(
            type=kind,
            message=error.reason,
            window=error.window,
            attempts=error.attempts,
            accepted=error.accepted,
            candidates=error.candidates,
        )
    if isinstance(error, errors.APIError):
        return StoredError(
            type=kind,
            message=error.message,
            code=error.code,
            status=error.status,
            request_id=error.request_id,
            fields=error.fields,
        )
    return StoredError(type=kind, message=str(error))


def restore_error(stored: StoredError, order: Order, key: str) -> errors.FloraError:
    """Return the error again."""
    if stored.timeout is not None and stored.run_id is not None:
        return errors.RunTimeoutError(stored.run_id, timeout=stored.timeout, run=stored.run, trouble=None)
    if stored.run is not None:
        return errors.RunFailedError(stored.run)
    if stored.window is not None:
        return errors.CreateOutcomeUnknownError(
            order=order,
            idempotency_key=key,
            window=stored.window,
            attempts=stored.attempts,
            reason=stored.message,
            accepted=stored.accepted,
            candidates=stored.candidates,
        )
    kind: Any = getattr(errors, stored.type, errors.FloraError)
    if stored.status is not None:
        kind = kind if issubclass(kind, errors.APIError) else errors.APIError
        error: errors.FloraError = kind(
            stored.message, status=stored.status, code=stored.code, fields=stored.fields, request_id=stored.request_id
        )
        return error
    return (
        errors.ConfigurationError(stored.message)
        if kind is errors.ConfigurationError
        else errors.FloraError(stored.message)
    )
