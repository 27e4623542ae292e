"""The documentation as a site: it is built without a warning, and its notebook runs. Both need the group ``docs``."""

import os
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


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """And each public name is explained on its page there."""
    from sphinx.util.inventory import InventoryFile

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
