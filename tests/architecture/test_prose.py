"""The prose and the names of the package: plain technical English, as CONTRIBUTING asks for.

``python tests/architecture/test_prose.py`` prints each finding with its place.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src"
KINDS = ("persons", "docstrings", "participles")
MAX_WHATS_PER_1000_WORDS = 2.0
SAMPLES = "flora_async/sandbox/_texts.py"
"""Sentences of the sandbox's text models: they are data."""

PERSONS = re.compile(r"\b(?:no|some|any)body\b|\b(?:any|some)one\b|\bwho(?:m|so)?ever\b", re.IGNORECASE)
FIRST_VERBS = re.compile(r"(?:Say|Give|Tell|Have|Take|Let|Put)\b")
PARTICIPLES = re.compile(
    r"\w+ed|told|said|given|known|made|sent|seen|been|shown|taken|held|found|kept|lost|gone|left|heard|begun|understood"
)
NO_PARTICIPLES = {"need", "feed", "seed", "finished"}
"""Imperatives, and the one public method that waits for a state."""


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each docstring, of attributes too, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def comments(source: str) -> Iterator[tuple[int, str]]:
    """Yield each comment with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each text with a space: docstrings and messages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def names_a_state(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a function may have a participle as its name: a property, or one that returns a bool."""
    decorators = " ".join(ast.unparse(decorator) for decorator in function.decorator_list)
    returned = ast.unparse(function.returns) if function.returns else ""
    return "property" in decorators or returned == "bool"


def participles(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each function that does something and is named by a past participle."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = node.name.strip("_")
            participle = PARTICIPLES.fullmatch(name) and "_" not in name and name not in NO_PARTICIPLES
            if participle and not names_a_state(node):
                yield node.lineno, node.name


def find_old_style(source: str) -> dict[str, list[tuple[int, str]]]:
    """Return the findings of each kind in a module: lines and texts. ``words`` are those of docstrings and comments."""
    tree = ast.parse(source)
    prose = [*docstrings(tree), *comments(source)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    heads = [(node.lineno, ast.get_docstring(node) or "") for node in functions]
    return {
        "persons": [
            (line, found) for line, text in [*comments(source), *texts(tree)] for found in PERSONS.findall(text)
        ],
        "docstrings": [(line, text.split("\n")[0]) for line, text in heads if FIRST_VERBS.match(text)],
        "participles": list(participles(tree)),
        "clauses": [(line, text.strip()) for line, text in prose for _ in re.findall(r"\bwhat\b", text, re.IGNORECASE)],
        "words": [(line, word) for line, text in prose for word in re.findall(r"[A-Za-z']+", text)],
    }


@cache
def read_package() -> dict[str, list[str]]:
    """Return the findings of each kind in all of ``src``, each with its place."""
    found: dict[str, list[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        if path == ROOT / SAMPLES:
            continue
        for kind, places in find_old_style(path.read_text(encoding="utf-8")).items():
            name = path.relative_to(ROOT)
            found.setdefault(kind, []).extend(f"{name}:{line}: {text}" for line, text in places)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_package_has_no_text_in_the_old_style(kind: str) -> None:
    """Texts name no indefinite person, docstrings start with a technical verb, functions with any verb."""
    found = read_package()[kind]
    assert not found, "\n".join(found)


def test_what_is_rare_in_docstrings_and_comments() -> None:
    """A noun names a thing more precisely than a clause with "what" does."""
    found = read_package()
    rate = 1000 * len(found["clauses"]) / len(found["words"])
    assert rate <= MAX_WHATS_PER_1000_WORDS, f"{rate:.1f} in 1,000 words\n" + "\n".join(found["clauses"])


def test_old_style_is_found() -> None:
    """Each kind of finding is made in a small module that has one of each."""
    source = '''
def _told() -> None:
    """Say what nobody asks for."""

def finished() -> None:
    raise ValueError("ask somebody else")  # whoever that is
'''
    found = find_old_style(source)
    assert found["persons"] == [(6, "whoever"), (3, "nobody"), (6, "somebody")]
    assert found["docstrings"] == [(2, "Say what nobody asks for.")]
    assert found["participles"] == [(2, "_told")]
    assert len(found["clauses"]) == 1


if __name__ == "__main__":
    findings = read_package()
    words = len(findings.pop("words"))
    for kind, places in findings.items():
        sys.stdout.write("\n  ".join([f"{kind}: {len(places)}", *places]) + "\n")
    sys.stdout.write(f"what: {1000 * len(findings['clauses']) / words:.1f} in 1,000 words\n")
