"""Exception hierarchy. Only these exceptions, or a cancellation, leave the package.

::

    FloraError
    ├─ ConfigurationError (ValueError)   a bad argument, key, base_url or id; nothing was sent
    ├─ BudgetExceededError               an order that does not fit its Budget; nothing was sent
    ├─ ClientClosedError                 used after close
    ├─ APIError                          FLORA responded with an error
    │   ├─ BadRequestError 400           ├─ AuthenticationError 401   ├─ InsufficientCreditsError 402
    │   ├─ PermissionDeniedError 403     ├─ NotFoundError 404         ├─ ConflictError 409
    │   │                                                             │   └─ IdempotencyConflictError
    │   ├─ UnprocessableEntityError 422  ├─ RateLimitError 429        └─ InternalServerError 5xx
    ├─ APIConnectionError                no usable response was received
    │   ├─ APITimeoutError (TimeoutError)
    │   ├─ ProtocolError                 invalid HTTP, a redirect, a response about another run
    │   └─ ResponseTooLargeError         more bytes or values than the client accepts
    ├─ ResponseDecodeError               a response that does not match the API reference
    ├─ CreateOutcomeUnknownError         a create that may have been accepted and billed
    ├─ RunFailedError                    FLORA ended the run without a result
    ├─ RunTimeoutError (TimeoutError)    the wait timed out; the run continues
    ├─ PaginationError                   the history repeated a cursor
    ├─ DownloadError                     an output that was not saved
    ├─ UploadError                       a file that was not uploaded
    │   └─ UploadTimeoutError (TimeoutError)
    ├─ ExportError                       a file of the history that was not written
    ├─ DatabaseError                     the database of a durable batch cannot be used
    └─ WebhookVerificationError          a webhook without a valid signature

Each exception can be pickled. Its text is one line and never holds the API key.

``retryable`` and ``outcome_unknown`` are set here alone. Every retry rule of the package reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from flora_async._failures import Advice
from flora_async.models import AnyOrder, FieldError, Run

SendState: TypeAlias = Literal["not_sent", "maybe_sent", "answered"]
"""Whether the failed request can have reached FLORA: no, perhaps, or yes."""


class FloraError(Exception):
    """Base class of all exceptions of this package."""

    retryable: bool = False
    """Whether the same request can succeed later."""
    outcome_unknown: bool = False
    """Whether a create that failed with this error may have been accepted, and billed."""

    asset_id: str | None = None
    """The id of the asset that was created for an upload; ``None`` if there is none. It can be incomplete."""

    _run_id: str | None = None

    @property
    def run_id(self) -> str | None:
        """The id of the run that the error is about; ``None`` if there is none."""
        return self._run_id

    @run_id.setter
    def run_id(self, run_id: str | None) -> None:
        self._run_id = run_id

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain JSON types: ``type`` (its class), ``message`` (its text), and ids.

        ``run_id``, ``code``, ``advice``, ``status``, ``request_id`` and ``idempotency_key`` are ``None`` if the error
        has none.
        """
        names = ("run_id", "code", "advice", "status", "request_id", "idempotency_key")
        known = {name: getattr(self, name, None) for name in names}
        return {"type": type(self).__name__, "message": str(self), **known}

    def _describe(self) -> str:
        """Return the message; subclasses add details."""
        return super().__str__()

    def __str__(self) -> str:
        text = self._describe()
        ids = [each for each in (self.run_id, self.asset_id) if each and each not in text]
        about = f" ({', '.join(ids)})" if ids else ""
        # A server's text must not move the cursor of a terminal, or forge a line of a log.
        return "".join(
            char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in " ".join(f"{text}{about}".split())
        )

    def __reduce__(self) -> tuple[object, ...]:
        # Exception.__reduce__ calls the class with args alone, which keyword-only constructors refuse.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[FloraError], args: tuple[object, ...], state: dict[str, object]) -> FloraError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(FloraError, ValueError):
    """A setting or an argument cannot be used. Nothing was sent. The text names the fix."""

    fields: tuple[FieldError, ...] = ()
    """The parameters that the order's model does not accept, each with one sentence (``check_params`` only)."""


class BudgetExceededError(FloraError):
    """The order could cost more than its ``Budget`` has left. Nothing was sent."""

    def __init__(self, usd: float, expected: float) -> None:
        super().__init__(
            f"order not sent: it could exceed the budget of {usd:g} USD, of which {expected:g} are spent or expected"
        )
        self.usd = usd
        """The amount of the budget in USD."""
        self.expected = expected
        """USD that are spent or expected for other orders."""


class ClientClosedError(FloraError):
    """The client was closed before or during the call. Runs that were started continue at FLORA."""


def is_retryable_status(status: int) -> bool:
    """Return whether a request that failed with this HTTP status may succeed later."""
    return status in (408, 429) or status >= 500


class APIError(FloraError):
    """FLORA responded with an error. Reference of the codes: "Errors" in FLORA's public documentation."""

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
        """FLORA's message, for people."""
        self.status = status
        """The HTTP status."""
        self.retryable: bool = is_retryable_status(status)
        self.outcome_unknown: bool = status >= 500  # the server can have failed after it accepted the create
        self.code = code
        """Machine-readable error code; ``None`` if a proxy sent the response."""
        self.fields = fields
        """The invalid fields of the request, each with a message (validation errors only)."""
        self.request_id = request_id
        """Id of the request. FLORA's support asks for it."""
        self.retry_after = retry_after
        """Seconds of the ``Retry-After`` header; ``None`` if there was none."""
        self.headers: Mapping[str, str] = headers or {}
        """Headers of the response, with names in lower case."""
        self.attempts = 1
        """Number of attempts to send the request."""

    def _describe(self) -> str:
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
    """400: the request is malformed; ``fields`` names the invalid fields. A retry fails too."""


class AuthenticationError(APIError):
    """401: the API key is missing, wrong or rotated."""


class InsufficientCreditsError(APIError):
    """402: the workspace has too few credits for the generation. Nothing was started."""


class PermissionDeniedError(APIError):
    """403: the key has no permission for this request."""


class NotFoundError(APIError):
    """404: the run or path does not exist, or the key has no access to it."""


class ConflictError(APIError):
    """409: the request conflicts with the current state at FLORA."""


class IdempotencyConflictError(ConflictError):
    """409 ``idempotency_duplicate`` on the first attempt: the caller's idempotency key was used before.

    The run of the earlier use exists and is not billed again. ``flora.recover_create(error)`` searches for it.
    """

    order: AnyOrder | None = None
    """The order; ``None`` if the request was not a create."""
    idempotency_key: str | None = None
    window: tuple[float, float] = (0.0, 0.0)
    """Unix seconds by FLORA's clock. The key was first used between them: FLORA stores keys for 2 hours."""


class UnprocessableEntityError(APIError):
    """422: among others ``idempotency_conflict``, the same key with another body."""


class RateLimitError(APIError):
    """429: too many requests for the workspace. ``retry_after`` has the pause that FLORA requested, if any."""


class InternalServerError(APIError):
    """5xx: FLORA or a proxy in front of it failed."""


class APIConnectionError(FloraError):
    """No usable response was received."""

    def __init__(self, message: str, *, sent: SendState, retryable: bool = True, request_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        """The failure, for people."""
        self.sent: SendState = sent
        """``"not_sent"``: FLORA cannot have received the request. ``"maybe_sent"``: it can have received it."""
        self.retryable: bool = retryable
        self.outcome_unknown: bool = sent != "not_sent"
        self.request_id = request_id
        """Id of the request, if a response had begun. FLORA's support asks for it."""
        self.attempts = 1
        """Number of attempts to send the request."""

    def _describe(self) -> str:
        attempts = f", {self.attempts} attempts" if self.attempts > 1 else ""
        request_id = f", request id {self.request_id}" if self.request_id else ""
        return f"{self.message} [{self.sent}{attempts}{request_id}]"


class APITimeoutError(APIConnectionError, TimeoutError):
    """One attempt took longer than the client's ``timeout``.

    Every TimeoutError is an OSError: an ``except OSError`` around a call of FLORA catches it too.
    """


class ProtocolError(APIConnectionError):
    """The response is invalid HTTP, a redirect (never followed), or about another run."""

    def __init__(
        self, message: str, *, status: int | None = None, retryable: bool = True, request_id: str | None = None
    ) -> None:
        super().__init__(message, sent="maybe_sent", retryable=retryable, request_id=request_id)
        self.status = status
        """The HTTP status of the response, if it had one."""
        self.outcome_unknown: bool = status is None or not 300 <= status < 400  # a redirect is not executed


class ResponseTooLargeError(APIConnectionError):
    """The response has more decompressed bytes than ``max_response_bytes``, or more than 200,000 values."""

    def __init__(self, message: str, *, request_id: str | None = None) -> None:
        super().__init__(message, sent="maybe_sent", retryable=False, request_id=request_id)


class ResponseDecodeError(FloraError):
    """The response does not match the API reference."""

    outcome_unknown = True
    sent: SendState = "answered"

    def __init__(
        self, reason: str, *, field: str | None, url: str, status: int, request_id: str | None, excerpt: str
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        """Description of the mismatch."""
        self.field = field
        """Path in the response, like ``$.generations[0].status``; ``None`` if the response is not a JSON object."""
        self.url = url
        """URL of the request, without its query."""
        self.status = status
        """The HTTP status."""
        self.request_id = request_id
        """Id of the request. FLORA's support asks for it."""
        self.excerpt = excerpt
        """The beginning of the response body."""
        self.retryable: bool = excerpt.lstrip().startswith("<")  # a page of a proxy
        self.attempts = 1
        """Number of attempts to send the request."""

    def _describe(self) -> str:
        where = f" at {self.field}" if self.field else ""
        return (
            f"cannot decode the {self.status} response of {self.url}: {self.reason}{where} "
            f"[request id {self.request_id}]: {self.excerpt}"
        )


class CreateOutcomeUnknownError(FloraError):
    """A create may have been accepted, and billed, but its response was lost.

    The client sent no second key. Do not create again before recovery: the new run would be billed too.
    ``flora.recover_create(error)`` retries the recovery, also later and in another process: the error can be pickled.
    """

    outcome_unknown = True
    sent: SendState = "maybe_sent"

    def __init__(
        self,
        *,
        order: AnyOrder,
        idempotency_key: str,
        window: tuple[float, float],
        attempts: int,
        reason: str,
        accepted: bool = False,
        candidates: tuple[str, ...] = (),
    ) -> None:
        super().__init__(reason)
        self.order = order
        """The order of the create."""
        self.idempotency_key = idempotency_key
        """The idempotency key of every attempt."""
        self.window = window
        """Unix seconds by FLORA's clock, as far as it is known. A run of this order was created between them."""
        self.attempts = attempts
        """Number of attempts to send the create."""
        self.reason = reason
        """The error of the last attempt."""
        self.accepted = accepted
        """Whether FLORA has reported that it knows the key: then the run exists."""
        self.candidates = candidates
        """Ids of possible runs in the history; also empty if the history could not be read."""

    def _describe(self) -> str:
        known = (
            f"{self.order.kind} create accepted, but its run id is unknown"
            if self.accepted
            else f"unknown whether the {self.order.kind} create was accepted"
        )
        runs = f", perhaps {' or '.join(self.candidates[:3])}" if self.candidates else ""
        more = f" or {len(self.candidates) - 3} more" if len(self.candidates) > 3 else ""
        return f"{known}{runs}{more}: {self.reason} [idempotency key {self.idempotency_key}, {self.attempts} attempts]"


class _RunError(FloraError):
    """An error about one run, whose id is always known."""

    _run_id: str | None = ""

    @property
    def run_id(self) -> str:
        """The id of the run that the error is about."""
        return self._run_id or ""

    @run_id.setter
    def run_id(self, run_id: str | None) -> None:
        self._run_id = run_id


class RunFailedError(_RunError):
    """FLORA ended the run without a result; ``run`` is its final state. A failed run is not charged."""

    def __init__(self, run: Run) -> None:
        self.run = run
        """The final state of the run."""
        self.run_id = run.run_id
        self.code: str | None = run.error_code
        """Machine-readable reason, like ``safety_blocked``. FLORA can add new codes."""
        self.message: str | None = run.error_message
        """FLORA's message, for people."""
        ended = "failed" if run.status == "failed" else f"ended as {run.status}"
        super().__init__(f"{run.run_id} {ended}: {self.code or 'no code'}: {self.message or 'no message'}")

    @property
    def advice(self) -> Advice | None:
        """Reaction to the failure, by its code and message; ``None`` for a code that FLORA sorts nowhere.

        ``"retry"``: order again now. ``"retry_later"``: order again after a pause. ``"change_input"``: the same order
        fails again. ``"stop"``: every order fails until the account is changed.
        """
        return self.run.advice

    def _describe(self) -> str:
        text = super()._describe()
        return text if self.advice is None else f"{text} [advice: {self.advice}]"


class RunTimeoutError(_RunError, TimeoutError):
    """The wait timed out, but the run continues. FLORA still bills it, and you can wait for its id again.

    Every TimeoutError is an OSError: an ``except OSError`` around a wait catches it too.
    """

    def __init__(self, run_id: str, *, timeout: float, run: Run | None, trouble: str | None) -> None:
        self.run_id = run_id
        self.timeout = timeout
        """Length of the wait in seconds."""
        self.run = run
        """State of the run at the last poll; ``None`` if no poll succeeded."""
        seen = f"last seen {run.status} at {run.progress:g} %" if run else "never seen"
        last = f"; the last poll failed: {trouble}" if trouble else ""
        super().__init__(
            f"{run_id} has not finished in {timeout:g} s ({seen}{last}): the run continues. Wait for it again"
        )


class PaginationError(FloraError):
    """The history returned a cursor for the second time. The items before it were yielded."""

    def __init__(self, cursor: str) -> None:
        super().__init__(f"cannot read the history further: FLORA returned cursor {cursor!r} for the second time")
        self.cursor = cursor
        """The repeated cursor."""


class DownloadError(FloraError):
    """An output was not saved. No partial file is left, and FLORA still has the output.

    The outputs before it are saved. The same call with ``on_existing="skip"`` resumes after them.
    """

    saved: tuple[Path, ...] = ()
    """Paths of the outputs of the same run that were saved before it."""


class UploadError(FloraError):
    """A file was not uploaded, or FLORA could not use it. Nothing was ordered with it, and uploads cost nothing.

    ``asset_id`` names the asset that FLORA had created for it. It is incomplete; the next upload creates another one.
    """

    def __init__(
        self, message: str, *, asset_id: str | None = None, status: int | None = None, retryable: bool = False
    ) -> None:
        super().__init__(message)
        self.asset_id = asset_id
        self.status = status
        """The HTTP status of the store that refused the file, if it was that."""
        self.retryable: bool = retryable


class UploadTimeoutError(UploadError, TimeoutError):
    """The upload took longer than its timeout. ``flora.assets.retrieve(error.asset_id)`` shows how far it came.

    Every TimeoutError is an OSError: an ``except OSError`` around an upload catches it too.
    """


class ExportError(FloraError):
    """A file of the history was not written. The pages read so far are kept: the same call resumes after them."""


class DatabaseError(FloraError):
    """The database of a durable batch cannot be used. It holds the state that was stored before the failure."""


class WebhookVerificationError(FloraError):
    """The webhook is not proven to come from FLORA. Respond with 400 and ignore the body."""
