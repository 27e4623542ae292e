"""The hook that bundles the package with PyInstaller; PyInstaller itself is not needed for it."""

import runpy
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import flora_async

PACKAGE = Path(flora_async.__file__).parent


def test_the_hook_lists_every_data_file() -> None:
    """PyInstaller finds the hook by its entry point, and the hook lists all files that are no modules."""
    (point,) = (each for each in entry_points(group="pyinstaller40") if each.module == "_flora_async_pyinstaller")
    (folder,) = point.load()()
    hook = runpy.run_path(str(Path(folder) / "hook-flora_async.py"))
    listed = {Path(source).relative_to(PACKAGE): bundled for source, bundled in hook["datas"]}
    wanted = {file.relative_to(PACKAGE) for ending in ("css", "js", "typed") for file in PACKAGE.rglob(f"*.{ending}")}
    assert {path.name for path in listed} >= {"page.css", "page.js", "py.typed"}
    assert set(listed) == wanted
    assert all(bundled == str(Path("flora_async") / path.parent) for path, bundled in listed.items())


def test_the_hook_names_what_is_imported_by_name() -> None:
    """Modules that the package imports by a string exist, and are in the bundle."""
    hook = runpy.run_path(str(PACKAGE.parent / "_flora_async_pyinstaller" / "hook-flora_async.py"))
    assert "av" in hook["hiddenimports"]
    assert all(find_spec(name) for name in hook["hiddenimports"])
