"""PyInstaller's entry point, registered in ``pyproject.toml``: the folder of the hook beside this file."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of the hook, for PyInstaller."""
    return [str(Path(__file__).parent)]
