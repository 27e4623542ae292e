"""The README says what is so: its commands are the ones that are tested, and its programs, which test_guide runs."""

from programs import README, ROOT, examples, programs

import flora_async
from flora_async.cli import PROGRAM


def test_the_first_program_is_the_one_that_the_demo_prints() -> None:
    """Ten lines, the same in both places."""
    assert programs(README)[0].text == PROGRAM


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


def test_the_changelog_knows_this_version() -> None:
    """Each version has its chapter."""
    assert f"## {flora_async.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
