"""Check built distributions: their files, their version, and the README's commands in a fresh environment.

`python tests/support/release_checks.py contents dist [v0.1.0]` compares the files of the wheel and the sdist with those
in the repository. `python tests/support/release_checks.py commands BIN` runs the README's first program and its
commands with the environment in the folder BIN. It needs only Python and git.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
UNPUBLISHED = re.compile(r"\.ci/|\.github/|\.editorconfig|\.pre-commit-config\.yaml")
"""Files of the repository that the sdist leaves out."""
ADDED = {"PKG-INFO"}
WHEEL_INFO = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def tracked_files() -> set[str]:
    """Return the files of the repository, new ones included."""
    command = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).is_file()}


def compare(name: str, found: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return a line for each file that is missing or too many."""
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    return [f"{name} lacks {file}" for file in missing] + [
        f"{name} has {file}, which is no file of ours" for file in extra
    ]


def check_contents(folder: Path, tag: str | None) -> list[str]:
    """Return the faults of the wheel and the sdist in a folder."""
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    head = re.search(r"^## ([0-9]\S*) - (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert head
    version, date = head.groups()
    files = tracked_files()
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename for info in archive.infolist() if not info.is_dir()}
    info = f"flora_async-{version}.dist-info"
    wanted = {name.removeprefix("src/") for name in files if name.startswith("src/")}
    faults = compare("the wheel", names, wanted | {f"{info}/{name}" for name in WHEEL_INFO})
    with tarfile.open(sdist) as packed:
        names = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
    faults += compare("the sdist", names, {name for name in files if not UNPUBLISHED.match(name)} | ADDED)
    if tag is not None and (tag != f"v{version}" or not re.fullmatch(r"\d{4}-\d\d-\d\d", date)):
        faults.append(f"the tag {tag} is not the head of the changelog, {version} - {date}, or that has no date")
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes; {sdist.name}: {sdist.stat().st_size:,} bytes")
    return faults


def check_commands(folder: Path) -> list[str]:
    """Return the faults of the README's first program and of its commands, each run against a local FLORA server."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    program = next(text for language, text in blocks if language == "python")
    commands = [line for language, text in blocks if language == "sh" for line in text.splitlines()]
    scripts = [line for line in commands if line.startswith("flora-async ")]
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "mug.py").write_text(program, encoding="utf-8")
        for script in ["python mug.py", *scripts]:
            command = f"flora-async sandbox --time-scale 0.1 -- {script}"
            done = subprocess.run(
                command, shell=True, cwd=home, env=environment, capture_output=True, text=True, check=False
            )
            print(f"  {script}: {done.returncode}, {len(done.stdout.splitlines())} lines")
            if done.returncode or not done.stdout:
                faults.append(f"{script}: {done.returncode}: {done.stdout}{done.stderr}")
    return faults


def main(job: str, folder: str, tag: str | None = None) -> int:
    """Print the faults, and return 1 if there are any."""
    faults = check_contents(Path(folder), tag) if job == "contents" else check_commands(Path(folder))
    print(*faults, sep="\n", end="\n" if faults else "")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
