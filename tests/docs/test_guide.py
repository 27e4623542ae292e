"""The documentation says what is so: its programs and commands run, and each public name has its page."""

import ast
import json
import re
from collections.abc import Iterable
from importlib import import_module

import names
import pytest
from programs import PAGES, ROOT, Ending, Example, commands, examples, programs, run_all

import flora_async
from flora_async.cli.commands import COMMANDS as COMMANDS_OF_OURS

pytestmark = pytest.mark.xdist_group("docs")  # all programs are run at once, by one process
PROGRAMS = [program for page in PAGES for program in programs(page)]
COMMANDS = [command for page in PAGES for command in commands(page)]
NOTEBOOK = ROOT / "docs" / "notebook" / "first_steps.ipynb"


def _named(examples: Iterable[Example]) -> pytest.MarkDecorator:
    """Take those that need polars, which is large and not installed for the other tests, as proofs."""
    marks = {True: [pytest.mark.proof], False: []}
    params = [pytest.param(example, id=example.name, marks=marks["polars" in example.text]) for example in examples]
    return pytest.mark.parametrize("example", params)


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


def test_the_notebook_is_kept_without_outputs() -> None:
    """Which differ from run to run."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


def test_each_public_name_gets_a_page() -> None:
    """Those of the front door and of each module that is public, and the fixtures."""
    pages = names.pages().keys()
    assert {f"flora_async.{name}" for name in flora_async.__all__} <= pages
    assert {f"flora_async.sandbox.{name}" for name in import_module("flora_async.sandbox").__all__} <= pages
    assert {f"flora_async.webhooks.{name}" for name in ("verify", "sign", "WebhookEvent", "SIGNATURE_HEADER")} <= pages
    assert {"flora", "flora_sandbox"} <= pages


def test_troubleshooting_quotes_messages_of_the_package() -> None:
    """Each message on the page is part of a text in the source, or an error code that the guide to errors knows."""
    page = (ROOT / "docs" / "guide" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| `")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 40
    texts = [
        node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    unknown = [text for text in quoted if not any(text in known for known in texts)]
    codes = r"(4\d\d|500|failed:) [a-z_]+"
    assert [text for text in unknown if not re.fullmatch(codes, text)] == []


def test_pages_are_plain_markdown() -> None:
    """No page has roles or directives, which code hosts show as they stand."""
    marks = r"^```\{|\{(py:\w+|mod|doc|ref|download|class|func|meth)\}`"
    found = {page.name: re.findall(marks, page.read_text(encoding="utf-8"), re.MULTILINE) for page in PAGES}
    assert {name: marks for name, marks in found.items() if marks} == {}


def test_links_between_pages_lead_to_files() -> None:
    """Each relative link and picture of a page is a file of the repository."""
    for page in PAGES:
        links = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page
