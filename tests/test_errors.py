"""What can go wrong, and what each error says."""

import pickle

import pytest

import flora_async
from flora_async import (
    APIConnectionError,
    APIError,
    APITimeoutError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DownloadError,
    FieldError,
    FloraError,
    IdempotencyConflictError,
    Order,
    PaginationError,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
    ResponseTooLargeError,
    Run,
    RunFailedError,
    RunTimeoutError,
    WebhookVerificationError,
)

ORDER = Order(type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1")
FAILED = Run(
    run_id="run_1", status="failed", progress=40, created_at=1, error_code="safety_blocked", error_message="Not this."
)
EXAMPLES: list[tuple[FloraError, list[str]]] = [
    (ConfigurationError("limit must be a number"), ["limit must be a number"]),
    (
        APIError(
            "Invalid",
            status=400,
            code="input_validation_error",
            fields=(FieldError(field="prompt", message="Required"),),
            request_id="req_7",
        ),
        ["400", "input_validation_error", "Invalid", "prompt: Required", "req_7"],
    ),
    (RateLimitError("Slow down", status=429, retry_after=90.0), ["429", "90 s", "Slow down"]),
    (APIConnectionError("cannot connect", sent="not_sent"), ["cannot connect", "not_sent"]),
    (APITimeoutError("no answer", sent="maybe_sent"), ["no answer", "maybe_sent"]),
    (ProtocolError("not\r\n HTTP", status=200, request_id="req_8"), ["not HTTP", "req_8"]),
    (
        ResponseDecodeError(
            "Expected str",
            field="$.status",
            url="https://app.flora.ai/api/v1/runs/run_1",
            status=200,
            request_id="req_9",
            excerpt="{}",
        ),
        ["$.status", "https://app.flora.ai/api/v1/runs/run_1", "req_9", "Expected str", "{}"],
    ),
    (
        CreateOutcomeUnknownError(order=ORDER, idempotency_key="key-1", window=(1.0, 2.0), attempts=3, reason="cut"),
        ["key-1", "3 attempts", "cut", "image"],
    ),
    (
        CreateOutcomeUnknownError(
            order=ORDER,
            idempotency_key="key-1",
            window=(1.0, 2.0),
            attempts=3,
            reason="cut",
            accepted=True,
            candidates=("run_1", "run_2", "run_3", "run_4", "run_5"),
        ),
        ["create accepted, but its run id is unknown", "run_1 or run_2 or run_3 or 2 more", "key-1"],
    ),
    (IdempotencyConflictError("used", status=409, code="idempotency_duplicate"), ["409", "idempotency_duplicate"]),
    (ResponseTooLargeError("more than 1000 bytes", request_id="req_3"), ["1000 bytes", "req_3", "maybe_sent"]),
    (WebhookVerificationError("not FLORA's"), ["not FLORA's"]),
    (RunFailedError(FAILED), ["run_1", "safety_blocked", "Not this."]),
    (
        RunTimeoutError("run_1", timeout=5, run=FAILED, trouble="503"),
        ["run_1", "5 s", "failed at 40 %", "503", "the run continues"],
    ),
    (RunTimeoutError("run_1", timeout=5, run=None, trouble=None), ["run_1", "never seen"]),
    (PaginationError("c1"), ["'c1'"]),
    (DownloadError("disk full"), ["disk full"]),
]


@pytest.mark.parametrize(("error", "words"), EXAMPLES)
def test_the_text_is_one_line_that_holds_what_is_needed(error: FloraError, words: list[str]) -> None:
    """The text of each error holds its code, ids, cause and key on one line."""
    assert "\n" not in str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(("error", "words"), EXAMPLES)
def test_errors_pickle(error: FloraError, words: list[str]) -> None:
    """A pickled error keeps its class, its text and all its attributes."""
    error.run_id = "run_7"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.__dict__ == error.__dict__
    assert str(copy) == str(error)


def test_an_error_says_which_run_it_is_about() -> None:
    """The run id that a wait adds is in the text, once."""
    error = APIError("No", status=401)
    error.run_id = "run_9"
    assert str(error).endswith("(run_9)")


def test_what_cannot_be_printed_is_not() -> None:
    """Control characters of a server's text are replaced."""
    assert str(FloraError("a\x1b[2J\r\nb\x00")) == "a\N{REPLACEMENT CHARACTER}[2J b\N{REPLACEMENT CHARACTER}"


def test_every_failure_of_a_request_says_whether_it_was_sent() -> None:
    """API errors have ``sent`` "answered", unknown creates "maybe_sent"."""
    assert {error.sent for error, _ in EXAMPLES if isinstance(error, APIError | ResponseDecodeError)} == {"answered"}
    assert {error.sent for error, _ in EXAMPLES if isinstance(error, CreateOutcomeUnknownError)} == {"maybe_sent"}


RETRYABLE_AND_UNKNOWN: list[tuple[FloraError, bool, bool]] = [
    (APIError("late", status=408), True, False),
    (APIError("slow down", status=429), True, False),
    (APIError("broken", status=500), True, True),
    (APIError("busy", status=503), True, True),
    *((APIError("no", status=status), False, False) for status in (400, 401, 402, 403, 404, 409, 422)),
    (APIConnectionError("refused", sent="not_sent"), True, False),
    (APIConnectionError("cut", sent="maybe_sent"), True, True),
    (APIConnectionError("certificate", sent="not_sent", retryable=False), False, False),
    (ProtocolError("no HTTP"), True, True),
    (ProtocolError("redirect", status=302, retryable=False), False, False),
    (ResponseTooLargeError("too large"), False, True),
    (ResponseDecodeError("no", field=None, url="u", status=200, request_id=None, excerpt="{}"), False, True),
    (ResponseDecodeError("no", field=None, url="u", status=200, request_id=None, excerpt=" <html>"), True, True),
    (CreateOutcomeUnknownError(order=ORDER, idempotency_key="k", window=(1, 2), attempts=1, reason="cut"), False, True),
    (ConfigurationError("no key"), False, False),
]


@pytest.mark.parametrize(("error", "retryable", "unknown"), RETRYABLE_AND_UNKNOWN)
def test_each_error_knows_whether_a_retry_helps(error: FloraError, retryable: bool, unknown: bool) -> None:
    """Each error has ``retryable`` and ``outcome_unknown``, also after it was pickled."""
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (each.retryable, each.outcome_unknown) == (retryable, unknown)


def test_attempts_are_told() -> None:
    """The text has the number of attempts, if there were several."""
    error = APIConnectionError("cut", sent="maybe_sent")
    error.attempts = 3
    assert "3 attempts" in str(error)


def test_every_error_is_in_the_one_tree_and_at_the_front_door() -> None:
    """All errors are public subclasses of FloraError; timeouts are TimeoutErrors, invalid settings ValueErrors."""
    found = {name for name in flora_async.__all__ if name.endswith("Error")} - {"FieldError"}
    tree: set[type[FloraError]] = {FloraError}
    while grown := {child for parent in tree for child in parent.__subclasses__()} - tree:
        tree |= grown
    assert found == {error.__name__ for error in tree if not error.__name__.startswith("_")}
    assert issubclass(APITimeoutError, TimeoutError)
    assert issubclass(RunTimeoutError, TimeoutError)
    assert issubclass(ConfigurationError, ValueError)
