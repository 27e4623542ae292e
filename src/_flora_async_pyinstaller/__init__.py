"""PyInstaller's way to the hook that lies beside this file; its entry point is in ``pyproject.toml``."""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the folder of the hook, for PyInstaller."""
    return [str(Path(__file__).parent)]
