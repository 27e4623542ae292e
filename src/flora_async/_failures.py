"""Pure: the advice for the code of a failed run. The only table of run-level codes in the package."""

from __future__ import annotations

import re
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

Advice: TypeAlias = Literal["retry", "retry_later", "change_input", "stop"]
"""Reaction to a failed run: order again now, order again after a pause, change the order, or send no further order."""

CODES: dict[Advice, tuple[str, ...]] = {
    "retry": (
        "GENERATION_PROVIDER_TIMEOUT",
        "GPU_PROVIDER_ERROR",
        "GENERATION_GENERIC_ERROR",
        "SERVER_ERROR",
        "GENERATION_FAILED_TO_START",
        "GENERATION_FAILED_TO_UPLOAD",
        "GENERATION_FAILED_TO_UPDATE",
        "GENERATION_FAILED_TO_GET",
        "GENERATION_PREGENERATION_FAILED",
        "GENERATION_POSTGENERATION_FAILED",
        "GENERATION_MAP_AFTER_REQUEST_FAILED",
        "MODEL_TIMEOUT",
        "INTERNAL_ERROR",
    ),
    "retry_later": (
        "GENERATION_DOWNSTREAM_SERVICE_ERROR",
        "GENERATION_QUEUE_TOO_LARGE",
        "GENERATION_QUEUE_NOT_MOVING",
        "GENERATION_CIRCUIT_BREAKER_OPEN",
        "GENERATION_INVALID_PROVIDER_RESPONSE",
        "GENERATION_NO_RESULT",
        "GENERATION_MODAL_POLL_ERROR",
        "AUDIO_GENERATION_ERROR",
        "GENERATION_PROVIDER_FAILED_TO_GET_STATUS",
    ),
    "change_input": (
        "GENERATION_PROMPT_MODERATED",
        "LLM_REFUSAL",
        "GENERATION_INPUT_VALIDATION",
        "GENERATION_INVALID_PARAMS",
        "GENERATION_INVALID_URL",
        "GENERATION_ENDPOINT_NOT_FOUND",
        "GENERATION_MAP_BEFORE_REQUEST_FAILED",
        "GENERATION_PROVIDER_NOT_SUPPORTED",
        "SAFETY_BLOCKED",
        "INPUT_UNREACHABLE",
    ),
    "stop": (
        "BILLING_NOT_ENOUGH_CREDITS",
        "BILLING_CREDITS_LIMIT_EXCEEDED",
        "BILLING_WOULD_EXCEED_LIMIT",
        "BILLING_FAILED_TO_RESERVE_CREDITS",
        "GENERATION_NOT_PAID",
        "GENERATION_CANCELLED",
    ),
}
"""FLORA's classes of the codes that live runs show (upper case) and of those that its documentation names (lower case
there: ``model_timeout``, ``internal_error``, ``safety_blocked``, ``input_unreachable``). FLORA sorts ``provider_error``
into no class."""

STOP_PREFIX, STOP_SUFFIX = "ACCESS_", "_ENTITLEMENT_REQUIRED"

HIDING_CODES = ("GPU_PROVIDER_ERROR", "GENERATION_NO_RESULT")
"""Codes whose message can be the refusal of a moderation, which fails again."""
REFUSAL_WORDS = ("safety", "moderat", "refusal", "policy", "policies")
"""Beginnings of the words in ``error_message`` by which FLORA's notes recognise such a refusal."""

_ADVICE: dict[str, Advice] = {code: advice for advice, codes in CODES.items() for code in codes}
_REFUSAL = rf"(?i)\b(?:{'|'.join(REFUSAL_WORDS)})"


def advise(code: str | None, message: str | None) -> Advice | None:
    """Return the advice for a run-level code, in either spelling; ``None`` for a code that FLORA sorts nowhere."""
    if code is None:
        return None
    name = code.upper()
    if name in HIDING_CODES and message is not None and re.search(_REFUSAL, message):
        return "change_input"
    if name.startswith(STOP_PREFIX) or name.endswith(STOP_SUFFIX):
        return "stop"
    return _ADVICE.get(name)


class FailedRun(Protocol):
    """A failed run with its advice."""

    @property
    def advice(self) -> Advice | None: ...


class ReorderPolicy(Struct, frozen=True):
    """Pauses in seconds before a failed order is ordered again with the advice ``retry_later``."""

    first_pause: float = 10.0
    factor: float = 2.0
    longest_pause: float = 120.0

    def pause(self, failure: FailedRun, attempts: int, limit: int) -> float | None:
        """Return the pause before the order is ordered again, after so many *attempts* before; ``None``: it is not."""
        if attempts >= limit or failure.advice not in ("retry", "retry_later"):
            return None
        if failure.advice == "retry":
            return 0.0
        return min(self.longest_pause, self.first_pause * self.factor**attempts)
