"""The documentation as a site: it is built without a warning, and its notebook runs. Both need the group ``docs``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import names
import pytest
from programs import ROOT

from flora_async.sandbox import Sandbox

pytestmark = pytest.mark.proof
NOTEBOOK = ROOT / "docs" / "notebook" / "first_steps.ipynb"


@pytest.mark.anyio
async def test_the_notebook_runs(tmp_path: Path) -> None:
    """Cell by cell, in a kernel of its own."""
    import nbformat  # here, for it takes seconds, and the test is seldom run
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = NotebookClient(
        notebook, kernel_name="python3", timeout=60, resources={"metadata": {"path": str(tmp_path)}}
    )
    async with Sandbox(time_scale=0.01) as sandbox:
        flora = {"FLORA_API_KEY": sandbox.api_key, "FLORA_BASE_URL": sandbox.base_url}
        await runner.async_execute(env={**os.environ, **flora, "IPYTHONDIR": str(tmp_path / "ipython")})
        assert sandbox.accepted == 4
    assert len(list((tmp_path / "notebook-outputs").iterdir())) == 1


def test_each_public_name_is_explained_on_its_page(site: Path) -> None:
    """The site, which is built without a warning, has a page for each public name."""
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    explained = {
        name: item.uri for kind in inventory if kind.startswith("py:") for name, item in inventory[kind].items()
    }
    for listed in names.public_names().values():
        for name in listed:
            assert explained[name].startswith(f"api/{name}.html#"), name
            assert f'id="{name}"' in (site / "api" / f"{name}.html").read_text(encoding="utf-8")


QUESTIONS = {
    "local file upload image": "guide/(input-files|frameworks)",
    "json dict": "guide/types",
    "certificate authority refused": "guide/network|guide/troubleshooting",
    "stop max_cost usd": "guide/many|guide/costs",
    "ctrl-c cancel run": "guide/waiting|guide/sync|guide/terminal",
    "proxy company": "guide/network",
    "retry 503": "guide/rate-limits|guide/errors|guide/testing",
    "429 rate limit": "guide/rate-limits",
    "timeout seconds": "guide/network|guide/waiting",
    "django view": "guide/sync|guide/frameworks|guide/webhooks",
    "celery task": "guide/frameworks",
    "jupyter notebook await": "guide/sync|guide/frameworks",
    "fastapi lifespan": "guide/frameworks|guide/services",
    "api key create": "guide/install",
    "webhook signature": "guide/webhooks",
    "parquet pandas export": "guide/history",
    "test fixture pytest": "guide/testing",
    "logging logger": "guide/telemetry|guide/services",
    "python 3.14 windows": "guide/support",
    "deprecated upgrade version": "guide/upgrades",
    "error idempotency_duplicate": "guide/troubleshooting|guide/errors",
    "discord bot": "guide/frameworks",
}
"""A newcomer's words, and the pages of the site that answer."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site once, warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    build = (sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html")
    built = subprocess.run([*build, ROOT / "docs", folder], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


def found_pages(site: Path, words: str) -> list[str]:
    """Return the pages that have all words, by the index that the site's search reads without a network."""
    from sphinx.search.en import SearchEnglish  # of the group docs, which only proofs have

    index = json.loads((site / "searchindex.js").read_text(encoding="utf-8").removeprefix("Search.setIndex(")[:-1])
    stem = SearchEnglish({}).stem

    def pages_of(word: str) -> set[int]:
        hits = [index[table].get(stem(word.lower()), []) for table in ("terms", "titleterms")]
        return {number for hit in hits for number in ([hit] if isinstance(hit, int) else hit)}

    # The search of the site leaves out short words and numbers too.
    terms = [word for word in re.findall(r"\w+", words) if len(word) > 2 and not word.isdigit()]
    common = set.intersection(*map(pages_of, terms))
    return [index["docnames"][number] for number in sorted(common)]


@pytest.mark.parametrize(("words", "pages"), QUESTIONS.items(), ids=QUESTIONS)
def test_a_question_is_answered_by_the_search(site: Path, words: str, pages: str) -> None:
    """The newcomer's words are on a page that answers the question, as the search of the site finds it."""
    found = found_pages(site, words)
    assert any(re.match(pages, page) for page in found), found


def test_the_guide_is_one_page_of_markdown_too(site: Path) -> None:
    """llms.txt lists every page of the guide with a sentence, and guide.md has their whole text, examples included."""
    listing = (site / "llms.txt").read_text(encoding="utf-8")
    whole = (site / "guide.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs" / "guide").glob("*.md"):
        title = page.read_text(encoding="utf-8").split("\n", 1)[0]
        assert f"\n{title}\n" in whole, page
        assert f"- [{title[2:]}](guide.md#" in listing, page
    assert "{toctree}" not in whole
    assert "](../../examples/webhook_fastapi.py)\n" not in whole
