"""What can go wrong: one tree, and nothing but this tree (or cancellation) leaves the package.

::

    FloraError
    ├─ ConfigurationError (ValueError)   a bad argument, key, base_url or id; nothing was sent
    ├─ ClientClosedError                 used after close
    ├─ APIError                          FLORA answered with an error
    │   ├─ BadRequestError 400           ├─ AuthenticationError 401   ├─ InsufficientCreditsError 402
    │   ├─ PermissionDeniedError 403     ├─ NotFoundError 404         ├─ ConflictError 409
    │   │                                                             │   └─ IdempotencyConflictError
    │   ├─ UnprocessableEntityError 422  ├─ RateLimitError 429        └─ InternalServerError 5xx
    ├─ APIConnectionError                no usable answer came
    │   ├─ APITimeoutError (TimeoutError)
    │   ├─ ProtocolError                 garbage, a redirect, an answer about another run
    │   └─ ResponseTooLargeError         more than the client takes
    ├─ ResponseDecodeError               an answer that is not what the API promises
    ├─ CreateOutcomeUnknownError         a create that may have been accepted, and billed
    ├─ RunFailedError                    FLORA gave the run up
    ├─ RunTimeoutError (TimeoutError)    our patience has ended, the run goes on
    ├─ PaginationError                   the history leads in a circle
    ├─ DownloadError                     an output that was not saved
    ├─ ExportError                       a file of the history that was not written
    ├─ DatabaseError                     the database of a durable batch cannot be used
    └─ WebhookVerificationError          a webhook without a valid signature

Each pickles, and its text is one line that holds what a log reader or FLORA's support needs. None holds the API key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flora_async.models import FieldError, Order, Run

SendState: TypeAlias = Literal["not_sent", "maybe_sent", "answered"]
"""Whether a request that failed can have reached FLORA, or has."""


class FloraError(Exception):
    """The root of everything that this package raises."""

    _run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """The run that the error is about, where there is one."""
        return self._run_id

    @run_id.setter
    def run_id(self, run_id: str | None) -> None:
        self._run_id = run_id

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain JSON types: its class as ``type``, its text as ``message``, and what it is about.

        ``run_id``, ``code``, ``status``, ``request_id`` and ``idempotency_key`` are ``None`` where the error has none.
        """
        about = ("run_id", "code", "status", "request_id", "idempotency_key")
        known = {name: getattr(self, name, None) for name in about}
        return {"type": type(self).__name__, "message": str(self), **known}

    def _named(self) -> str:
        """Say it on one line; subclasses add what they know."""
        return super().__str__()

    def __str__(self) -> str:
        text = self._named()
        about = f" ({self.run_id})" if self.run_id and self.run_id not in text else ""
        # What a server says must not move a terminal's cursor, or forge a line of a log.
        return "".join(
            char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(f"{text}{about}".split())
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Exception's own way calls the class with args alone, which keyword-only constructors refuse.
        return _revive, (type(self), self.args, self.__dict__)


def _revive(kind: type[FloraError], args: tuple[object, ...], state: dict[str, object]) -> FloraError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(FloraError, ValueError):
    """A setting or an argument cannot be used. Nothing was sent; the text names it and the mend."""


class ClientClosedError(FloraError):
    """The client was closed, before the call or under it. Runs that were started go on at FLORA."""


class APIError(FloraError):
    """FLORA answered with an error. Reference of the codes: "Errors" in FLORA's public documentation."""

    sent: SendState = "answered"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        fields: tuple[FieldError, ...] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        """FLORA's words, for people."""
        self.status = status
        """The HTTP status."""
        self.code = code
        """FLORA's machine-readable word for it; ``None`` when something in between has answered."""
        self.fields = fields
        """What is wrong with which field of the request (validation errors only)."""
        self.request_id = request_id
        """What FLORA's support asks for."""
        self.retry_after = retry_after
        """Seconds that FLORA asks to wait, where it says so."""
        self.headers: Mapping[str, str] = headers or {}
        """The headers of the answer, their names in lower case."""
        self.attempts = 1
        """How often the request was tried."""

    def _named(self) -> str:
        fields = "; ".join(f"{error.field}: {error.message}" for error in self.fields)
        notes = (
            f"fields {fields}" if fields else "",
            f"retry after {self.retry_after:g} s" if self.retry_after is not None else "",
            f"{self.attempts} attempts" if self.attempts > 1 else "",
            f"request id {self.request_id}" if self.request_id else "",
        )
        text = f"{self.status} {self.code or 'without a code'}: {self.message}"
        return f"{text} [{', '.join(note for note in notes if note)}]" if any(notes) else text


class BadRequestError(APIError):
    """400: the request is malformed; ``fields`` says where. Not worth repeating."""


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or rotated."""


class InsufficientCreditsError(APIError):
    """402: the workspace cannot pay for the generation. Nothing was started."""


class PermissionDeniedError(APIError):
    """403: the key may not do this."""


class NotFoundError(APIError):
    """404: there is no such run or path, or none that the key may see."""


class ConflictError(APIError):
    """409: the request conflicts with the state of things."""


class IdempotencyConflictError(ConflictError):
    """409 ``idempotency_duplicate`` on a first try: the caller's own idempotency key was used before.

    The run of that earlier use exists, and is not billed again; ``flora.recover_create(error)`` looks for it.
    """

    order: Order | None = None
    """What was ordered; ``None`` for a request that was no order."""
    idempotency_key: str | None = None
    window: tuple[float, float] = (0.0, 0.0)
    """Unix seconds by FLORA's clock between which the key was used first: FLORA remembers keys for 2 hours."""


class UnprocessableEntityError(APIError):
    """422: among others ``idempotency_conflict``, the same key with another body."""


class RateLimitError(APIError):
    """429: too many requests for the workspace; ``retry_after`` says for how long, where FLORA does."""


class InternalServerError(APIError):
    """5xx: FLORA, or something in front of it, has failed."""


class APIConnectionError(FloraError):
    """No usable answer came."""

    def __init__(self, message: str, *, sent: SendState, retryable: bool = True, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        """What has happened, for people."""
        self.sent: SendState = sent
        """``"not_sent"``: FLORA cannot have seen the request. ``"maybe_sent"``: it can have."""
        self.retryable = retryable
        """Whether the same request may fare better in a moment."""
        self.request_id = request_id
        """What FLORA's support asks for, if an answer had begun."""
        self.attempts = 1
        """How often the request was tried."""

    def _named(self) -> str:
        attempts = f", {self.attempts} attempts" if self.attempts > 1 else ""
        request_id = f", request id {self.request_id}" if self.request_id else ""
        return f"{self.message} [{self.sent}{attempts}{request_id}]"


class APITimeoutError(APIConnectionError, TimeoutError):
    """One exchange took longer than the client's ``timeout``.

    Every TimeoutError is an OSError: an ``except OSError`` around a call of FLORA catches it too.
    """


class ProtocolError(APIConnectionError):
    """What came back is no answer of this API: not HTTP, a redirect (never followed), or about another run."""

    def __init__(
        self, message: str, *, status: int | None = None, retryable: bool = True, request_id: str | None = None
    ) -> None:
        super().__init__(message, sent="maybe_sent", retryable=retryable, request_id=request_id)
        self.status = status
        """The HTTP status of the answer, if it had one."""


class ResponseTooLargeError(APIConnectionError):
    """An answer has more bytes, unpacked, than ``max_response_bytes``, or more values than any answer of FLORA's."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message, sent="maybe_sent", retryable=False, request_id=request_id)


class ResponseDecodeError(FloraError):
    """An answer came that is not what the API promises."""

    sent: SendState = "answered"

    def __init__(
        self, reason: str, *, field: str | None, url: str, status: int, request_id: str | None, excerpt: str
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        """What is wrong with it."""
        self.field = field
        """Where in the answer, like ``$.generations[0].status``; ``None`` if it is no JSON object at all."""
        self.url = url
        """What was asked for, without its query."""
        self.status = status
        """The HTTP status."""
        self.request_id = request_id
        """What FLORA's support asks for."""
        self.excerpt = excerpt
        """The beginning of the answer."""
        self.attempts = 1
        """How often the request was tried."""

    def _named(self) -> str:
        where = f" at {self.field}" if self.field else ""
        return (
            f"{self.url} answered {self.status} with something else than promised: {self.reason}{where} "
            f"[request id {self.request_id}]: {self.excerpt}"
        )


class CreateOutcomeUnknownError(FloraError):
    """A create may have been accepted, and billed, but its answer was lost.

    Nothing was ordered under a second key, and nothing should be before this is cleared up: that would be billed again.
    ``flora.recover_create(error)`` tries again, also later and in another process: the error pickles.
    """

    sent: SendState = "maybe_sent"

    def __init__(
        self,
        *,
        order: Order,
        idempotency_key: str,
        window: tuple[float, float],
        attempts: int,
        reason: str,
        accepted: bool = False,
        candidates: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.order = order
        """What was ordered."""
        self.idempotency_key = idempotency_key
        """The one key under which every attempt was sent."""
        self.window = window
        """Unix seconds by FLORA's clock, as far as that is known: a run of this order was created between them."""
        self.attempts = attempts
        """How often it was sent."""
        self.reason = reason
        """What became of the last attempt."""
        self.accepted = accepted
        """Whether FLORA has said that it knows the key, so that the run exists."""
        self.candidates = candidates
        """Ids of runs in the history that could be it; empty also where nobody could look."""

    def _named(self) -> str:
        known = (
            f"the {self.order.type} was ordered, but nobody knows as which run"
            if self.accepted
            else (f"nobody knows whether the {self.order.type} was ordered")
        )
        runs = f", perhaps {' or '.join(self.candidates[:3])}" if self.candidates else ""
        more = f" or {len(self.candidates) - 3} more" if len(self.candidates) > 3 else ""
        return f"{known}{runs}{more}: {self.reason} [idempotency key {self.idempotency_key}, {self.attempts} attempts]"


class _RunError(FloraError):
    """An error about one run, whose id is always known."""

    _run_id: str | None = ""

    @property
    def run_id(self) -> str:
        """The run that the error is about."""
        return self._run_id or ""

    @run_id.setter
    def run_id(self, run_id: str | None) -> None:
        self._run_id = run_id


class RunFailedError(_RunError):
    """FLORA gave the run up; ``run`` is its last word. A failed run is not charged."""

    def __init__(self, run: Run) -> None:
        self.run = run
        """The run as it ended."""
        self.run_id = run.run_id
        self.code: str | None = run.error_code
        """FLORA's machine-readable word for why, like ``safety_blocked``. Open."""
        self.message: str | None = run.error_message
        """FLORA's words for it, for people."""
        ended = "failed" if run.status == "failed" else f"ended as {run.status}"
        super().__init__(f"{run.run_id} {ended}: {self.code or 'no code'}: {self.message or 'no message'}")


class RunTimeoutError(_RunError, TimeoutError):
    """The wait is over, the run is not: it goes on at FLORA, is still billed, and can be awaited again by its id.

    Every TimeoutError is an OSError: an ``except OSError`` around a wait catches it too.
    """

    def __init__(self, run_id: str, *, timeout: float, run: Run | None, trouble: str | None) -> None:
        self.run_id = run_id
        self.timeout = timeout
        """How many seconds were waited."""
        self.run = run
        """The run as it was last seen; ``None`` if no look succeeded."""
        seen = f"last seen {run.status} at {run.progress:g} %" if run else "never seen"
        last = f"; the last look failed: {trouble}" if trouble else ""
        super().__init__(f"{run_id} has not finished in {timeout:g} s ({seen}{last}); it goes on, await it again")


class PaginationError(FloraError):
    """The history sent the walk back to a page that it had been at. The items until there were handed out."""

    def __init__(self, cursor: str) -> None:
        super().__init__(f"the history leads back to the page at cursor {cursor!r}, where this walk has been before")
        self.cursor = cursor
        """The cursor that came twice."""


class DownloadError(FloraError):
    """An output was not saved. No part of it stays behind, and FLORA still has it.

    Those before it are saved; the same call with ``on_existing="skip"`` goes on from there.
    """

    saved: tuple[Path, ...] = ()
    """The paths of the outputs of the same run that were saved before it."""


class ExportError(FloraError):
    """A file of the history was not written. The pages read so far stay beside it: the same call goes on from there."""


class DatabaseError(FloraError):
    """The database of a durable batch cannot be used. What FLORA was sent is in it, as far as it had got."""


class WebhookVerificationError(FloraError):
    """The webhook is not proven to come from FLORA. Respond with 400 and ignore the body."""
