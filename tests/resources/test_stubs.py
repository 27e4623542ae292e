"""``flora.models.stubs()``: the declared parameters of models as Python types."""

import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_param_checks import MODELS, model, param

from flora_async import Flora, Model
from flora_async._resources.stubs import write_stubs
from flora_async.sandbox import Sandbox

HOSTILE = [
    model("org/model.v2", "image", param("class", "string"), param("aspect-ratio", "string", options=["1:1"])),
    model("org_model-v2", "image", param("a", "string", default='"""\nimport os\n#')),
    model("2fast", "video", param("__private", "int"), param("sizes", "float", options=[1.5, 2.5])),
    model(
        "x'] = exec('boom')\n#", "new type\nexec('boom')", param("y\nexec('boom')", "string", options=["'\n", "\ud800"])
    ),
    model("media", "image", param("levels", "int", options=[1, 2]), param("novel", "enum?", options=[True, None])),
    model("", "image"),
    model("Any", "image", param("prompt", "string", required=True), param("tags", "string[]", required=True)),
    model("any", "image", param("seed", "int?")),
]
ALL = msgspec.convert([*MODELS, *HOSTILE], list[Model])

PROGRAM = """
import asyncio

from flora_async import Flora
from flora_models import ImageModel, T2aTuneParams, T2iFlux2ProParams, T2vVeoParams

MODEL: ImageModel = "t2i-flux-2-pro"
right: T2iFlux2ProParams = {"aspect_ratio": "16:9", "seed": 7, "guidance": 3, "tags": ["a"], "image_url": "https://x"}
video: T2vVeoParams = {"camera": {"zoom": 1.5}, "duration": "5", "fps": 24}
free: T2aTuneParams = {"anything": 1}

async def main() -> None:
    async with Flora() as flora:
        await flora.generate(
            type="image", prompt="a mug", workspace_id="ws_1", project_id="prj_1", model=MODEL, params=right
        )
        await flora.generations.create(
            type="video", prompt="a mug", workspace_id="ws_1", project_id="prj_1", model="t2v-veo", params=video
        )

asyncio.run(main())
"""
WRONG = """
from flora_models import I2iKontextParams, ImageModel, T2iFlux2ProParams

a: T2iFlux2ProParams = {"sedd": 7}
b: T2iFlux2ProParams = {"aspect_ratio": "banana_9_9"}
c: T2iFlux2ProParams = {"steps": "20"}
d: I2iKontextParams = {"strength": 0.5}
e: I2iKontextParams = {"image_urls": ["https://x"]}
f: ImageModel = "t2v-veo"
"""


def execute(text: str) -> dict[str, Any]:
    """Execute the module as Python does."""
    names: dict[str, Any] = {"__name__": "flora_models"}
    exec(compile(text, "flora_models.py", "exec"), names)
    return names


def test_each_model_has_a_typed_dict() -> None:
    """Names are valid and distinct; the fields are FLORA's, required ones without a default are required."""
    names = execute(write_stubs(ALL))
    flux, kontext = names["T2iFlux2ProParams"], names["I2iKontextParams"]
    assert typing.get_type_hints(flux)["aspect_ratio"] == typing.Literal["1:1", "16:9", "9:16"]
    assert flux.__required_keys__ == frozenset()
    assert {"image_url", "image_urls", "video_url", "seed"} <= flux.__optional_keys__
    assert (kontext.__required_keys__, kontext.__optional_keys__) == ({"image_url"}, {"strength"})
    assert names["OrgModelV2Params"].__optional_keys__ >= {"class", "aspect-ratio"}
    assert names["OrgModelV2Params_2"].__optional_keys__ >= {"a"}
    assert "__private" in names["Model2fastParams"].__optional_keys__
    assert names["AnyParams"].__required_keys__ == {"tags"}
    assert names["AnyParams_2"].__optional_keys__ >= {"seed"}
    typed = {name for name in names if "Params" in name}
    assert len(typed) == len(ALL)


def test_no_name_becomes_code() -> None:
    """Ids, names, types and defaults with quotes, line ends and code are text in the module."""
    text = write_stubs(ALL)
    execute(text)  # "boom" would be a NameError or a call
    assert all(line.isprintable() for line in text.splitlines())
    assert write_stubs([]) == write_stubs(())
    assert execute(write_stubs([]))


def test_the_text_is_the_same_for_the_same_models() -> None:
    """The order of FLORA's list does not change the module, so that a repository shows real changes only."""
    assert write_stubs(ALL) == write_stubs(reversed(ALL))


@pytest.mark.anyio
async def test_the_sandbox_has_stubs() -> None:
    """The client reads the list and returns the module."""
    async with Sandbox() as sandbox, Flora(sandbox.api_key, base_url=sandbox.base_url) as flora:
        names = execute(await flora.models.stubs())
    assert names["SandboxVideoFromImageParams"].__required_keys__ == {"image_url"}


@pytest.mark.proof
@pytest.mark.parametrize("suffix", [".py", ".pyi"])
def test_type_checkers_accept_the_module_and_refuse_mistakes(tmp_path: Path, suffix: str) -> None:
    """Mypy and pyright, both strict, find no error in it and in a right program, and one in each wrong line."""
    (tmp_path / f"flora_models{suffix}").write_text(write_stubs(ALL), encoding="utf-8")
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    commands = (
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "."],
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", "."],
    )
    for command in commands:
        told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
        found = [match.groups() for match in re.finditer(r"(\w+)\.pyi?:(\d+):.*error", told)]
        assert {name for name, _ in found} == {"wrong"}, told
        assert {line for _, line in found} == {"4", "5", "6", "7", "8", "9"}, told
