"""The README says what is so: its commands are the ones that are tested, and its programs, which test_guide runs."""

import re

from programs import README, ROOT, examples, programs

import flora_async
from flora_async.cli import PROGRAM
from hatch_build import absolute_links


def test_the_first_program_is_the_one_that_the_demo_prints() -> None:
    """The first program of the README has at most nine lines, and the demo prints it."""
    first = programs(README)[0].text
    assert first == PROGRAM
    assert len(first.splitlines()) <= 9


def test_the_two_commands_stand_first() -> None:
    """As they are tested."""
    first = next(example.text for example in examples(README) if example.language == "sh")
    assert first.splitlines() == [
        'python3 -m venv .venv && .venv/bin/pip install -q ".[demo]" && .venv/bin/flora-async demo',
        "python3 -m venv .venv && .venv/bin/pip install -q nox && .venv/bin/nox -s tests",
    ]


def test_the_readme_is_short() -> None:
    """Under 200 lines."""
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200


def test_the_version_is_that_of_the_changelog() -> None:
    """The first chapter of the changelog is the version that is built, and the one that the package reports."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## ([0-9]\S*)", changelog, re.MULTILINE)[0] == flora_async.__version__


def test_the_links_of_the_readme_lead_to_files() -> None:
    """Each relative link and picture of the README is a file of the repository."""
    links = re.findall(r"\]\((?![a-z]+:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 30
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_links_become_absolute() -> None:
    """A relative link leads to the page of its file, a picture to its bytes; other links stay."""
    text = "[a](b.md#c) ![p](q.png) [![x](y.svg)](z) [w](https://e.org/) [h](#here)"
    blob, raw = "https://forge/o/r/blob/HEAD", "https://forge/o/r/raw/HEAD"
    assert absolute_links(text, "https://forge/o/r") == (
        f"[a]({blob}/b.md#c) ![p]({raw}/q.png) [![x]({raw}/y.svg)]({blob}/z) [w](https://e.org/) [h](#here)"
    )
