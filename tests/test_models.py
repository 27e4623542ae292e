"""What FLORA says is decoded as the reference promises, and survives its growth."""

import json
import pickle
from datetime import UTC, datetime
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flora_async import ActionId, Generation, GenerationPage, Order, OutputType, Run, RunStatus, StartedRun

STARTED = {
    "charged_cost": 0,
    "estimated_seconds": 0,
    "run_id": "run_abc123",
    "type": "generation",
    "action": {"action_id": "split-text"},
    "model": {"model_id": "t2i-flux-2-pro"},
    "poll_url": "https://example.com",
    "project_id": "prj_abc123",
    "technique": {"name": "name", "technique_id": "tech_abcd1234"},
}
RUN = {
    "created_at": 0,
    "progress": 0,
    "run_id": "run_abc123",
    "status": "pending",
    "charged_cost": 0,
    "completed_at": 0,
    "error_code": "provider_error",
    "error_message": "The provider failed to complete the generation.",
    "outputs": [{"output_id": "output_1", "type": "imageUrl", "url": "https://media.flora.ai/output.png"}],
    "poll_url": "https://example.com",
    "started_at": 0,
}
GENERATION = {
    **RUN,
    "generation_id": "run_abc123",
    "project_id": "prj_abc123",
    "workspace_id": "ws_abc123",
    "model": {"model_id": "t2i-flux-2-pro"},
}
PAGE = {"generations": [GENERATION], "meta": {"next_cursor": "eyJvZmZzZXQiOjIwfQ", "total_estimate": 0}}
SAMPLES = [(StartedRun, STARTED), (Run, RUN), (Generation, GENERATION), (GenerationPage, PAGE)]


@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_the_references_examples_lose_nothing(kind: type[msgspec.Struct], sample: dict[str, object]) -> None:
    """Each example of the reference comes out of its Struct as it went in."""
    decoded = msgspec.json.decode(json.dumps(sample), type=kind)
    assert json.loads(msgspec.json.encode(decoded)) == sample


@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_unknown_fields_are_ignored(kind: type[msgspec.Struct], sample: dict[str, object]) -> None:
    """A growing API does not break decoding."""
    grown = json.dumps({**sample, "brand_new": {"deep": [1, 2]}})
    assert msgspec.json.decode(grown, type=kind) == msgspec.json.decode(json.dumps(sample), type=kind)


@pytest.mark.parametrize(("kind", "sample"), SAMPLES)
def test_records_pickle_and_are_frozen(kind: type[msgspec.Struct], sample: dict[str, object]) -> None:
    """Records can cross processes, and nobody changes them."""
    decoded = msgspec.json.decode(json.dumps(sample), type=kind)
    assert pickle.loads(pickle.dumps(decoded)) == decoded
    with pytest.raises(AttributeError):
        setattr(decoded, decoded.__struct_fields__[0], None)


def test_unknown_values_of_open_enumerations() -> None:
    """A new status, output type, run type or action id is a plain string."""
    run = msgspec.convert(
        {
            **RUN,
            "status": "paused",
            "completed_at": None,
            "outputs": [{"output_id": "1", "type": "hologramUrl", "url": "x"}],
        },
        Run,
    )
    started = msgspec.convert({**STARTED, "type": "ritual", "action": {"action_id": "fold-space"}}, StartedRun)
    assert (run.status, run.outputs[0].type, run.finished) == ("paused", "hologramUrl", False)
    assert started.type == "ritual"
    assert started.action is not None
    assert started.action.action_id == "fold-space"


def test_the_aliases_list_what_the_reference_lists() -> None:
    """58 action ids, 5 output types, 4 statuses, each open."""
    for alias, count in ((ActionId, 58), (OutputType, 5), (RunStatus, 4)):
        literal, text = get_args(alias)
        assert text is str
        assert len(set(get_args(literal))) == count


@pytest.mark.parametrize("field", ["estimated_seconds", "poll_url", "model", "technique", "action", "project_id"])
def test_nullable_fields_of_a_started_run(field: str) -> None:
    """They may be null, or absent."""
    without = {name: value for name, value in STARTED.items() if name != field}
    assert getattr(msgspec.convert(without, StartedRun), field) is None
    assert getattr(msgspec.convert({**without, field: None}, StartedRun), field) is None


@pytest.mark.parametrize("name", sorted(set(RUN) - {"run_id", "status", "progress", "created_at"}))
def test_optional_fields_of_a_run(name: str) -> None:
    """All but four may be null or absent; outputs then read as none."""
    without = {key: value for key, value in RUN.items() if key != name}
    empty = () if name == "outputs" else None
    assert getattr(msgspec.convert(without, Run), name) == empty
    assert getattr(msgspec.convert({**without, name: None}, Run), name) == empty


@pytest.mark.parametrize("name", ["run_id", "status", "progress", "created_at"])
@pytest.mark.parametrize("value", [None, [], msgspec.UNSET])
def test_a_promised_field_that_is_missing_or_wrong(name: str, value: object) -> None:
    """The error names the field."""
    broken = {key: item for key, item in {**RUN, name: value}.items() if item is not msgspec.UNSET}
    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.json.decode(json.dumps(broken), type=Run)


def test_a_generation_without_a_model_id() -> None:
    """The history's model_id may be null."""
    generation = msgspec.convert({**GENERATION, "model": {"model_id": None}}, Generation)
    assert generation.model is not None
    assert generation.model.model_id is None


def test_a_generation_is_a_run() -> None:
    """Whatever takes a run takes an item of the history."""
    assert isinstance(msgspec.convert(GENERATION, Generation), Run)


@pytest.mark.parametrize("meta", [{}, {"next_cursor": None}])
def test_the_last_page_has_no_cursor(meta: dict[str, object]) -> None:
    """Null and absent mean the same."""
    page = msgspec.convert({"generations": [], "meta": meta}, GenerationPage)
    assert (page.next_cursor, page.total_estimate, page.generations) == (None, None, ())


@pytest.mark.parametrize(
    ("status", "finished", "succeeded"),
    [("pending", False, False), ("running", False, False), ("completed", True, True), ("failed", True, False)],
)
def test_judgements_of_a_run(status: str, finished: bool, succeeded: bool) -> None:
    """Only completed and failed are ends."""
    run = msgspec.convert({**RUN, "status": status}, Run)
    assert (run.finished, run.succeeded) == (finished, succeeded)


def test_times_in_seconds_and_in_milliseconds() -> None:
    """The raw number stays; the datetime is the same for either unit."""
    moment = datetime(2026, 11, 24, tzinfo=UTC)
    seconds = msgspec.convert({**RUN, "created_at": moment.timestamp(), "started_at": None}, Run)
    milliseconds = msgspec.convert({**RUN, "created_at": moment.timestamp() * 1000, "completed_at": 1.5e12}, Run)
    assert seconds.created == milliseconds.created == moment
    assert milliseconds.created_at == moment.timestamp() * 1000
    assert seconds.started is None
    assert milliseconds.completed == datetime(2017, 7, 14, 2, 40, tzinfo=UTC)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_any_number_is_a_time(raw: float) -> None:
    """Whatever number FLORA sends, asking for the datetime does not raise."""
    run = Run(run_id="run_1", status="pending", progress=0, created_at=raw, started_at=raw)
    assert run.created == run.started
    assert run.created.tzinfo is UTC


def test_an_order_encodes_without_its_blanks() -> None:
    """FLORA refuses properties that it does not know, so only what is set is sent."""
    order = Order(type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1", params={"seed": 1})
    assert json.loads(msgspec.json.encode(order)) == {
        "type": "image",
        "prompt": "a mug",
        "workspace_id": "ws_1",
        "project_id": "prj_1",
        "params": {"seed": 1},
    }
