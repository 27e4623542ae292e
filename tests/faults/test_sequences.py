"""The fault matrix: the cases that take more than one answer, each by its number in MATRIX.md."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
import resource
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import trustme
from raw import Raw, close, drip, http, reset, say
from scripted import (
    DUPLICATE,
    RUN_ID,
    Scripted,
    answer,
    error,
    generation,
    hang_up,
    history,
    page,
    row,
    run,
    silence,
    started,
)
from secrets_of import KEY
from test_single_response import ORDER, fails, silent_about_the_key  # noqa: F401 (fixtures)

from flora_async import (
    APIConnectionError,
    APITimeoutError,
    AuthenticationError,
    ClientClosedError,
    ConfigurationError,
    CreateOutcomeUnknownError,
    DownloadError,
    Flora,
    InternalServerError,
    NotFoundError,
    Output,
    PaginationError,
    ProtocolError,
    RateLimitError,
    ResponseDecodeError,
    Run,
    RunFailedError,
    RunTimeoutError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("fast_retries")]


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """Listen without ever accepting, with a full backlog: connections hang."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        where = listener.getsockname()
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(where)
        await asyncio.sleep(0.05)
        yield f"127.0.0.1:{where[1]}"
        for filler in fillers:
            filler.close()


async def both_fail(flora: Flora, kind: type[APIConnectionError], sent: str, tries: int) -> str:
    """A read and a create end in the same error, for the same cause."""
    text = ""
    for call in (flora.generations.retrieve(RUN_ID), flora.generations.create(**ORDER)):
        failure = await fails(call)
        assert isinstance(failure, kind), failure
        assert (failure.sent, failure.attempts) == (sent, tries)
        text = str(failure)
    return text


# -- before anything is sent


async def test_case_001_refused() -> None:
    """Tried again; nothing was sent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with Flora(KEY, base_url=f"http://127.0.0.1:{taken.getsockname()[1]}") as flora:
            await both_fail(flora, APIConnectionError, "not_sent", 3)


async def test_case_002_no_such_host() -> None:
    """The host is named."""
    async with Flora(KEY, base_url="https://nowhere.invalid/api/v1") as flora:
        assert "nowhere.invalid" in await both_fail(flora, APIConnectionError, "not_sent", 3)


@pytest.mark.virtual_time
async def test_case_003_and_004_a_connection_that_hangs() -> None:
    """The connection's own time is less than the exchange's, so that nothing can have been sent when it is up."""
    async with black_hole() as where, Flora(KEY, base_url=f"http://{where}", timeout=0.2, max_retries=1) as flora:
        await both_fail(flora, APITimeoutError, "not_sent", 2)


@pytest.mark.virtual_time
async def test_case_005_a_borrowed_pool_that_is_full() -> None:
    """The wait for a connection counts as not sent."""
    async with (
        Raw(drip(b"")) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        Flora(KEY, base_url=server.base_url, timeout=0.2, max_retries=0, session=session) as flora,
    ):
        failures = await asyncio.gather(*(fails(flora.generations.retrieve(RUN_ID)) for _ in range(2)))
        assert all(isinstance(failure, APITimeoutError) for failure in failures)


def server_context(authority: trustme.CA, host: str = "127.0.0.1", **more: Any) -> ssl.SSLContext:
    """Give a server its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host, **more).configure_cert(context)
    return context


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Serve a completed run over TLS, from a thread, which takes broken handshakes more calmly than asyncio does."""
    asked: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with plain:
                try:
                    with context.wrap_socket(plain, server_side=True) as talk:
                        if begun := talk.recv(65536):
                            asked.append(begun)
                            talk.sendall(http(run(), headers="Connection: close\r\n"))
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener])
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}/api/v1", asked
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            await asyncio.to_thread(thread.join)


NOW = datetime.now(UTC)
CERTIFICATES: list[Any] = [
    pytest.param(False, {}, "is signed by an unknown authority", id="006-unknown_authority"),
    pytest.param(True, {"host": "10.0.0.1"}, "is for another IP address", id="007-wrong_host"),
    pytest.param(True, {"host": "flora.test"}, "is for another host name", id="007-wrong_name"),
    pytest.param(True, {"not_after": NOW - timedelta(days=1)}, "has expired", id="008-expired"),
    pytest.param(True, {"not_before": NOW + timedelta(days=1)}, "is not valid yet", id="008-not_yet_valid"),
]


def client_context(authority: trustme.CA | None) -> ssl.SSLContext:
    """Return a client's context that trusts an authority."""
    context = ssl.create_default_context()
    if authority is not None:
        authority.configure_trust(context)
    return context


@pytest.mark.parametrize(("trusted", "settings", "reason"), CERTIFICATES)
async def test_case_006_to_008_certificates(trusted: bool, settings: dict[str, Any], reason: str) -> None:
    """A certificate that cannot be verified gets no request and no retry; the error names the reason and the fix."""
    authority = trustme.CA()
    mine = client_context(authority if trusted else None)
    host = "localhost" if "name" in reason else "127.0.0.1"
    async with (
        tls_server(server_context(authority, **settings)) as (base_url, asked),
        Flora(KEY, base_url=base_url.replace("127.0.0.1", host), ssl=mine) as flora,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=mine)) as session,
        Flora(KEY, base_url=base_url.replace("127.0.0.1", host), session=session) as borrowing,
    ):
        text = await both_fail(flora, APIConnectionError, "not_sent", 1)
        assert f"the TLS certificate of {host} {reason} (" in text
        assert "ssl=" in text
        assert "SSL_CERT_FILE" in text
        assert reason in str(await fails(borrowing.generations.retrieve(RUN_ID)))
        assert not asked


async def test_a_context_of_the_caller_is_used_for_reads_creates_and_downloads(tmp_path: Path) -> None:
    """Flora(ssl=...) reaches a server behind a private authority with every kind of request."""
    authority = trustme.CA()
    async with (
        tls_server(server_context(authority)) as (base_url, asked),
        Flora(KEY, base_url=base_url, ssl=client_context(authority), max_retries=0) as flora,
    ):
        done = await flora.generations.retrieve(RUN_ID)
        assert isinstance(await fails(flora.generations.create(**ORDER)), CreateOutcomeUnknownError)  # a 200, not a 201
        output = Output(output_id="out", type="imageUrl", url=f"{base_url}/out.png")
        assert [path.suffix for path in await flora.download(output, tmp_path)] == [".png"]
        assert done.succeeded
    assert {words.split(b" ")[0] for words in asked} == {b"GET", b"POST"}
    assert sum(b"/out.png" in words for words in asked) == 1


async def test_a_server_that_asks_for_a_client_certificate() -> None:
    """A server that demands a client certificate gets the one of the context, and no request without it."""
    authority = trustme.CA()
    server = server_context(authority)
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    mine = client_context(authority)
    async with tls_server(server) as (base_url, asked):
        async with Flora(KEY, base_url=base_url, ssl=mine, max_retries=0) as flora:
            assert isinstance(await fails(flora.generations.retrieve(RUN_ID)), APIConnectionError)
            assert not asked
        authority.issue_cert("client.example").configure_cert(mine)
        async with Flora(KEY, base_url=base_url, ssl=mine) as flora:
            assert (await flora.generations.retrieve(RUN_ID)).succeeded


@pytest.mark.parametrize("context", [True, False, "ca.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)])
def test_contexts_that_are_none(context: Any) -> None:
    """Verification is not turned off by a flag, and a server's context is refused before anything is sent."""
    with pytest.raises(ConfigurationError, match="ssl"):
        Flora(KEY, ssl=context)


async def talk(said: bytes | None) -> asyncio.Server:
    """Serve connections without TLS: say something at once, or nothing (None), and close."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()

    return await asyncio.start_server(converse, "127.0.0.1", 0)


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("said", "kind"),
    [
        pytest.param(None, APITimeoutError, id="009-hello_never_answered"),
        pytest.param(b"", APIConnectionError, id="010-closed_in_the_handshake"),
        pytest.param(b"HTTP/1.1 400 Bad Request\r\n\r\n", APIConnectionError, id="012-a_plain_port"),
    ],
)
async def test_case_009_to_012_https_to_what_is_none(said: bytes | None, kind: type[APIConnectionError]) -> None:
    """Nothing was sent."""
    server = await talk(said)
    where = server.sockets[0].getsockname()[1]
    async with server, Flora(KEY, base_url=f"https://127.0.0.1:{where}", timeout=0.3, max_retries=0) as flora:
        await both_fail(flora, kind, "not_sent", 1)


async def test_case_011_http_to_a_port_that_wants_https() -> None:
    """The error asks about it."""
    async with (
        tls_server(server_context(trustme.CA())) as (base_url, _),
        Flora(KEY, base_url=base_url.replace("https:", "http:"), max_retries=0) as flora,
    ):
        failure = await fails(flora.generations.retrieve(RUN_ID))
        assert isinstance(failure, APIConnectionError)
        assert "https" in str(failure) or isinstance(failure, ProtocolError)
        assert isinstance(await fails(flora.generations.create(**ORDER)), CreateOutcomeUnknownError)


async def test_case_015_reset_before_the_body_is_read() -> None:
    """A create of megabytes that is cut in the middle may have arrived."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await reset()(reader, writer)

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()[1]
    async with server, Flora(KEY, base_url=f"http://127.0.0.1:{where}", max_retries=0) as flora:
        failure = await fails(flora.generations.create(**ORDER, params={"mask": "x" * 5_000_000}))
        assert isinstance(failure, CreateOutcomeUnknownError)


# -- connections that are used again


def created(run_id: str) -> bytes:
    """Give the answer to a create."""
    return http(started(run_id), status="201 Created")


async def test_case_025_a_second_answer_in_one_burst() -> None:
    """The connection is not used again."""
    async with (
        Raw(say(http(run()) + http(run(run_id="run_stray")))) as server,
        Flora(KEY, base_url=server.base_url) as flora,
    ):
        for _ in range(3):
            assert (await flora.generations.retrieve(RUN_ID)).run_id == RUN_ID


async def test_case_026_a_stray_answer_to_a_read() -> None:
    """An answer about another run is none; its connection is dropped, so that the next ones are right again."""

    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(http(run()))
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(http(run(run_id="run_stray")))
        return True

    async with Raw(twice, say(http(run(run_id="run_2")))) as server, Flora(KEY, base_url=server.base_url) as flora:
        await flora.generations.retrieve(RUN_ID)
        await asyncio.sleep(0.03)
        for _ in range(3):
            assert (await flora.generations.retrieve("run_2")).run_id == "run_2"
        assert len({asked.connection for asked in server.asked}) == 2


async def test_case_026_stray_answers_to_creates() -> None:
    """A hundred creates, each of whose answers comes twice: nobody gets another's run, and none is lost."""
    numbers = iter(range(1_000_000))
    runs: dict[str, str] = {}
    async with Raw(say(b"")) as server:

        async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
            key = server.asked[-1].headers["idempotency-key"]
            said = created(runs.setdefault(key, f"run_{next(numbers)}"))  # FLORA replays
            writer.write(said)
            await writer.drain()
            await asyncio.sleep(0.002)
            writer.write(said)
            await writer.drain()
            return True

        server.steps = [twice]
        async with Flora(KEY, base_url=server.base_url, max_retries=5) as flora:
            for index in range(100):
                begun = await flora.generations.create(**ORDER, idempotency_key=f"key-{index}")
                assert begun.run_id == runs[f"key-{index}"]
                await asyncio.sleep(0.003)
        assert len(runs) == 100


@pytest.mark.parametrize("how", [pytest.param(close(), id="027-closed"), pytest.param(reset(), id="028-reset")])
async def test_case_027_and_028_a_connection_that_ends_when_it_is_used_again(how: Any) -> None:
    """A read is repeated; a create is repeated under its key."""
    steps = [say(created("run_1")), how, how, say(created("run_2"))]
    async with Raw(*steps) as server, Flora(KEY, base_url=server.base_url) as flora:
        await flora.generations.create(**ORDER)
        assert (await flora.generations.create(**ORDER)).run_id == "run_2"
        keys = [asked.headers["idempotency-key"] for asked in server.asked]
        assert len(set(keys[1:])) == 1


async def test_case_029_a_server_that_closes_idle_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Creates never meet one: their connections idle for less than any server allows.

    It runs in real time, because aiohttp measures how long a connection idles by the clock of the machine.
    """
    ids = iter(range(1000))

    async def brief(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(created(f"run_{next(ids)}"))
        await writer.drain()
        asyncio.get_running_loop().call_later(0.03, writer.transport.close)
        return True

    monkeypatch.setattr("flora_async._http.session.CREATE_KEEPALIVE", 0.01)

    async def create_in_turn(flora: Flora) -> None:
        async with flora:
            for _ in range(25):
                await flora.generations.create(**ORDER)
                await asyncio.sleep(0.03)

    async with Raw(brief) as server:
        clients = [Flora(KEY, base_url=server.base_url, max_retries=0) for _ in range(4)]
        await asyncio.gather(*map(create_in_turn, clients))
        assert server.count("POST") == 100


@pytest.mark.virtual_time
@pytest.mark.parametrize("ends", ["closes", "stays"])
@pytest.mark.parametrize("what", ["read", "download"])
async def test_case_026_half_an_answer_that_nobody_asked_for(what: str, ends: str, tmp_path: Path) -> None:
    """On an idle connection: aiohttp reads it by the clock of the request before, which stands; ours does not."""

    async def and_more(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(http(run()))
        await asyncio.sleep(0.01)
        writer.write(http(run())[:-20])
        return True

    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if ends == "stays":
            await asyncio.Event().wait()
        return False

    async with (
        Raw(and_more, nothing) as server,
        Flora(KEY, base_url=server.base_url, timeout=0.5, max_retries=0) as flora,
    ):
        output = Output(output_id="output_1", type="imageUrl", url=f"{server.where}/media")

        async def get(number: int) -> object:
            if what == "read":
                return await flora.generations.retrieve(RUN_ID)
            return await flora.download(output, tmp_path / f"{number}")

        assert await get(1)
        await asyncio.sleep(0.1)
        failure = await fails(get(2))
        assert isinstance(failure, APITimeoutError if what == "read" else DownloadError)
        assert re.search("in time|broke", str(failure))


@pytest.mark.virtual_time
async def test_case_037_a_queue_costs_nobody_his_time(change_policies: Callable[..., None]) -> None:
    """Requests wait for their turn outside their deadline."""
    change_policies(rate_limit={"max_concurrent_calls": 2})

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(0.1)
        writer.write(http(run()))
        return True

    async with Raw(slow) as server, Flora(KEY, base_url=server.base_url, timeout=0.4, max_retries=0) as flora:
        runs = await asyncio.gather(*(flora.generations.retrieve(RUN_ID) for _ in range(12)))
        assert len(runs) == 12


async def test_case_038_a_deadline_that_has_passed() -> None:
    """No create goes out, on a warm connection either."""
    ids = iter(range(10))

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(created(f"run_{next(ids)}"))
        return True

    async with Raw(each) as server, Flora(KEY, base_url=server.base_url) as flora:
        await flora.generations.create(**ORDER)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await flora.generations.create(**ORDER)
        await asyncio.sleep(0.05)
        assert server.count("POST") == 1


# -- creates whose answer is lost


async def test_case_067_a_lost_answer_is_found_in_the_history() -> None:
    """The 409 proves that the run exists; it is the only one that it can be."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("POST", "/generate", hang_up, DUPLICATE)
        server.on("GET", "/generations", history(row(model={"model_id": "x"}), row("run_old", age=600)))
        begun = await flora.generations.create(**ORDER)
        assert (begun.run_id, begun.recovered) == (RUN_ID, True)
        server.on("GET", f"/runs/{RUN_ID}", answer(run()))
        finished = await flora.wait_for_run(begun)
        assert (finished.succeeded, finished.recovered) == (True, True)


async def test_case_067_where_nobody_can_tell() -> None:
    """Two runs that it could be: the error names them, and gives the key."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("POST", "/generate", hang_up, DUPLICATE).on(
            "GET", "/generations", history(row("run_1"), row("run_2"))
        )
        failure = await fails(flora.generations.create(**ORDER))
        assert isinstance(failure, CreateOutcomeUnknownError)
        assert (failure.candidates, failure.accepted) == (("run_1", "run_2"), True)
        revived: CreateOutcomeUnknownError = pickle.loads(pickle.dumps(failure))
        assert (revived.order, revived.window, revived.candidates) == (
            failure.order,
            failure.window,
            failure.candidates,
        )
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as other:
        server.on("GET", "/generations", history(row("run_1"), row("run_2")))
        assert (await other.recover_create(revived, known=["run_1"])).run_id == "run_2"
        assert server.count("POST", "/generate") == 0


async def test_case_067_strict() -> None:
    """It never takes a run for its own."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url, recover="strict") as flora:
        server.on("POST", "/generate", hang_up, DUPLICATE).on("GET", "/generations", history(row()))
        failure = await fails(flora.generations.create(**ORDER))
        assert isinstance(failure, CreateOutcomeUnknownError)
        assert failure.candidates == (RUN_ID,)


async def test_case_068_half_a_201() -> None:
    """What it names is looked for, whatever else is there."""
    half = http(started("run_2"), status="201 Created")[:-40]
    duplicate = http({"error": {"code": "idempotency_duplicate"}}, status="409 Conflict")
    listed = http({"generations": [row("run_1"), row("run_2")], "meta": {}})
    async with Raw(close(half), say(duplicate)) as server, Flora(KEY, base_url=server.base_url) as flora:
        server.history = listed
        begun = await flora.generations.create(**ORDER)
        assert (begun.run_id, begun.recovered) == ("run_2", True)


async def test_case_074_a_storm_of_retries() -> None:
    """Two hundred calls in an outage make few requests more."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", error(503))
        await asyncio.gather(*(fails(flora.generations.retrieve(RUN_ID)) for _ in range(200)))
        assert server.count("GET", f"/runs/{RUN_ID}") <= 200 + 20 + 0.2 * 200 + 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "target",
    [
        pytest.param("http://127.0.0.1:{port}/api/v1/generate", id="076-another_origin"),
        pytest.param("http://localhost:{port}/api/v1/generate", id="077-another_name"),
        pytest.param("//127.0.0.1:{port}/api/v1", id="078-the_same_scheme"),
    ],
)
async def test_case_076_to_078_redirects_elsewhere(status: int, target: str) -> None:
    """Neither the key nor the prompt goes there."""
    async with Raw(say(http(run()))) as elsewhere, Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        away = answer(
            b"", status, {"Location": target.format(port=elsewhere.base_url.rpartition(":")[2][:5].strip("/"))}
        )
        server.on("POST", "/generate", away).on("GET", f"/runs/{RUN_ID}", away)
        for call in (flora.generations.create(**ORDER), flora.generations.retrieve(RUN_ID)):
            failure = await fails(call)
            assert isinstance(failure, ProtocolError)
            assert "redirect" in str(failure)
        assert not elsewhere.asked


# -- cancelling and closing


async def test_case_082_a_create_cancelled_at_any_step() -> None:
    """Whatever it was doing, its key was told before."""
    told: list[str] = []
    ids = iter(range(1000))

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        writer.write(created(f"run_{next(ids)}"))
        return True

    def remember(key: str, order: object) -> None:
        told.append(key)

    async with Raw(each) as server, Flora(KEY, base_url=server.base_url, on_create=remember) as flora:
        for steps in range(40):
            task = asyncio.create_task(flora.generations.create(**ORDER))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await flora.generations.create(**ORDER)  # no connection is lost
        assert {asked.headers["idempotency-key"] for asked in server.asked} <= set(told)


async def test_case_083_a_sibling_fails() -> None:
    """All keys of what was cancelled with it are told."""
    told: list[str] = []
    async with Scripted() as server:
        server.on("POST", "/generate", silence)
        async with Flora(KEY, base_url=server.base_url, on_create=lambda key, order: told.append(key)) as flora:

            async def fail() -> None:
                while len(server.asked) < 5:
                    await asyncio.sleep(0.001)
                raise ValueError

            with pytest.raises(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    for _ in range(5):
                        group.create_task(flora.generations.create(**ORDER))
                    group.create_task(fail())
        assert {asked.headers["Idempotency-Key"] for asked in server.asked} == set(told)


async def test_a_hook_that_fails_stops_the_create() -> None:
    """Nothing is sent that could not be written down."""

    def refuse(key: str, order: object) -> None:
        raise OSError("disk full")

    async with Scripted() as server, Flora(KEY, base_url=server.base_url, on_create=refuse) as flora:
        with pytest.raises(OSError, match="disk full"):
            await flora.generations.create(**ORDER)
        assert not server.asked


async def test_case_084_answers_are_always_read() -> None:
    """No failure keeps a connection."""
    async with (
        Scripted() as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
        Flora(KEY, base_url=server.base_url, max_retries=0, session=session) as flora,
    ):
        server.on("GET", f"/runs/{RUN_ID}", error(500), answer(b"x" * 2**24), answer({}), answer(run()))
        for _ in range(3):
            await fails(flora.generations.retrieve(RUN_ID))
        assert (await flora.generations.retrieve(RUN_ID)).succeeded


async def test_case_085_and_086_close() -> None:
    """Under a request, before one, and twice."""
    async with Scripted() as server:
        server.on("GET", f"/runs/{RUN_ID}", silence).on("POST", "/generate", silence)
        flora = Flora(KEY, base_url=server.base_url)
        read = asyncio.create_task(fails(flora.generations.retrieve(RUN_ID)))
        create = asyncio.create_task(fails(flora.generations.create(**ORDER)))
        while len(server.asked) < 2:
            await asyncio.sleep(0.001)
        await flora.close()
        await flora.close()
        assert isinstance(await read, ClientClosedError)
        assert isinstance(await create, CreateOutcomeUnknownError)
        assert isinstance(await fails(flora.generations.retrieve(RUN_ID)), ClientClosedError)


def test_case_087_a_client_made_outside_a_loop() -> None:
    """It opens at its first request."""

    async def use() -> None:
        async with Scripted() as server:
            flora = Flora(KEY, base_url=server.base_url)
            with pytest.raises(NotFoundError):
                await flora.generations.retrieve(RUN_ID)
            await flora.close()

    flora = Flora(KEY)
    assert repr(flora)
    asyncio.run(use())


def test_case_088_another_loop() -> None:
    """It says so, and nothing else."""

    async def fail(flora: Flora) -> str:
        return str(await fails(flora.generations.retrieve(RUN_ID)))

    flora = Flora(KEY, base_url="http://127.0.0.1:1", max_retries=0)
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(fail(flora))
        assert "event loop" in second.run(fail(flora))
        first.run(flora.close())


def test_case_089_a_fork() -> None:
    """A child opens a client of its own."""
    program = """
import asyncio, os
from flora_async import ConfigurationError, Flora, FloraError
async def main():
    flora = Flora("sk_1", base_url="http://127.0.0.1:1", max_retries=0)
    try:
        await flora.generations.retrieve("run_1")
    except FloraError:
        pass
    child = os.fork()
    if not child:
        try:
            await flora.generations.retrieve("run_1")
        except ConfigurationError as error:
            os._exit(7 if "process" in str(error) else 1)
        os._exit(2)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    await flora.close()
asyncio.run(main())
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert output.stdout.strip() == "7"


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "5"])
async def test_case_090_time_outs_that_are_none(timeout: Any) -> None:
    """Refused, in every place."""
    with pytest.raises(ConfigurationError, match="timeout"):
        Flora(KEY, timeout=timeout)
    async with Flora(KEY, base_url="http://127.0.0.1:1") as flora:
        assert isinstance(await fails(flora.wait_for_run(RUN_ID, timeout=timeout)), ConfigurationError)


async def test_case_091_refused_while_megabytes_go_up() -> None:
    """The refusal is what is told."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = {"error": {"code": "unauthorized", "message": "no"}}
        writer.write(http(body, status="401 Unauthorized"))
        await reader.read(5_000_000)
        await asyncio.sleep(0.1)
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    where = server.sockets[0].getsockname()[1]
    async with server, Flora(KEY, base_url=f"http://127.0.0.1:{where}", max_retries=0) as flora:
        failure = await fails(flora.generations.create(**ORDER, params={"mask": "x" * 5_000_000}))
        assert isinstance(failure, AuthenticationError)


@pytest.mark.virtual_time
async def test_case_093_five_hundred_refused() -> None:
    """Each ends cleanly."""
    async with Flora(KEY, base_url="http://127.0.0.1:1") as flora:
        failures = await asyncio.gather(*(fails(flora.generations.retrieve(RUN_ID)) for _ in range(500)))
        assert {type(failure) for failure in failures} == {APIConnectionError}


async def test_case_094_a_proxy_that_is_not_there() -> None:
    """Nothing was sent."""
    async with Flora(KEY, base_url="https://app.flora.ai/api/v1", proxy="http://127.0.0.1:1", max_retries=1) as flora:
        await both_fail(flora, APIConnectionError, "not_sent", 2)


# -- waiting


@pytest.mark.usefixtures("fast_polls")
async def test_case_095_a_run_that_is_not_yet_known(change_policies: Callable[..., None]) -> None:
    """For ten seconds after its creation that means nothing; later it ends the wait."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("POST", "/generate", answer(started(), 201))
        server.on("GET", f"/runs/{RUN_ID}", error(404, "not_found"), error(404, "not_found"), answer(run()))
        begun = await flora.generations.create(**ORDER)
        assert (await flora.wait_for_run(begun)).succeeded
        change_policies(poll={"not_found_grace": 0.0})
        async with Flora(KEY, base_url=server.base_url) as impatient:
            failure = await fails(impatient.wait_for_run("run_unknown"))
        assert (type(failure), failure.run_id) == (NotFoundError, "run_unknown")


@pytest.mark.usefixtures("fast_polls")
async def test_case_096_progress_goes_back() -> None:
    """What is told never does; an end is an end."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        steps = [run("running", progress=value) for value in (40, 20, 60)]
        server.on("GET", f"/runs/{RUN_ID}", *(answer(step) for step in steps), answer(run()), answer(run("running")))
        seen = [record.progress async for record in flora.watch_run(RUN_ID)]
        assert seen == [40, 60, 100]


@pytest.mark.usefixtures("fast_polls")
async def test_case_097_ends_that_say_little() -> None:
    """Completed without outputs is completed, failed without a code is failed."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", answer(run(outputs=None)))
        assert (await flora.wait_for_run(RUN_ID)).outputs == ()
        server.on("GET", f"/runs/{RUN_ID}", answer(run("failed")))
        failure = await fails(flora.wait_for_run(RUN_ID))
        assert isinstance(failure, RunFailedError)
        assert failure.run.run_id == RUN_ID


@pytest.mark.virtual_time
@pytest.mark.usefixtures("fast_polls")
async def test_case_098_a_run_that_takes_longer() -> None:
    """The error holds the run, and the wait can begin again."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", answer(run("running", progress=30)))
        failure = await fails(flora.wait_for_run(RUN_ID, timeout=0.1))
        assert isinstance(failure, RunTimeoutError)
        assert failure.run is not None
        assert (failure.run_id, failure.run.progress) == (RUN_ID, 30)
        server.on("GET", f"/runs/{RUN_ID}", answer(run()))
        assert (await flora.wait_for_run(failure.run_id or "")).succeeded


@pytest.mark.usefixtures("fast_polls")
async def test_case_099_faults_that_pass() -> None:
    """However many, they end no wait."""
    faults = [error(500), hang_up, answer(b"<html>"), answer(run(run_id="run_other")), error(429), error(503)] * 2
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", *faults, answer(run()))
        assert (await flora.wait_for_run(RUN_ID, timeout=30)).succeeded


@pytest.mark.usefixtures("fast_polls")
async def test_case_100_a_key_that_is_revoked_under_a_wait() -> None:
    """The error names the run, which goes on."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", answer(run("running")), error(401, "invalid_api_key"))
        failure = await fails(flora.wait_for_run(RUN_ID))
        assert (type(failure), failure.run_id) == (AuthenticationError, RUN_ID)


# -- the history


async def test_case_101_a_history_that_goes_in_circles() -> None:
    """Empty pages go on, items come once, a repeated cursor ends the walk when all was handed out."""
    pages = {None: page("run_1", cursor="a"), "a": page(cursor="b"), "b": page("run_1", "run_2", cursor="a")}

    async def say_page(request: Any) -> Any:
        step: Any = pages[request.query.get("cursor")]
        return await step(request)

    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", "/generations", say_page)
        seen: list[str] = []

        async def walk() -> None:
            async for item in flora.generations.list():
                seen.append(item.run_id)

        assert isinstance(await fails(walk()), PaginationError)
        assert seen == ["run_1", "run_2"]


async def test_case_102_a_broken_item() -> None:
    """The ninety-nine others are handed out, and then it is said."""
    rows = [generation(f"run_{index}") for index in range(100)]
    rows[50]["status"] = None
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", "/generations", answer({"generations": rows, "meta": {"next_cursor": None}}))
        seen: list[str] = []

        async def walk() -> None:
            async for item in flora.generations.list():
                seen.append(item.run_id)

        failure = await fails(walk())
        assert isinstance(failure, ResponseDecodeError)
        assert failure.field == "$.generations[50].status"
        assert len(seen) == 99
        async for each in flora.generations.list().pages():
            assert (len(each.generations), len(each.broken)) == (99, 1)


async def test_case_103_a_page_that_fails() -> None:
    """The walk can be taken up again where it broke off."""
    pages = {None: page("run_1", cursor="a"), "a": error(500)}

    async def say_page(request: Any) -> Any:
        step: Any = pages[request.query.get("cursor")]
        return await step(request)

    async with Scripted() as server, Flora(KEY, base_url=server.base_url, max_retries=0) as flora:
        server.on("GET", "/generations", say_page)
        walk = flora.generations.list().pages()
        first = await anext(walk)
        assert isinstance(await fails(anext(walk)), InternalServerError)
        pages["a"] = page("run_2")
        assert [item.run_id async for item in flora.generations.list(cursor=first.next_cursor)] == ["run_2"]
        assert [item.run_id for item in (await anext(walk)).generations] == ["run_2"]


async def test_a_cursor_that_is_too_long() -> None:
    """It is the answer that is wrong, not the caller."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", "/generations", page("run_1", cursor="c" * 5000))

        async def walk() -> None:
            async for _ in flora.generations.list():
                pass

        failure = await fails(walk())
        assert isinstance(failure, ResponseDecodeError)
        assert failure.field == "$.meta.next_cursor"


# -- downloads

PICTURE = bytes(range(256)) * 400


def finished(url: str) -> Run:
    """Give a completed run with an output."""
    return msgspec.convert(run(outputs=[{"output_id": "output_1", "type": "imageUrl", "url": url}]), Run)


async def test_case_104_a_download_that_is_cut_goes_on(tmp_path: Path) -> None:
    """From where it broke off, if its host says that it is still the same."""
    asked: list[str] = []

    async def ranged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        headers = server.asked[-1].headers
        asked.append(f"{headers.get('range')} {headers.get('if-range')}")
        kind = 'Content-Type: image/png\r\nETag: "v1"\r\n'
        if len(asked) == 1:
            writer.write(http(PICTURE, headers=kind)[:60_000])
            await writer.drain()
            await asyncio.sleep(0.05)
            return False
        begin = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        span = f"Content-Range: bytes {begin}-{len(PICTURE) - 1}/{len(PICTURE)}\r\n"
        writer.write(http(PICTURE[begin:], status="206 Partial Content", headers=kind + span))
        return True

    async with Raw(ranged) as server, Flora(KEY, base_url=server.base_url) as flora:
        (path,) = await flora.download(finished(server.base_url + "/a.png"), tmp_path)
    assert path.read_bytes() == PICTURE
    assert asked[1].startswith("bytes=")
    assert asked[1].endswith('"v1"')
    assert not asked[1].startswith("bytes=0-")


async def test_case_104_a_download_without_a_validator_begins_again(tmp_path: Path) -> None:
    """And so does one whose host ignores the range."""
    first = close(http(PICTURE, headers="Content-Type: image/png\r\n")[:60_000])
    tagged = close(http(PICTURE, headers='Content-Type: image/png\r\nETag: "v2"\r\n')[:60_000])
    async with (
        Raw(first, tagged, say(http(PICTURE, headers="Content-Type: image/png\r\n"))) as server,
        Flora(KEY, base_url=server.base_url) as flora,
    ):
        (path,) = await flora.download(finished(server.base_url + "/a.png"), tmp_path)
        assert path.read_bytes() == PICTURE
        assert "range" not in server.asked[1].headers


async def test_case_104_a_url_that_has_expired(tmp_path: Path) -> None:
    """The run tells the new one; once."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", "/old", answer(b"", 403)).on(
            "GET", "/new", answer(b"x", headers={"Content-Type": "image/png"})
        )
        fresh = [{"output_id": "output_1", "type": "imageUrl", "url": server.base_url + "/new?sig=1"}]
        server.on("GET", f"/runs/{RUN_ID}", answer(run(outputs=fresh)))
        (path,) = await flora.download(finished(server.base_url + "/old"), tmp_path)
        assert path.read_bytes() == b"x"
        server.on("GET", "/new", answer(b"", 410))
        assert isinstance(
            await fails(flora.download(finished(server.base_url + "/old"), tmp_path / "b")), DownloadError
        )
        assert server.count("GET", f"/runs/{RUN_ID}") == 2


async def test_case_104_a_packed_output(tmp_path: Path) -> None:
    """One that ends before its end is not taken for the output."""
    async with (
        Raw(say(http(b"\x1f\x8b", headers="Content-Encoding: gzip\r\n"))) as server,
        Flora(KEY, base_url=server.base_url) as flora,
    ):
        failure = await fails(flora.download(finished(server.base_url + "/a"), tmp_path))
        assert "its gzip encoding is truncated" in str(failure)
        assert not list(tmp_path.iterdir())


def test_case_105_a_full_disk(tmp_path: Path) -> None:
    """No file of any name stays behind."""
    program = """
import asyncio, resource, sys
from pathlib import Path
from flora_async import DownloadError, Flora, Output
async def main():
    async with Flora("sk_1", base_url="http://127.0.0.1:1") as flora:
        try:
            await flora.download(Output(output_id="a", type="text", url="x" * 100_000), sys.argv[1])
        except DownloadError as error:
            print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
asyncio.run(main())
print(list(Path(sys.argv[1]).iterdir()))
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "cannot write" in output
    assert output.endswith("[]\n")
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000


async def test_case_105_the_target_exists(tmp_path: Path) -> None:
    """It is left alone."""
    (tmp_path / "run_abc123_output_1.txt").write_text("mine")
    source = msgspec.convert(run(), Run)
    async with Flora(KEY, base_url="http://127.0.0.1:1") as flora:
        assert isinstance(await fails(flora.download(source, tmp_path)), DownloadError)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
async def test_names_that_lead_to_private_addresses(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the connected address that counts, whatever a name promised."""
    async with Raw(say(http(b"x"))) as server:
        port = server.base_url.split(":")[2].partition("/")[0]
        async with Flora(KEY, base_url="https://app.flora.ai/api/v1", max_retries=0) as flora:
            transport = flora._transport
            with pytest.raises(APIConnectionError, match="not a public one"):
                async with transport.media(f"http://{name}:{port}/a", {}):
                    pass
        assert not server.asked


# -- the client itself


def test_a_client_does_not_travel() -> None:
    """It holds a key."""
    flora = Flora(KEY)
    for travel in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ConfigurationError, match="cannot pickle or copy"):
            travel(flora)


async def test_the_key_echoed_by_a_server() -> None:
    """Is struck out of what the error tells."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url, max_retries=0) as flora:
        for body in (
            {"error": {"code": "x", "message": f"no such key {KEY}"}},
            f"<pre>Authorization: {KEY}</pre>".encode(),
        ):
            for status in (200, 401, 502):
                server.on("GET", f"/runs/{RUN_ID}", answer(body, status, {"X-Echo": KEY}))
                failure = await fails(flora.generations.retrieve(RUN_ID))
                assert "***" in str(failure)


async def test_a_cancelled_call_does_not_show_the_key() -> None:
    """Its traceback ends in our own frames."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("GET", f"/runs/{RUN_ID}", silence)
        try:
            async with asyncio.timeout(0.1):
                await flora.generations.retrieve(RUN_ID)
        except TimeoutError as late:
            import traceback

            told = traceback.TracebackException.from_exception(late, capture_locals=True)
            assert KEY not in "".join(told.format())
        else:
            pytest.fail("it was not late")


@pytest.mark.parametrize(
    "settings",
    [
        {"trust_env": True},
        {"raise_for_status": True},
        {"headers": {"Authorization": "Bearer x"}},
        {"headers": {"cookie": "x"}},
    ],
)
async def test_sessions_that_come_in_the_way(settings: dict[str, Any]) -> None:
    """They are not borrowed."""
    async with aiohttp.ClientSession(**settings) as session:
        with pytest.raises(ConfigurationError, match="session"):
            Flora(KEY, session=session)


async def test_a_long_retry_after_is_raised_at_once() -> None:
    """With its value."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url) as flora:
        server.on("POST", "/generate", error(429, headers={"Retry-After": "90"}))
        failure = await fails(flora.generations.create(**ORDER))
        assert isinstance(failure, RateLimitError)
        assert (failure.retry_after, failure.attempts) == (90.0, 1)


async def test_bounds_are_the_callers() -> None:
    """``max_response_bytes``."""
    async with Scripted() as server, Flora(KEY, base_url=server.base_url, max_response_bytes=1000) as flora:
        server.on("GET", "/x", answer({"a": "b" * 1000}))
        failure = await fails(flora.request("GET", "/x"))
        assert "1000 bytes" in str(failure)
