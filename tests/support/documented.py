"""Check the types of all programs in the documentation: `python tests/support/documented.py`. mypy and pyright, strict.

The programs of the README and the guide, the notebook and the examples are copied into a temporary folder, where each
checker reads all of them at once.
"""

import ast
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from programs import PAGES, ROOT, programs

NOTEBOOK = ROOT / "docs" / "notebook" / "first_steps.ipynb"
EXAMPLES = (ROOT / "examples", ROOT / "tests" / "docs" / "newcomer")
PYRIGHT = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": ["service"]}
MYPY = ("--strict", "--python-version", "3.11", "--config-file", "", "--cache-dir", str(ROOT / ".mypy_cache" / "shown"))


def copy_programs(folder: Path) -> list[str]:
    """Write each program into a file that is named by its page and line, and the examples as they stand."""
    for page in PAGES:
        for program in programs(page):
            name = f"{page.parent.name}_{program.name}".replace(":", "_line_")
            (folder / f"{name.replace('-', '_')}.py").write_text(program.text, encoding="utf-8")
    (folder / "notebook.py").write_text(read_notebook(NOTEBOOK), encoding="utf-8")
    for example in (path for examples in EXAMPLES for path in examples.rglob("*.py")):
        shutil.copy(example, folder)
    return sorted(path.name for path in folder.iterdir())


def read_notebook(path: Path) -> str:
    """Write the cells of a notebook as the body of one coroutine function, which prints what a cell would show."""
    body: list[ast.stmt] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            (function,) = ast.parse("async def cell():\n" + textwrap.indent("".join(cell["source"]), "    ")).body
            assert isinstance(function, ast.AsyncFunctionDef)
            *others, last = function.body
            if isinstance(last, ast.Expr) and not isinstance(last.value, ast.Await):
                last = ast.Expr(ast.Call(ast.Name("print"), [last.value], []))
            body += [*others, last]
    return "async def main() -> None:\n" + textwrap.indent("\n".join(map(ast.unparse, body)), "    ") + "\n"


def main() -> int:
    """Run both checkers, and return 1 if one of them found an error."""
    with tempfile.TemporaryDirectory() as name:
        files = copy_programs(Path(name))
        (Path(name) / "pyrightconfig.json").write_text(json.dumps(PYRIGHT), encoding="utf-8")
        commands = (("mypy", *MYPY, *files), ("pyright", "--pythonpath", sys.executable, "--project", name))
        codes = [subprocess.run([sys.executable, "-m", *words], cwd=name, check=False).returncode for words in commands]
    return 1 if any(codes) else 0


if __name__ == "__main__":
    sys.exit(main())
