"""The documentation says what is so: its programs and commands run, and each public name has its page."""

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

import names
import nbformat
import pytest
from nbclient import NotebookClient
from programs import PAGES, ROOT, Ending, Example, commands, examples, programs, run_all
from sphinx.util.inventory import InventoryFile

import flora_async
from flora_async.cli.commands import COMMANDS as COMMANDS_OF_OURS
from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.xdist_group("docs")  # all programs are run at once, by one process
PROGRAMS = [program for page in PAGES for program in programs(page)]
COMMANDS = [command for page in PAGES for command in commands(page)]
NOTEBOOK = ROOT / "docs" / "notebook" / "first_steps.ipynb"


def _named(examples: Iterable[Example]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [pytest.param(example, id=example.name) for example in examples])


@pytest.fixture(scope="module")
def endings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ending]:
    """Run all examples that are tested, before the first of them is looked at."""
    chosen = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    examples = [chosen.params["example"] for chosen in chosen if chosen and "example" in chosen.params]
    return run_all(examples, tmp_path_factory.mktemp("examples"))


@_named(PROGRAMS)
def test_each_program_runs(example: Example, endings: dict[str, Ending]) -> None:
    """As it stands, with key and URL from the environment, without a warning."""
    ending = endings[example.name]
    assert ending.complaints == ""
    assert ending.code == 0
    assert ending.output


@_named(COMMANDS)
def test_each_command_runs(example: Example, endings: dict[str, Ending]) -> None:
    """As it stands, with $RUN the id of a run."""
    ending = endings[example.name]
    assert ending.code == 0, ending.complaints
    assert ending.output


def test_each_command_is_shown() -> None:
    """Somewhere."""
    pages = " ".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"flora-async {command}" in pages for command in COMMANDS_OF_OURS)


def test_nothing_that_should_run_goes_by_another_name() -> None:
    """Programs are marked as python, commands as sh."""
    languages = {example.language for page in PAGES for example in examples(page)}
    assert not languages & {"py", "python3", "pycon", "bash", "shell", "console"}


@pytest.mark.anyio
async def test_the_notebook_runs(tmp_path: Path) -> None:
    """Cell by cell, in a kernel of its own."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = NotebookClient(
        notebook, kernel_name="python3", timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    async with Sandbox(time_scale=0.01) as sandbox:
        flora = {"FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url}
        await runner.async_execute(env={**os.environ, **flora, "IPYTHONDIR": str(tmp_path / "ipython")})
        assert sandbox.accepted == 4
    assert len(list((tmp_path / "notebook-outputs").iterdir())) == 1


def test_the_notebook_is_kept_without_outputs() -> None:
    """Which differ from run to run."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_each_public_name_gets_a_page() -> None:
    """Those of the front door and of each module that is public, and the fixtures."""
    pages = names.pages().keys()
    assert {f"flora_async.{name}" for name in flora_async.__all__} <= pages
    assert {f"flora_async.sandbox.{name}" for name in import_module("flora_async.sandbox").__all__} <= pages
    assert {f"flora_async.webhooks.{name}" for name in ("verify", "sign", "WebhookEvent", "SIGNATURE_HEADER")} <= pages
    assert {"flora", "flora_sandbox"} <= pages


@pytest.mark.proof
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """And each public name is explained on its page there."""
    build = (sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html")
    built = subprocess.run([*build, ROOT / "docs", tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    inventory = InventoryFile.loads((tmp_path / "objects.inv").read_bytes(), uri="").data
    explained = {
        name: item.uri for kind in inventory if kind.startswith("py:") for name, item in inventory[kind].items()
    }
    for listed in names.public_names().values():
        for name in listed:
            assert explained[name].startswith(f"api/{name}.html#"), name
            assert f'id="{name}"' in (tmp_path / "api" / f"{name}.html").read_text(encoding="utf-8")
