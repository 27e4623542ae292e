"""The advice for a failed run, by its code and message."""

import pytest

from flora_async import Flora, Run, RunFailedError, errors
from flora_async._failures import CODES, Advice, advise
from flora_async.sandbox import Sandbox

REFUSAL = "Your request was rejected by the safety system. safety_violations=[sexual]."


@pytest.mark.parametrize(("code", "advice"), [(code, advice) for advice, codes in CODES.items() for code in codes])
def test_both_spellings_have_the_advice_of_their_class(code: str, advice: Advice) -> None:
    """A code that FLORA sorts has the advice of its class in upper and lower case."""
    assert advise(code, None) == advise(code.lower(), "It failed.") == advice


def test_no_code_is_in_two_classes() -> None:
    """Each of the codes has one advice, and all of FLORA's notes and documentation are there."""
    codes = [code for codes in CODES.values() for code in codes]
    assert len(codes) == len(set(codes)) == 38
    assert [len(codes) for codes in CODES.values()] == [13, 9, 10, 6]


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        ("GPU_PROVIDER_ERROR", REFUSAL, "change_input"),
        ("gpu_provider_error", "Blocked by MODERATION", "change_input"),
        ("GENERATION_NO_RESULT", "The prompt violates our content policy", "change_input"),
        ("GENERATION_NO_RESULT", "A refusal of the model", "change_input"),
        ("GENERATION_NO_RESULT", "Moderated content, against our policies", "change_input"),
        ("GPU_PROVIDER_ERROR", "connection refused", "retry"),
        ("GPU_PROVIDER_ERROR", "CUDA out of memory", "retry"),
        ("GPU_PROVIDER_ERROR", None, "retry"),
        ("GENERATION_NO_RESULT", "unsafety", "retry_later"),
        ("SERVER_ERROR", REFUSAL, "retry"),
        ("ACCESS_MODEL_DENIED", None, "stop"),
        ("access_", REFUSAL, "stop"),
        ("VIDEO_ENTITLEMENT_REQUIRED", None, "stop"),
        ("NO_ACCESS_HERE", None, None),
        ("ENTITLEMENT_REQUIRED", None, None),
        ("provider_error", "The provider failed.", None),
        ("provider_error", REFUSAL, None),
        ("A_CODE_OF_NEXT_YEAR", REFUSAL, None),
        ("", "no code", None),
        (None, REFUSAL, None),
    ],
)
def test_messages_prefixes_and_unknown_codes(code: str | None, message: str | None, advice: Advice | None) -> None:
    """A hidden refusal asks for another input, an access code stops, and an unsorted code has no advice."""
    assert advise(code, message) == advice


def test_the_advice_is_in_the_record_the_error_and_its_text() -> None:
    """A failed run, its error, the error's dict and text have the same advice; other runs have none."""
    run = Run(run_id="run_1", status="failed", progress=100, created_at=1, error_code="GENERATION_QUEUE_TOO_LARGE")
    error = RunFailedError(run)
    assert run.advice == error.advice == error.to_dict()["advice"] == "retry_later"
    assert str(error).endswith("[advice: retry_later]")
    odd = RunFailedError(Run(run_id="run_2", status="canceled", progress=1, created_at=1, completed_at=2))
    assert odd.advice is None
    assert "advice" not in str(odd)
    assert Run(run_id="run_3", status="completed", progress=100, created_at=1, error_code="SERVER_ERROR").advice is None
    assert errors.FloraError("other").to_dict()["advice"] is None


@pytest.mark.anyio
@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("marker", "code", "message", "advice"),
    [
        ("[fail:GENERATION_PROVIDER_TIMEOUT]", "GENERATION_PROVIDER_TIMEOUT", "as its prompt asked", "retry"),
        ("[fail:model_timeout]", "model_timeout", "took too long", "retry"),
        ("[fail:BILLING_NOT_ENOUGH_CREDITS]", "BILLING_NOT_ENOUGH_CREDITS", "as its prompt asked", "stop"),
        (f"[fail:GPU_PROVIDER_ERROR:{REFUSAL.replace('[', '(').replace(']', ')')}]", "GPU_PROVIDER_ERROR", "safety",
         "change_input"),
    ],
)  # fmt: skip
async def test_the_sandbox_fails_with_codes_of_both_spellings(
    marker: str, code: str, message: str, advice: Advice
) -> None:
    """A prompt requests a code, in either spelling, and a message."""
    async with Sandbox(time_scale=0.01) as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        with pytest.raises(RunFailedError) as caught:
            await flora.generate(type="text", prompt=f"a {marker}", workspace_id="ws_1", project_id="prj_1")
    assert caught.value.code == code
    assert message in (caught.value.message or "")
    assert caught.value.advice == advice
