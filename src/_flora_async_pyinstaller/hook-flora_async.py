"""PyInstaller's hook: data files of flora-async, and modules that it imports by a string."""

from importlib.util import find_spec
from pathlib import Path


def _list_data_files() -> list[tuple[str, str]]:
    """Return each data file of the package, with its folder in the bundle."""
    spec = find_spec("flora_async")
    if spec is None or spec.origin is None:
        return []
    package = Path(spec.origin).parent
    files = (file for file in sorted(package.rglob("*")) if file.is_file() and file.suffix not in (".py", ".pyc"))
    return [(str(file), str(file.parent.relative_to(package.parent))) for file in files]


datas = _list_data_files()
hiddenimports = [name for name in ("flora_async._http.session", "av") if find_spec(name) is not None]
