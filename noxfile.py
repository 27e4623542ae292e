"""What is run on this project, and how: `nox -l` lists it.

Everything that a session needs comes from ``requirements.lock``, with hashes; the package is tested as the built wheel.
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
PEERS = ("runwayml[aiohttp]==5.24.0", "replicate==1.0.7", "httpx==0.28.1", "pydantic>=2.14")
OFFICIAL_CLIENT = "@flora-ai/flora@0.11.0"
STRICT = {"PYTHONDEVMODE": "1"}

nox.options.sessions = ["tests", "typing", "lint"]
nox.options.default_venv_backend = "virtualenv"


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


def _locked(session: nox.Session) -> None:
    session.install("--require-hashes", "-r", LOCK)


def _wheel(session: nox.Session) -> Path:
    folder = Path(session.create_tmp()).resolve()
    for old in folder.glob("*.whl"):
        old.unlink()
    session.run("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), silent=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _install(session: nox.Session) -> None:
    _locked(session)
    session.install("--no-deps", "--force-reinstall", str(_wheel(session)))


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests against the built wheel, with warnings as errors, and bound the coverage of branches."""
    _install(session)
    report = "--cov-report=term"
    session.run("python", "-m", "pytest", "--cov", report, "--cov-fail-under=95", *session.posargs, env=STRICT)


@nox.session
def uvloop(session: nox.Session) -> None:
    """Run the tests on uvloop's event loop."""
    _install(session)
    session.run("python", "-m", "pytest", *session.posargs, env={**STRICT, "EVENT_LOOP": "uvloop"})


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types twice, and that the public face is typed whole."""
    _install(session)
    session.run("mypy")
    session.run("pyright", "--project", "pyproject.toml")
    session.run("pyright", "--verifytypes", "flora_async", "--ignoreexternal")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    _locked(session)
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def proof(session: nox.Session) -> None:
    """Run what takes long, or needs more than Python: node and npm, Chromium, PostgreSQL."""
    _install(session)
    session.run("python", "-m", "pytest", "-m", "proof", *session.posargs, env=STRICT)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Let atheris feed bytes to all that reads them, for ten minutes, or as its own options say."""
    _install(session)
    options = session.posargs or ["-max_total_time=600"]
    session.chdir(session.create_tmp())
    session.run("python", str(ROOT / "tests" / "fuzz.py"), "-rss_limit_mb=2048", "-max_len=2000", *options)


@nox.session
def audit(session: nox.Session) -> None:
    """Look for known weaknesses, write an SBOM, test without aiohttp's C and with the lowest versions allowed."""
    _install(session)
    session.run("pip-audit", "--requirement", LOCK, "--require-hashes", "--disable-pip")
    session.run("cyclonedx-py", "requirements", LOCK, "--of", "JSON", "--output-file", "sbom.json")
    session.run("python", "-m", "pytest", "-q", env={**STRICT, "AIOHTTP_NO_EXTENSIONS": "1"})
    lowest = str(Path(session.create_tmp()) / "lowest.txt")
    compile_lowest = ("uv", "pip", "compile", "pyproject.toml", "--all-extras", "--resolution", "lowest-direct")
    session.run(*compile_lowest, "--quiet", "--output-file", lowest)
    # The SDK that the tests export to goes with its own version of the API.
    sdk = ("opentelemetry-sdk==1.30.0", "opentelemetry-instrumentation-aiohttp-client==0.51b0")
    session.install("-r", lowest, *sdk)
    session.run("python", "-m", "pytest", "-q", env=STRICT)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, side by side; prints ratios within one run. Peers that cannot be installed are left out."""
    _install(session)
    folder = session.create_tmp()
    for peer in PEERS:
        session.run("python", "-m", "pip", "install", "-q", peer, success_codes=range(256), silent=True)
    if shutil.which("npm"):
        install = ("npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--prefix", folder)
        session.run(*install, OFFICIAL_CLIENT, external=True, success_codes=range(256), silent=True)
    session.run("python", "benchmarks/polling.py", *[word for word in session.posargs if word == "--quick"])
    session.chdir(folder)
    session.run("python", str(ROOT / "benchmarks" / "compare.py"), *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation in docs/_build/html, with warnings as errors."""
    _install(session)
    session.run("python", "-m", "sphinx", "-W", "--keep-going", "-n", "-b", "html", "docs", "docs/_build/html")


@nox.session
def demo(session: nox.Session) -> None:
    """Run the demonstration, in a temporary folder."""
    _install(session)
    session.chdir(session.create_tmp())
    session.run("flora-async", "demo", *session.posargs)


@nox.session
def lock(session: nox.Session) -> None:
    """Resolve the development set again, and write the lock: hashes, but no addresses."""
    session.install("uv")
    session.run(
        *("uv", "pip", "compile", "pyproject.toml", "--group", "dev", "--all-extras", "--universal"),
        *("--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"),
        *("--custom-compile-command", "nox -s lock", "--quiet", "--upgrade", "--output-file", LOCK),
        env=dict(os.environ),
    )
