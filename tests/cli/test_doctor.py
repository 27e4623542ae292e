"""``flora-async doctor`` and ``flora-async`` alone: each fault of a first try has its line and its fix."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from email.utils import formatdate

import pytest
import trustme
from aiohttp import web
from scripted import Scripted, answer, error

from flora_async.cli import doctor, main
from flora_async.cli.doctor import Finding, check_clock, check_key, check_proxies, run_checks
from flora_async.sandbox import Sandbox

KEY = "sk_live_abcdefghijk123"


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    """Return the findings by their subject; each has one."""
    found = {finding.subject: finding for finding in findings}
    assert len(found) == len(findings)
    return found


@pytest.fixture
async def server() -> AsyncIterator[Scripted]:
    """Return a server that lists one workspace."""
    async with Scripted() as scripted:
        yield scripted.on("GET", "/workspaces", answer({"workspaces": [{"workspace_id": "ws_1", "name": "one"}]}))


@pytest.mark.anyio
async def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reachable server, a key of a usual form and a correct clock have no line that fails; the key is not shown."""
    async with Sandbox(api_key=KEY) as sandbox:
        monkeypatch.setenv("FLORA_BASE_URL", sandbox.base_url)
        monkeypatch.setenv("FLORA_API_KEY", KEY)
        findings = await run_checks(None)
    assert [str(finding) for finding in findings if finding.state == "FAIL"] == []
    shown = "\n".join(map(str, findings))
    assert KEY not in shown
    assert "sk_live_..., 22 characters" in shown
    assert by_subject(findings)["free read"].text.startswith("1 workspaces")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "fix"), [(401, "create a new key"), (403, "check FLORA_BASE_URL"), (503, "try later")]
)
async def test_flora_refuses(server: Scripted, monkeypatch: pytest.MonkeyPatch, status: int, fix: str) -> None:
    """A refused read still shows that the connection works, and names the fix of its status."""
    monkeypatch.setenv("FLORA_BASE_URL", server.base_url)
    server.on("GET", "/workspaces", error(status, "no"))
    found = by_subject(await run_checks(KEY))
    assert found["connection"].state == "ok"
    assert found["free read"].state == "FAIL"
    assert fix in found["free read"].fix


@pytest.mark.anyio
async def test_a_clock_that_is_wrong(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose date is an hour away makes the clock fail."""
    monkeypatch.setenv("FLORA_BASE_URL", server.base_url)
    server.on("GET", "/workspaces", answer({"workspaces": []}, headers={"Date": formatdate(0, usegmt=True)}))
    clock = by_subject(await run_checks(KEY))["clock"]
    assert clock.state == "FAIL"
    assert "NTP" in clock.fix


@pytest.mark.anyio
async def test_an_unknown_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate of an authority that is not trusted is named, with the way to trust it."""
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)  # the server's broken handshakes
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    runner = web.AppRunner(web.Application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    monkeypatch.setenv("FLORA_BASE_URL", f"https://127.0.0.1:{runner.addresses[0][1]}/api/v1")
    found = by_subject(await run_checks(KEY))
    await runner.cleanup()
    assert "unknown authority" in found["connection"].text
    assert "SSL_CERT_FILE" in found["connection"].fix
    assert "free read" not in found


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a key the exit code is 2 and the line says where to create one; with one and no server it is 3."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("FLORA_BASE_URL", f"http://127.0.0.1:{unused.getsockname()[1]}/api/v1")
        monkeypatch.delenv("FLORA_API_KEY", raising=False)
        assert main(["doctor"]) == 2
        assert "FAIL  key          FLORA_API_KEY is not set" in capsys.readouterr().out
        assert main(["doctor", "--api-key", KEY]) == 3
        shown = capsys.readouterr().out
        assert "FAIL  connection" in shown
        assert KEY not in shown
    monkeypatch.setenv("FLORA_BASE_URL", "ftp://flora")
    assert main(["doctor", "--api-key", KEY]) == 2
    assert "unset FLORA_BASE_URL" in capsys.readouterr().out


def test_the_command_without_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """The command alone shows the first steps, with and without a key."""
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(step in shown for step in ("flora-async demo", "export FLORA_API_KEY", "flora-async doctor", "--help"))


@pytest.mark.parametrize(
    ("key", "state"),
    [("", "FAIL"), ("  ", "FAIL"), ("sk_live_é", "FAIL"), ("My API Key", "note"), ("ak_12345678", "ok")],
)
def test_the_form_of_a_key(key: str, state: str) -> None:
    """A key that FLORA could not have made fails; an unusual one is a note; no text shows more than the prefix."""
    finding = check_key(key, {})
    assert finding.state == state
    assert not key.strip() or key.strip() not in str(finding)


def test_notes_about_the_surroundings() -> None:
    """A proxy variable and a response without a date are notes, not faults."""
    assert [finding.state for finding in check_proxies({"HTTPS_PROXY": "http://p"})] == ["note"]
    assert list(check_proxies({})) == []
    assert check_clock("", 0).state == "note"
    assert check_clock("Thu, 01 Jan 1970 00:00:00 GMT", 10).text == "10 s ahead of the server's"


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing extras are one note, with the command that installs them."""
    monkeypatch.setattr(doctor, "find_spec", lambda _name: None)
    extras = by_subject(list(doctor.check_versions()))["extras"]
    assert extras.fix.endswith("pip install 'flora-async[sandbox,cli,durable,export,otel]'")
