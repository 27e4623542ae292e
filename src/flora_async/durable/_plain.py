"""Pure: what became of an order, as plain JSON and back."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from flora_async import errors
from flora_async.models import FieldError, Order, Run

_run: msgspec.json.Decoder[Run] = msgspec.json.Decoder(Run)


class PlainError(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An error as the database and a line of results have it."""

    type: str
    """The class, like ``RunFailedError``."""
    message: str
    code: str | None = None
    status: int | None = None
    request_id: str | None = None
    fields: tuple[FieldError, ...] = ()
    run: Run | None = None
    """A failed run's last word."""
    window: tuple[float, float] | None = None
    """Of a create whose outcome is unknown: when it can have been accepted, in Unix seconds."""
    attempts: int = 1
    accepted: bool = False
    candidates: tuple[str, ...] = ()


class Ending(Struct, frozen=True, omit_defaults=True):
    """What became of an order: the completed run, or the error."""

    run: Run | None = None
    error: PlainError | None = None


_ending: msgspec.json.Decoder[Ending] = msgspec.json.Decoder(Ending)


def write_ending(run: Run | None, error: errors.FloraError | None) -> str:
    """Write an ending as the database keeps it."""
    return msgspec.json.encode(Ending(run, None if error is None else plain_error(error))).decode()


def read_ending(text: str) -> Ending:
    """Read it again."""
    return _ending.decode(text)


def plain_error(error: errors.FloraError) -> PlainError:
    """Say of an error what is worth keeping."""
    kind = type(error).__name__
    if isinstance(error, errors.RunFailedError):
        return PlainError(type=kind, message=str(error), code=error.code, run=error.run)
    if isinstance(error, errors.CreateOutcomeUnknownError):
        return PlainError(
            type=kind,
            message=error.reason,
            window=error.window,
            attempts=error.attempts,
            accepted=error.accepted,
            candidates=error.candidates,
        )
    if isinstance(error, errors.APIError):
        return PlainError(
            type=kind,
            message=error.message,
            code=error.code,
            status=error.status,
            request_id=error.request_id,
            fields=error.fields,
        )
    return PlainError(type=kind, message=str(error))


def revive(plain: PlainError, order: Order, key: str) -> errors.FloraError:
    """Give the error again."""
    if plain.run is not None:
        return errors.RunFailedError(plain.run)
    if plain.window is not None:
        return errors.CreateOutcomeUnknownError(
            order=order,
            idempotency_key=key,
            window=plain.window,
            attempts=plain.attempts,
            reason=plain.message,
            accepted=plain.accepted,
            candidates=plain.candidates,
        )
    kind: Any = getattr(errors, plain.type, errors.FloraError)
    if plain.status is not None:
        kind = kind if issubclass(kind, errors.APIError) else errors.APIError
        error: errors.FloraError = kind(
            plain.message, status=plain.status, code=plain.code, fields=plain.fields, request_id=plain.request_id
        )
        return error
    kind = errors.ConfigurationError if kind is errors.ConfigurationError else errors.FloraError
    revived: errors.FloraError = kind(plain.message)
    return revived
