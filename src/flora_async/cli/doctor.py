"""``flora-async doctor``: check the key, the network, the clock and the versions, and print a fix for each fault."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

from msgspec import Struct

from flora_async import APIError, AuthenticationError, Flora, FloraError, Workspace, __version__, errors
from flora_async.cli.arguments import KEY_PAGE

TIMEOUT = 15.0
MAX_CLOCK_OFFSET = 30.0
"""Seconds. Webhooks are refused beyond 300, and expired certificates and keys of orders are judged by the clock."""
DEPENDENCIES = ("aiohttp", "msgspec", "anyio", "backoff")
EXTRAS: dict[str, tuple[str, ...]] = {
    "sandbox": ("PIL", "av"),
    "cli": ("rich", "shtab"),
    "durable": ("sqlalchemy",),
    "export": ("pyarrow",),
    "otel": ("opentelemetry",),
}
"""The modules that each extra brings."""
_USUAL_KEY = re.compile(r"(sk_live_|sk_test_|ak_)\S{8,}")
_NO_KEY = "no-key"


class Finding(Struct, frozen=True):
    """The result of one check, with a fix unless all is well."""

    state: Literal["ok", "note", "FAIL"]
    subject: str
    text: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{self.state:5} {self.subject:12} {self.text}"
        return f"{line}\n{'':18} -> {self.fix}" if self.fix else line


class _Workspaces(Struct):
    workspaces: list[Workspace]


def check_versions() -> Iterator[Finding]:
    """Report the versions of the package, of Python, and of the dependencies; and the extras that are missing."""
    python = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("ok", "version", f"flora-async {__version__}, {python}")
    try:
        yield Finding("ok", "packages", ", ".join(f"{name} {version(name)}" for name in DEPENDENCIES))
    except PackageNotFoundError as error:
        fix = f"{sys.executable} -m pip install flora-async"
        yield Finding("FAIL", "packages", f"{error.name} is not installed", fix)
    missing = [extra for extra, modules in EXTRAS.items() if any(find_spec(module) is None for module in modules)]
    if missing:
        fix = f"if you need them: pip install 'flora-async[{','.join(missing)}]'"
        yield Finding("note", "extras", f"not installed: {', '.join(missing)}", fix)
    else:
        yield Finding("ok", "extras", f"all installed: {', '.join(EXTRAS)}")


def find_key(given: str | None, environment: Mapping[str, str]) -> str:
    """Return the key as a client finds it; empty if there is none."""
    return (given or "").strip() or environment.get("FLORA_API_KEY", "").strip()


def check_key(given: str | None, environment: Mapping[str, str]) -> Finding:
    """Check that there is a key and that it looks like one. The text never has more of it than its public prefix."""
    key = find_key(given, environment)
    if not key:
        fix = f"create a key at {KEY_PAGE}, then: export FLORA_API_KEY=..."
        return Finding("FAIL", "key", "FLORA_API_KEY is not set", fix)
    if not (key.isascii() and key.isprintable()):
        return Finding("FAIL", "key", "it has characters that no key has", f"copy it again from {KEY_PAGE}")
    prefix = _USUAL_KEY.fullmatch(key)
    if prefix is None:
        text = "it does not look like sk_live_..., sk_test_... or ak_..."
        return Finding("note", "key", text, f"if FLORA refuses it, copy it again from {KEY_PAGE}")
    return Finding("ok", "key", f"{prefix[1]}..., {len(key)} characters")


def check_proxies(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Report proxy variables, which this package does not read."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        if environment.get(name):
            yield Finding("note", "proxy", f"{name} is set; flora-async does not read it", "in code: Flora(proxy=...)")
            return


async def check_api(key: str) -> list[Finding]:
    """Send one free read to FLORA, and report address, connection, certificate, clock and response."""
    try:
        flora = Flora(key, timeout=TIMEOUT, max_retries=0)
    except errors.ConfigurationError as error:
        return [Finding("FAIL", "address", str(error), "unset FLORA_BASE_URL to use FLORA itself")]
    address = re.sub(r"^.*base_url='(.*)'\)$", r"\1", repr(flora))
    usual = "FLORA's own" if "FLORA_BASE_URL" not in os.environ else "from FLORA_BASE_URL"
    findings = [Finding("ok", "address", f"{address}, {usual}")]
    began = time.monotonic()
    async with flora:
        try:
            response = await flora.request("GET", "/workspaces", decode_as=_Workspaces)
        except APIError as error:
            return [*findings, *_report_connection(address, error.status, error.headers, began), _report_refusal(error)]
        except FloraError as error:
            return [*findings, Finding("FAIL", "connection", str(error), _connection_fix(error))]
    count = len(response.data.workspaces)
    read = Finding("ok", "free read", f"{count} workspaces: flora-async workspaces lists them")
    return [*findings, *_report_connection(address, response.status, response.headers, began), read]


def _report_connection(address: str, status: int, headers: Mapping[str, str], began: float) -> Iterator[Finding]:
    yield Finding("ok", "connection", f"HTTP {status} after {time.monotonic() - began:.2f} s")
    if address.startswith("https:"):
        yield Finding("ok", "certificate", "it is valid and trusted")
    else:
        yield Finding("note", "certificate", "none: the address is http, on this machine")
    yield check_clock(headers.get("date", ""), time.time())


def check_clock(date: str, now: float) -> Finding:
    """Compare the header ``Date`` with this machine's clock, in Unix seconds."""
    try:
        offset = now - parsedate_to_datetime(date).timestamp()
    except ValueError:
        return Finding("note", "clock", "the response has no date to compare with")
    text = f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'} the server's"
    if abs(offset) > MAX_CLOCK_OFFSET:
        return Finding("FAIL", "clock", text, "set this machine's clock, for example with NTP")
    return Finding("ok", "clock", text)


def _report_refusal(error: APIError) -> Finding:
    if isinstance(error, AuthenticationError):
        fix = f"create a new key at {KEY_PAGE}: a workspace has one active key"
    else:
        fix = "check FLORA_BASE_URL, or try later; FLORA's support asks for the request id"
    return Finding("FAIL", "free read", str(error), fix)


def _connection_fix(error: FloraError) -> str:
    if "certificate" in str(error) or "TLS" in str(error):
        return "SSL_CERT_FILE=company-ca.pem flora-async doctor, or Flora(ssl=...) in code"
    return "check the network, DNS, firewall and FLORA_BASE_URL; behind a proxy: Flora(proxy=...) in code"


async def run_checks(given: str | None) -> list[Finding]:
    """Run all checks, with the API key *given* or that of the environment."""
    key = check_key(given, os.environ)
    usable = _NO_KEY if key.state == "FAIL" else find_key(given, os.environ)
    return [*check_versions(), key, *check_proxies(os.environ), *(await check_api(usable))]
