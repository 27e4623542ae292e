"""``check_params``: orders compared with the declared parameters of their models, before anything is sent."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scripted import Scripted, answer, started
from test_single_response import fails

from flora_async import Catalog, CheckParams, ConfigurationError, FieldError, Flora, Model, Order, RunFailedError
from flora_async._resources import model_catalog
from flora_async._resources.param_checks import check_params, find_faults
from flora_async.durable import Batches
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.anyio

PLACE = {"workspace_id": "ws_1", "project_id": "prj_1"}
URL = "https://media.flora.ai/node-inputs/a.png"


def param(name: str, kind: str, **more: object) -> dict[str, object]:
    """Return a declared parameter."""
    options = [{"value": value, "label": str(value)} for value in more.pop("options", ())]  # type: ignore[attr-defined]
    return {"name": name, "type": kind, "required": False, **({"options": options} if options else {}), **more}


def model(model_id: str, kind: str, *params: Mapping[str, object]) -> dict[str, object]:
    """Return a model as ``GET /models`` lists it."""
    return {"model_id": model_id, "name": model_id.upper(), "type": kind, "params": list(params)}


SEED, RATIO = param("seed", "seed", min=0, default=0), param("aspect_ratio", "string", options=["1:1", "16:9", "9:16"])
MODELS = [
    model(
        "t2i-flux-2-pro",
        "image",
        SEED,
        RATIO,
        param("steps", "int", required=True, default=20, min=1, max=50),
        param("guidance", "float", min=0.5, max=9.5),
        param("style", "string", options=["plain", "bold"]),
        param("tags", "string[]", options=["a", "b"]),
        param("tiled", "bool"),
        param("limit", "int?"),
        param("negative_prompt", "string"),
        param("prompt", "string", required=True),
        param("novel", "of a type that is new"),
    ),
    model(
        "i2i-kontext", "image", param("image_url", "string", required=True), param("strength", "float", min=0, max=1)
    ),
    model("i2t-gemini", "text", param("image_urls", "string[]", required=True), param("max_words", "int", min=1)),
    model(
        "t2v-veo",
        "video",
        SEED,
        param("duration", "string", options=["5", "10"]),
        param("fps", "int", options=["24", "30"]),
        param("camera", "dict", properties={"zoom": {"min": 0, "max": 10, "default": 0}, "pan": {"min": -5, "max": 5}}),
        param("generate_audio", "bool"),
        param("output_video", "string", options=["mp4", "webm"]),
    ),
    model("t2a-tune", "audio"),
    model("x2w-world", "world", SEED),
]
CATALOG = Catalog({each.model_id: each for each in msgspec.convert(MODELS, list[Model])}, {"google/nano-banana-2"})

FLUX, VEO = {"type": "image", "model": "t2i-flux-2-pro"}, {"type": "video", "model": "t2v-veo"}
WRONG: list[tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = [
    (FLUX, {"sedd": 7}, ("'sedd'", "7 given", "did you mean 'seed'")),
    (FLUX, {"aspectRatio": "1:1"}, ("'aspectRatio'", "did you mean 'aspect_ratio'")),
    (FLUX, {"STEPS": 3}, ("'STEPS'", "did you mean 'steps'")),
    (FLUX, {"guidence": 3.0}, ("'guidence'", "did you mean 'guidance'")),
    (FLUX, {"resolution": "4k"}, ("'resolution'", "'4k' given", "It takes 'seed', 'aspect_ratio'")),
    (FLUX, {"inputs": {"image_url": URL}}, ("'inputs'", "not a parameter of t2i-flux-2-pro")),
    (VEO, {"with_sound": True}, ("'with_sound'", "It takes 'seed', 'duration'")),
    (FLUX, {"aspect_ratio": "banana_9_9"}, ("'aspect_ratio'", "one of '1:1', '16:9', '9:16', not 'banana_9_9'")),
    (FLUX, {"aspect_ratio": "16x9"}, ("one of", "not '16x9'", "did you mean '16:9'")),
    (FLUX, {"style": "Bold"}, ("one of 'plain', 'bold', not 'Bold'", "did you mean 'bold'")),
    (FLUX, {"tags": ["a", "c"]}, ("'tags'", "a list of 'a', 'b', not ['a', 'c']")),
    (FLUX, {"tags": "a"}, ("'tags'", "a list of 'a', 'b', not 'a'")),
    (FLUX, {"steps": 51}, ("'steps'", "a whole number from 1 to 50, not 51")),
    (FLUX, {"steps": 0}, ("a whole number from 1 to 50, not 0",)),
    (FLUX, {"guidance": 9.6}, ("'guidance'", "a number from 0.5 to 9.5, not 9.6")),
    (FLUX, {"seed": -1}, ("'seed'", "a whole number of at least 0, not -1")),
    (FLUX, {"steps": "20"}, ("'steps'", "a whole number from 1 to 50, not '20'")),
    (FLUX, {"steps": True}, ("a whole number from 1 to 50, not True",)),
    (FLUX, {"steps": 1.5}, ("a whole number from 1 to 50, not 1.5",)),
    (FLUX, {"tiled": "yes"}, ("'tiled'", "True or False, not 'yes'")),
    (FLUX, {"tiled": 1}, ("True or False, not 1",)),
    (FLUX, {"negative_prompt": ["no", "text"]}, ("'negative_prompt'", "must be text, not ['no', 'text']")),
    (FLUX, {"limit": "x"}, ("'limit'", "a whole number or None, not 'x'")),
    (VEO, {"duration": 5}, ("'duration'", "one of '5', '10', not 5")),
    (VEO, {"fps": 60}, ("'fps'", "one of '24', '30', not 60")),
    (VEO, {"camera": 3}, ("'camera'", "a mapping, not 3")),
    (VEO, {"camera": {"zoom": 11}}, ("params['camera']['zoom']", "a number from 0 to 10, not 11")),
    (VEO, {"camera": {"zom": 1}}, ("['zom']", "did you mean 'zoom'")),
    ({"type": "image", "model": "i2i-kontext"}, {"image_urls": [URL], "image_url": URL}, ("did you mean 'image_url'",)),
    ({"type": "text", "model": "i2t-gemini"}, {"image_url": URL, "image_urls": [URL]}, ("did you mean 'image_urls'",)),
    ({"type": "text", "model": "i2t-gemini"}, {"image_urls": URL}, ("'image_urls'", "must be a list of texts, not")),
    ({"type": "image", "model": "i2i-kontext"}, {"strength": 0.5}, ("'image_url'", "required and missing: give text")),
    ({"type": "image", "model": "i2i-kontext"}, {"image_url": None}, ("'image_url'", "required and missing")),
    ({"type": "image", "model": "i2i-kontext"}, {"image_url": URL, "strength": Path("x")}, ("'strength'", "a file")),
    (FLUX, {"style": Path("x")}, ("'style'", "one of 'plain', 'bold'", "not a file")),
    (FLUX, {"tags": "a"}, ("'tags'", "a list of 'a', 'b'", "not 'a'")),
    ({"type": "image", "model": "t2v-veo"}, {}, ("'t2v-veo' makes video, not image", "type='video'", "'t2i-flux")),
    ({"type": "video", "model": "t2i-flux-2-pro"}, {"seed": 1}, ("makes image, not video", "like 't2v-veo'")),
    ({"type": "image", "model": "google/nano-banana-2"}, {}, ("'google/nano-banana-2' is one of the gateway",)),
]
"""Orders that are certainly wrong, and the words of their one sentence."""

RIGHT: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    (FLUX, None),
    (FLUX, {}),
    (FLUX, {"seed": 7}),
    (FLUX, {"steps": 1, "guidance": 0.5}),
    (FLUX, {"steps": 50, "guidance": 9.5}),
    (FLUX, {"guidance": 3}),
    (FLUX, {"steps": np.int64(7), "guidance": np.float32(1.5)}),
    (FLUX, {"aspect_ratio": "16:9", "style": "bold"}),
    (FLUX, {"tags": ["a"]}),
    (FLUX, {"tags": ("a", "b")}),
    (FLUX, {"tags": []}),
    (FLUX, {"tiled": False, "limit": None}),
    (FLUX, {"limit": 3}),
    (FLUX, {"negative_prompt": ""}),
    (FLUX, {"style": None}),
    (FLUX, {"novel": [{"any": 1}]}),
    (FLUX, {"image_url": URL}),  # FLORA may not list the media inputs of a model
    (FLUX, {"image_urls": [URL], "video_url": URL, "mask": URL}),
    (FLUX, {"first_frame": Path("a.png")}),
    (VEO, {"duration": "5", "fps": 24}),
    (VEO, {"fps": 30.0}),
    (VEO, {"camera": {"zoom": 0, "pan": -5}}),
    (VEO, {"camera": {}}),
    (VEO, {"generate_audio": True, "seed": 2**40, "image_url": URL, "output_video": "mp4"}),
    ({"type": "image", "model": "i2i-kontext"}, {"image_url": URL, "strength": 1}),
    ({"type": "image", "model": "i2i-kontext"}, {"image_url": Path("a.png")}),
    ({"type": "text", "model": "i2t-gemini"}, {"image_urls": [URL, Path("b.png")], "max_words": 10**6}),
    ({"type": "audio", "model": "t2a-tune"}, {"anything": 1}),
    ({"type": "image", "model": "x2w-world"}, {"seed": 1}),
    ({"type": "image", "model": "a-model-of-tomorrow"}, {"any": 1}),
    ({"type": "image", "model": "t2i-flux-2-por"}, None),
    ({"type": "image"}, {"sedd": 7}),
]
"""Orders that are right, or that the list of models cannot judge."""


def order(fields: Mapping[str, Any], params: Any) -> Order:
    """Build an order."""
    given: dict[str, Any] = {**PLACE, **fields}
    return Order(prompt="a mug", params=params, **given)


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Start a scripted FLORA that accepts all orders and lists the models above."""
    async with Scripted() as scripted:
        scripted.on("GET", "/models", answer({"models": MODELS}))
        gateway = {"models": [{"model_id": "google/nano-banana-2", "new": 1}]}
        scripted.on("GET", "/gateway/models", answer(gateway))
        scripted.on("POST", "/generate", answer(started(), 201))
        yield scripted


def asked(server: Scripted) -> list[str]:
    """Return the requests that the server received."""
    return [f"{each.method} {each.path}" for each in server.asked]


# -- the decision


@pytest.mark.parametrize(("fields", "params", "words"), WRONG)
def test_a_wrong_order_has_one_sentence(fields: dict[str, Any], params: dict[str, Any], words: tuple[str, ...]) -> None:
    """The only certain fault names the parameter, the given value, the allowed ones and the nearest name."""
    (fault,) = [fault for fault in find_faults(order(fields, params), CATALOG) if fault.certain]
    for word in words:
        assert word in fault.message
    assert "\n" not in fault.message
    assert CATALOG.check(order(fields, params)) == (FieldError(field=fault.field, message=fault.message),)


@pytest.mark.parametrize(("fields", "params"), RIGHT)
def test_a_right_order_has_no_fault(fields: dict[str, Any], params: dict[str, Any] | None) -> None:
    """An order that the list allows, or cannot judge, has no certain fault."""
    assert CATALOG.check(order(fields, params)) == ()


def test_what_the_list_cannot_tell_is_a_doubt() -> None:
    """A doubt says why it cannot be checked; an allowed order has none."""
    doubts: dict[str, tuple[dict[str, Any], Any, str]] = {
        "image_url": (FLUX, {"image_url": URL}, "FLORA lists no media inputs for it"),
        "style": (FLUX, {"style": None}, "leave it out"),
        "anything": ({"type": "audio", "model": "t2a-tune"}, {"anything": 1}, "FLORA lists no parameters for it"),
        "model": ({"type": "image", "model": "t2i-flux-2-por"}, None, "did you mean 't2i-flux-2-pro'"),
    }
    for name, (fields, params, words) in doubts.items():
        (fault,) = find_faults(order(fields, params), CATALOG)
        assert (fault.field, fault.certain) == (name, False)
        assert words in fault.message
    assert "no models" in find_faults(order(FLUX, {}), Catalog({}))[0].message
    assert "'world' is unknown" in find_faults(order({"type": "image", "model": "x2w-world"}, {}), CATALOG)[0].message
    assert find_faults(order(FLUX, {"seed": 7}), CATALOG) == []


async def test_an_order_with_an_invalid_model_is_left_to_its_own_check() -> None:
    """The comparison of parameters has no fault for it. The create and an estimate refuse the field."""
    wrong = msgspec.structs.replace(order(FLUX, {}), model=["m"])
    assert CATALOG.check(wrong) == ()
    async with Flora("any", base_url="http://127.0.0.1:9/api/v1") as flora:
        await flora.models.check_order(wrong)
        for field, value in {"model": ["m"], "type": "picture", "prompt": 3}.items():
            with pytest.raises(ConfigurationError, match=field):
                await flora.estimate(msgspec.structs.replace(order(FLUX, {}), **{field: value}))


def test_a_signed_url_is_not_quoted() -> None:
    """A sentence shows neither the query of a URL nor a long value in full."""
    secret = f"{URL}?signature=s3cret"
    (fault,) = check_params(CATALOG.models["t2v-veo"], {"sound": secret})
    assert "s3cret" not in fault.message
    (fault,) = check_params(CATALOG.models["t2v-veo"], {"sound": "x" * 10_000})
    assert len(fault.message) < 300


@pytest.mark.parametrize("params", [[1], "x", 7])
def test_params_of_another_type_are_left_to_their_own_check(params: Any) -> None:
    """The comparison does not fail on values that are refused later."""
    assert find_faults(order(FLUX, params), CATALOG) == []
    assert find_faults(order(FLUX, {"steps": object(), 7: 1}), CATALOG) == []


# -- the client


async def test_wrong_orders_are_refused_before_a_post(server: Scripted) -> None:
    """Each wrong order raises one sentence, and none of them is sent."""
    async with Flora("any", base_url=server.base_url) as flora:
        for fields, params, words in WRONG:
            failure = await fails(flora.generations.create(order(fields, params)))
            assert isinstance(failure, ConfigurationError)
            assert all(word in str(failure) for word in words)
            (fault,) = failure.fields
            assert fault.message == str(failure)
    assert asked(server) == ["GET /models", "GET /gateway/models"]


async def test_right_orders_are_sent(server: Scripted) -> None:
    """No right order is refused; the list is read once."""
    server.on("POST", "/generate", *(answer(started(f"run_{number}"), 201) for number in range(len(RIGHT))))
    async with Flora("any", base_url=server.base_url) as flora:
        for fields, params in RIGHT:
            if "Path(" not in repr(params):
                await flora.generations.create(order(fields, params))
    assert asked(server).count("GET /models") == 1
    assert asked(server).count("POST /generate") >= 28


async def test_wrong_and_right_orders_on_the_sandbox() -> None:
    """None of the wrong orders reaches the sandbox, and each of the right ones is accepted."""
    async with (
        Sandbox(time_scale=0.01, models=MODELS) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
    ):
        wrong = [order(fields, params) for fields, params, _ in WRONG if "/" not in fields["model"]]
        for each in wrong:
            assert isinstance(await fails(flora.generations.create(each)), ConfigurationError)
        assert len(wrong) >= 30
        assert (sandbox.accepted, dict(sandbox.requests)) == (0, {"GET /models": 1})
        right = [order(fields, params) for fields, params in RIGHT if "Path(" not in repr(params)]
        for each in right:
            assert (await flora.generations.create(each)).run_id
        assert len(right) == sandbox.accepted >= 28


async def test_nothing_is_uploaded_for_a_refused_order(tmp_path: Path) -> None:
    """The parameters are compared before the files among them are uploaded; a right order is uploaded and sent."""
    picture = tmp_path / "a.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    film = {"type": "video", "model": "sandbox-video-from-image"}
    async with Sandbox(time_scale=0.01) as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        for params in ({"image_url": picture, "duration": 11}, {"image_urls": [picture], "image_url": picture}):
            assert isinstance(await fails(flora.generations.create(order(film, params))), ConfigurationError)
        assert dict(sandbox.requests) == {"GET /models": 1}
        await flora.generations.create(order(film, {"image_url": picture, "duration": 10}))
        assert sandbox.accepted == 1
        ((sent, *_),) = [list(each.params.values()) for each in sandbox.orders.values() if each.params]
        assert str(sent).startswith("http")


async def test_an_empty_list_refuses_no_order(caplog: pytest.LogCaptureFixture) -> None:
    """With a list of no models all orders are sent, wrong ones too, and one warning for each model says so."""
    async with (
        Sandbox(time_scale=0.01, models=()) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
    ):
        sent = [order(fields, params) for fields, params, _ in WRONG if Path("x") not in params.values()]
        for each in sent:
            await flora.generations.create(each)
        assert sandbox.accepted == len(sent) >= 30
        assert sandbox.requests["GET /models"] == 1
    warned = [record.message for record in caplog.records if "FLORA lists no models" in record.message]
    assert len(warned) == len({each.model for each in sent})


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.proof)])
async def test_many_orders_need_two_requests_more(count: int) -> None:
    """Concurrent checked orders share one read of each list; unchecked ones need none."""
    sends: dict[CheckParams, dict[str, int]] = {}
    modes: tuple[CheckParams, ...] = ("off", "refuse")
    for mode in modes:
        async with (
            Sandbox(time_scale=0.01) as sandbox,
            Flora(sandbox.api_key, base_url=sandbox.base_url, check_params=mode) as flora,
        ):
            orders = [
                order({"type": "text", "model": "sandbox-text" if number % 2 else "tomorrow/s"}, {"seed": number})
                for number in range(count)
            ]
            await asyncio.gather(*map(flora.generations.create, orders))
            sends[mode] = dict(sandbox.requests)
    assert sends["off"] == {"POST /generate": count}
    assert sends["refuse"] == {"POST /generate": count, "GET /models": 1, "GET /gateway": 1}


async def test_an_order_without_a_model_reads_no_list(server: Scripted) -> None:
    """Nothing is declared for an order without a model, so that nothing is read."""
    async with Flora("any", base_url=server.base_url) as flora:
        await flora.generations.create(order({"type": "image"}, {"sedd": 7}))
    assert asked(server) == ["POST /generate"]


async def test_the_call_overrides_the_client(server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """``off`` sends without a read, ``warn`` logs each fault once, and an unknown mode is refused."""
    server.on("POST", "/generate", *(answer(started(f"run_{number}"), 201) for number in range(9)))
    wrong = order(FLUX, {"sedd": 7})
    async with Flora("any", base_url=server.base_url, check_params="warn") as flora:
        await flora.generations.create(wrong, check_params="off")
        assert asked(server) == ["POST /generate"]
        await flora.generations.create(wrong)
        await flora.generations.create(wrong)
        assert await fails(flora.generations.create(wrong, check_params="refuse"))
        assert await fails(flora.generate(wrong, check_params="refuse"))
        (outcome,) = [each async for each in flora.generate_many([wrong], check_params="refuse")]
        assert isinstance(outcome.error, ConfigurationError)
        for call in (
            flora.generations.create(wrong, check_params="on"),  # type: ignore[call-overload]
            flora.generate(wrong, check_params="on"),  # type: ignore[call-overload]
            flora.models.check_order(wrong, "on"),  # type: ignore[arg-type]
        ):
            assert "check_params must be 'off', 'warn' or 'refuse', not 'on'" in str(await fails(call))
    with pytest.raises(ConfigurationError, match="check_params"):
        Flora("any", check_params="on")  # type: ignore[arg-type]
    assert [record.levelno for record in caplog.records if "sedd" in record.message] == [logging.WARNING]
    assert asked(server).count("POST /generate") == 3


async def test_invalid_fields_are_refused_before_the_list_is_read(server: Scripted) -> None:
    """An order that no model could take causes no request."""
    async with Flora("any", base_url=server.base_url) as flora:
        for more in ({"workspace_id": "x"}, {"model": 3}, {"model": ["m"]}, {"type": "picture"}, {"prompt": ""}):
            await fails(flora.generations.create(msgspec.structs.replace(order(FLUX, {}), **more)))
        assert asked(server) == []
        assert "params must be a mapping" in str(await fails(flora.generations.create(order(FLUX, [1]))))


async def test_a_list_that_cannot_be_read_refuses_nothing(server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """The order is sent with a warning; the list is not read again at once, and is once a minute has passed."""
    server.on(
        "GET", "/models", answer({"error": {"code": "forbidden", "message": "no"}}, 403), answer({"models": MODELS})
    )
    server.on("POST", "/generate", *(answer(started(f"run_{number}"), 201) for number in range(9)))
    async with Flora("any", base_url=server.base_url) as flora:
        await flora.generations.create(order(FLUX, {"sedd": 7}))
        await flora.generations.create(order(FLUX, {"sedd": 7}))
        assert asked(server) == ["GET /models", "POST /generate", "POST /generate"]
        assert [record.message for record in caplog.records if "PermissionDeniedError" in record.message]
        flora.models._catalog._failed_at -= model_catalog.FAILURE_PAUSE
        assert await fails(flora.generations.create(order(FLUX, {"sedd": 7})))


@pytest.mark.virtual_time
async def test_a_list_that_hangs_delays_an_order_by_ten_seconds() -> None:
    """The read of the list has a limit of its own, and its failure is not the order's."""
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        sandbox.fail_next("hang", times=9, path="/models")
        begun = asyncio.get_running_loop().time()
        sent = [flora.generations.create(order(FLUX, {"sedd": number})) for number in range(50)]
        assert len(await asyncio.gather(*sent)) == 50
        assert model_catalog.READ_TIMEOUT <= asyncio.get_running_loop().time() - begun < model_catalog.READ_TIMEOUT + 1
        assert sandbox.requests["GET /models"] == 1


@pytest.mark.virtual_time
async def test_a_cancelled_order_leaves_the_read_to_the_others() -> None:
    """The cancelled reader sends nothing; the next order reads the list, and no task remains."""
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        sandbox.fail_next("hang", path="/models")
        first = asyncio.ensure_future(flora.generations.create(order({"type": "text", "model": "sandbox-text"}, {})))
        await asyncio.sleep(1)
        second = asyncio.ensure_future(flora.generations.create(order({"type": "text", "model": "sandbox-text"}, {})))
        await asyncio.sleep(1)
        first.cancel()
        assert (await second).run_id
        assert first.cancelled()
        assert (sandbox.accepted, sandbox.requests["GET /models"]) == (1, 2)


async def test_the_list_is_read_again_within_bounds(server: Scripted) -> None:
    """It is read again after an hour, after five minutes for a model that it lacks, and by ``models.list()``."""
    server.on("POST", "/generate", *(answer(started(f"run_{number}"), 201) for number in range(99)))
    known, unknown = order(FLUX, {}), order({"type": "image", "model": "t2i-new"}, {})
    async with Flora("any", base_url=server.base_url) as flora:

        async def reads_after(seconds: float, each: Order) -> int:
            flora.models._catalog._models_at -= seconds
            before = asked(server).count("GET /models")
            await flora.generations.create(each)
            return asked(server).count("GET /models") - before

        await flora.models.list()
        assert await reads_after(0, known) == await reads_after(0, unknown) == 0
        assert await reads_after(model_catalog.MIN_AGE + 1, known) == 0
        assert await reads_after(0, unknown) == 1
        assert await reads_after(model_catalog.MIN_AGE - 9, unknown) == 0
        assert await reads_after(model_catalog.MAX_AGE + 1, known) == 1
        server.on("GET", "/models", answer({"error": {}}, 403))
        assert await reads_after(model_catalog.MAX_AGE + 1, known) == 1  # fails: the old list is kept
        assert await reads_after(0, known) == 0
        assert await flora.models.check("t2i-flux-2-pro", {"sedd": 1})


async def test_no_order_is_refused_by_an_old_list(server: Scripted) -> None:
    """A parameter that FLORA has added is accepted. A list that is new, or cannot be read again, refuses."""
    newer = [model("t2i-flux-2-pro", "image", SEED, param("sedd", "int"))]
    server.on("GET", "/models", answer({"models": MODELS}), answer({"models": newer}), answer({}, 500))
    server.on("POST", "/generate", *(answer(started(f"run_{number}"), 201) for number in range(9)))
    async with Flora("any", base_url=server.base_url, max_retries=0) as flora:
        added, wrong = order(FLUX, {"sedd": 7}), order(FLUX, {"wrong": 7})
        assert await fails(flora.generations.create(added))
        assert asked(server).count("GET /models") == 1
        flora.models._catalog._models_at -= model_catalog.MIN_AGE + 1
        await flora.generations.create(added)
        assert await flora.models.check("t2i-flux-2-pro", {"sedd": 7}) == ()
        assert asked(server).count("GET /models") == 2
        flora.models._catalog._models_at -= model_catalog.MIN_AGE + 1
        await flora.generations.create(added)
        assert asked(server).count("GET /models") == 2
        assert await fails(flora.generations.create(wrong))
        assert await flora.models.check("t2i-flux-2-pro", {"wrong": 7})
        assert asked(server).count("GET /models") == 3


async def test_an_odd_model_ends_no_check_of_the_others(server: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """A model that cannot be decoded is left out of the comparison, with a warning; orders of it are sent."""
    odd = {**model("odd", "image"), "params": [{"name": "x", "type": "string", "options": "any"}]}
    server.on("GET", "/models", answer({"models": [odd, *MODELS]})).on("POST", "/generate", answer(started(), 201))
    async with Flora("any", base_url=server.base_url) as flora:
        assert await fails(flora.generations.create(order(FLUX, {"sedd": 7})))
        assert (await flora.generations.create(order({"type": "image", "model": "odd"}, {"y": 1}))).run_id
    assert "cannot decode 1 models" in caplog.text


async def test_the_error_pickles_with_its_fields(server: Scripted) -> None:
    """The refusal names all faults of an order, also after it was pickled."""
    async with Flora("any", base_url=server.base_url) as flora:
        error = await fails(flora.generations.create(order(FLUX, {"sedd": 7, "steps": 99})))
    assert isinstance(error, ConfigurationError)
    assert [fault.field for fault in error.fields] == ["sedd", "steps"]
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.fields) == (str(error), error.fields)
    assert "; " in str(error)


async def test_a_batch_refuses_before_it_stores(tmp_path: Path) -> None:
    """A wrong order refuses the whole batch by its number; ``off`` orders it, and FLORA bills it."""
    good, bad = (
        order({"type": "text", "model": "sandbox-text"}, {}),
        order({"type": "text", "model": "sandbox-text"}, {"sed": 1}),
    )
    database = f"sqlite:///{tmp_path}/batch.db"
    async with Sandbox(time_scale=0.01) as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        async with Batches(flora, database=database) as batches:
            with pytest.raises(ConfigurationError, match=r"order 1: params\['sed'\].*did you mean 'seed'") as caught:
                await batches["mugs"].run([good, bad])
            assert [fault.field for fault in caught.value.fields] == ["sed"]
            assert (await batches.statuses(), sandbox.accepted) == ([], 0)
            assert (await batches["mugs"].run([good, bad], check_params="off")).completed == 2
            with pytest.raises(ConfigurationError, match="check_params"):
                await batches["more"].run([good], check_params="no")  # type: ignore[arg-type]
        assert sandbox.requests["GET /models"] == 1


async def test_a_stored_batch_continues_when_the_list_has_changed(tmp_path: Path) -> None:
    """A service that starts again with the same orders is not refused for a parameter that FLORA lists no more."""
    listed = [model("m", "text", SEED)]
    orders = [order({"type": "text", "model": "m"}, {"seed": 1})]
    database = f"sqlite:///{tmp_path}/batch.db"
    async with Sandbox(time_scale=0.01, models=listed) as sandbox:
        for _ in range(2):
            async with (
                Flora(sandbox.api_key, base_url=sandbox.base_url) as flora,
                Batches(flora, database=database) as batches,
            ):
                assert (await batches["mugs"].run(orders)).completed == 1
            listed[0] = model("m", "text", param("other", "int"))
        assert sandbox.accepted == 1


# -- the sandbox


@pytest.mark.virtual_time
async def test_the_sandbox_bills_every_value_and_fails_without_an_input() -> None:
    """As at FLORA, a wrong value is accepted and billed, and a run without its required input fails."""
    async with (
        Sandbox(time_scale=0.01) as sandbox,
        Flora(sandbox.api_key, base_url=sandbox.base_url, check_params="off") as flora,
    ):
        billed = await flora.generate(order({"type": "image", "model": "sandbox-image"}, {"style": "banana_9_9"}))
        assert billed.charged_cost
        with pytest.raises(RunFailedError, match=r"image_url is missing") as caught:
            await flora.generate(order({"type": "video", "model": "sandbox-video-from-image"}, {"image_urls": [URL]}))
        assert (caught.value.code, caught.value.advice) == ("GENERATION_INPUT_VALIDATION", "change_input")
