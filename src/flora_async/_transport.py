"""The only room with a socket: aiohttp sessions, the deadline of an exchange, and the one retry loop.

aiohttp is most of the time that importing this package would take, so it is imported when the first request goes out.
No exception of its own leaves this room: their reprs can hold the key. So can the locals of its frames, which whoever
records a traceback sees: they are not in ours.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import platform
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from errno import EACCES
from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import anyio
from anyio.to_thread import run_sync
from msgspec import Struct

from flora_async import _pacing, errors
from flora_async._arguments import Secret, bind_loop
from flora_async._limiter import Limiter
from flora_async._pacing import RetryBudget
from flora_async._wire import Answer, Request, retry_after, salvaged_run_id, unpacked

if TYPE_CHECKING:
    from types import SimpleNamespace

    import aiohttp

T = TypeVar("T")

_Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""What ``getaddrinfo`` gives."""

log = logging.getLogger("flora_async")

CONNECT_TIMEOUT = 10.0
"""Seconds for one attempt at a connection, or nine tenths of the exchange's own, whichever is less."""
CREATE_KEEPALIVE = 2.0
"""Seconds that a connection for creates may idle: less than any server allows, so that none closes under a POST."""
LARGE_BODY = 2**20
"""Bytes from which aiohttp wants a body as a file, and warns if it is not."""
IN_FLIGHT = 100
"""Requests of one client that are under way at once."""


class Media(Struct, frozen=True, gc=False):
    """An output on its way: what its host calls it, and its bytes."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Transport:
    """Send requests and read answers, on one event loop, from the first request until closed."""

    def __init__(
        self,
        *,
        key: Secret,
        version: str,
        timeout: float,
        max_retries: int,
        max_bytes: int,
        proxy: str | None,
        session: aiohttp.ClientSession | None,
        may_connect: Callable[[str], bool],
    ) -> None:
        if session is not None:
            _check_session(session)
        agent = f"flora-async/{version} python/{platform.python_version()}"
        self._key = key
        self._headers = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": agent}
        self._media_headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": agent}
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_bytes = max_bytes
        self._proxy = proxy
        self._may_connect = may_connect
        self._process = os.getpid()
        self._borrowed = session
        self._sessions: _Sessions | None = None
        self._closing = asyncio.Event()
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)
        self._limiter = Limiter()
        self._budget = RetryBudget()
        self.held_up: Callable[[], float] = self._limiter.wait
        """For how many seconds nothing may go out."""

    async def call(self, request: Request, read: Callable[[Answer], T], *, retries: int | None = None) -> T:
        """Send *request* and read its answer, again if the answer allows and the policy (:mod:`_pacing`) does.

        A create of which nobody can say whether it was accepted ends in :class:`CreateOutcomeUnknownError`.
        """
        failures: list[errors.FloraError] = []
        self._budget.earn()
        began, opened = time.monotonic(), time.time()
        while True:
            try:
                return await self._exchange(request, read)
            except errors.FloraError as error:
                failures.append(error)
            pause = _pacing.pause_before_retry(
                failures,
                retries=self._max_retries if retries is None else retries,
                repeatable=request.repeatable,
                create=request.order is not None,
                elapsed=time.monotonic() - began,
            )
            # A 429 is the limiter's business; and no load is worth a run that is paid for and not known.
            unbudgeted = isinstance(failures[-1], errors.RateLimitError) or (
                request.order is not None and _pacing.may_have_arrived(failures[-1])
            )
            if pause is None or self._closing.is_set() or not (unbudgeted or self._budget.spend()):
                raise _conclusion(request, failures, window=(opened, time.time())).with_traceback(None)
            log.info("%s %s: again in %.1f s after %s", request.method, request.path, pause, _named(failures[-1]))
            await self.pause(pause)

    async def pause(self, seconds: float) -> None:
        """Sleep, or until the client is closed."""
        with anyio.move_on_after(seconds):
            await self._closing.wait()

    async def _exchange(self, request: Request, read: Callable[[Answer], T]) -> T:
        sessions = await self._open()
        await self._limiter.turn()
        import aiohttp
        from yarl import URL

        create = request.order is not None
        if create:
            # A deadline that has passed, or a cancellation on its way, ends a create here, before it is paid.
            await asyncio.sleep(0)
        body = request.body
        large = body is not None and len(body) > LARGE_BODY
        progress = _Progress() if create else None
        began = time.monotonic()
        failure: errors.FloraError | asyncio.CancelledError
        try:
            async with (
                self._in_flight,
                (sessions.creates if create else sessions.reads).request(
                    request.method,
                    URL(request.url, encoded=True),
                    data=BytesIO(body) if body and large else body,
                    headers=self._headed(request),
                    timeout=sessions.timeout,
                    allow_redirects=False,
                    auto_decompress=False,
                    proxy=self._proxy,
                    trace_request_ctx=progress,
                ) as response,
            ):
                answer = Answer(
                    request=request,
                    status=response.status,
                    headers=response.headers,
                    body=await _body(response, self._max_bytes, request),
                )
                if answer.status == 429:
                    self._limiter.refused(retry_after(answer.headers))
                else:
                    self._limiter.succeeded()
                log.debug(
                    "%s %s: %d in %.0f ms (%s)",
                    request.method,
                    request.path,
                    answer.status,
                    1000 * (time.monotonic() - began),
                    answer.request_id,
                )
                try:
                    if create and sessions.repeats(response, answer):
                        raise errors.ProtocolError(f"{request.path}: the answer to another order came again")
                    return self._read(answer, read)
                except (errors.APIConnectionError, errors.ResponseDecodeError):
                    sessions.distrust(response)
                    raise
        except errors.FloraError:
            raise
        except asyncio.CancelledError as error:
            failure = error
        except (aiohttp.ClientError, *_FOREIGN) as error:
            if isinstance(error, RuntimeError) and sessions.closed:
                failure = errors.ClientClosedError(f"the session was closed under {request.path}")
            else:
                failure = _translated(error, sent=progress.sent if progress else None, where=request.path)
            if self._closing.is_set() and not (progress and progress.sent):
                failure = errors.ClientClosedError("the client was closed while a request was under way")
        raise failure.with_traceback(None)  # aiohttp's frames hold the key

    def _headed(self, request: Request) -> dict[str, str]:
        """Give a request its headers, the key among them; no frame but aiohttp's own holds them."""
        headers = {"Authorization": self._key.bearer(), **self._headers}
        if request.body is not None:
            headers["Content-Type"] = "application/json"
        if request.idempotency_key is not None:
            headers["Idempotency-Key"] = request.idempotency_key
        return headers

    def _read(self, answer: Answer, read: Callable[[Answer], T]) -> T:
        if "content-encoding" in answer.headers:
            answer = unpacked(answer, self._max_bytes)
        try:
            return read(answer)
        except errors.FloraError:
            if not self._key.stands_in(answer.body, answer.headers):
                raise
        # Somebody in between shows what he was sent.
        return read(
            Answer(
                request=answer.request,
                status=answer.status,
                headers=self._key.struck_from(answer.headers),
                body=self._key.struck_out(answer.body),
            )
        )

    async def _open(self) -> _Sessions:
        if self._closing.is_set():
            raise errors.ClientClosedError("this client is closed: open a new one with Flora(...)")
        if self._process != os.getpid():
            raise errors.ConfigurationError("this client belongs to another process: open one Flora(...) in each")
        loop = bind_loop(self._sessions.loop if self._sessions else None)
        if self._sessions is None:
            # A quarter of a second of imports must not stop a loop that has other work.
            await run_sync(import_module, "aiohttp")
            if self._closing.is_set():
                raise errors.ClientClosedError("this client was closed before it had opened")
        if self._sessions is None:
            # Through a proxy it is the proxy that is connected, and the proxy that decides.
            may_connect = self._may_connect if self._proxy is None else None
            self._sessions = _Sessions(loop, self._timeout, self._borrowed, may_connect)
        if self._sessions.reads.closed:
            raise errors.ClientClosedError("the session that this client was given is closed")
        return self._sessions

    @asynccontextmanager
    async def media(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[Media, None]:
        """Open an output's *url*, without our key, cookies or redirects; the deadline is for each read."""
        response = await self._open_media(url, headers)
        async with response:
            yield Media(response.status, response.headers, _chunks(response))

    async def _open_media(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        sessions = await self._open()
        import aiohttp
        from yarl import URL

        try:
            return await sessions.media.get(
                URL(url, encoded=url.isascii()),
                headers={**self._media_headers, **headers},
                timeout=sessions.media_timeout,
                allow_redirects=False,
                proxy=self._proxy,
            )
        except (aiohttp.ClientError, *_FOREIGN) as error:
            failure = _translated(error, sent=None, where=url.partition("?")[0])
        raise failure

    async def close(self) -> None:
        """Close what was opened here. Requests under way end in an error at once."""
        self._closing.set()
        if self._sessions is not None and self._sessions.loop is asyncio.get_running_loop():
            with anyio.move_on_after(5, shield=True):
                await self._sessions.close()


_FOREIGN = (OSError, ValueError, LookupError, TypeError, RuntimeError, ArithmeticError, AttributeError, AssertionError)
"""What aiohttp and the libraries below it raise besides their own errors, some of it at a server's pleasure."""


def _check_session(session: object) -> None:
    import aiohttp

    if not isinstance(session, aiohttp.ClientSession):
        raise errors.ConfigurationError(f"session must be an aiohttp.ClientSession, not {type(session).__name__}")
    for name, wrong in (
        ("trust_env", session.trust_env),
        ("raise_for_status", session.raise_for_status),
        ("auth", session.auth is not None),
        ("headers", any(name.lower() in ("authorization", "cookie", "host") for name in session.headers)),
    ):
        if wrong:
            raise errors.ConfigurationError(
                f"session must not have {name} of its own that come in the way of the key: make it without"
            )


async def _body(response: aiohttp.ClientResponse, limit: int, request: Request) -> bytes:
    """Read an answer, if it has no more than *limit* bytes."""
    import aiohttp

    length = response.content_length
    if length is not None and length <= limit and request.order is None:
        return await response.read()
    body = bytearray()
    failure: errors.APIConnectionError | None = None
    try:
        if length is None or length <= limit:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        failure = _translated(error, sent=None, where=request.path)
    response.close()
    if failure is None:
        failure = errors.ResponseTooLargeError(
            f"{request.path} answered with more than {limit} bytes", request_id=response.headers.get("request-id")
        )
    failure.run_id = salvaged_run_id(response.status, bytes(body))
    raise failure


async def _chunks(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    import aiohttp

    try:
        # As it comes: what came before a connection breaks is kept.
        async for chunk in response.content.iter_any():
            yield chunk
        return
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        failure = _translated(error, sent=None, where=str(response.url.with_query(None)))
    raise failure


class _Progress:
    """How far a create has come."""

    sent = False


class _Sessions:
    """The three sessions of a client: reads, creates and media never share a connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        timeout: float,
        borrowed: aiohttp.ClientSession | None,
        may_connect: Callable[[str], bool] | None,
    ) -> None:
        import aiohttp

        class TraceableResponse(aiohttp.ClientResponse):
            """An answer that still knows its connection when it has been read, and the connection is free again."""

            wire: asyncio.Transport | None = None

            async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
                self.wire = connection.transport
                return await super().start(connection)

        async def note_sent(
            _session: aiohttp.ClientSession,
            context: SimpleNamespace,
            _params: aiohttp.TraceRequestHeadersSentParams,
        ) -> None:
            context.trace_request_ctx.sent = True

        def guarded(address: _Address) -> socket.socket:
            if may_connect is not None and not may_connect(str(address[4][0])):
                raise PermissionError(EACCES, "the address is not a public one")
            return socket.socket(address[0], address[1], address[2])

        trace = aiohttp.TraceConfig()
        trace.on_request_headers_sent.append(note_sent)

        def session(
            connector: aiohttp.TCPConnector, *traces: aiohttp.TraceConfig, auto_decompress: bool = True
        ) -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                auto_decompress=auto_decompress,
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                response_class=TraceableResponse,
                trace_configs=list(traces),
            )

        connect = min(CONNECT_TIMEOUT, 0.9 * timeout)
        self.loop = loop
        self.timeout = aiohttp.ClientTimeout(total=timeout, sock_connect=connect, ceil_threshold=math.inf)
        self.media_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect, sock_read=timeout, ceil_threshold=math.inf
        )
        self._borrowed = borrowed
        # What is in flight is capped by the transport, so that waiting for a turn costs nobody's deadline.
        self.reads = borrowed or session(aiohttp.TCPConnector(limit=0))
        self.creates = session(aiohttp.TCPConnector(limit=0, keepalive_timeout=CREATE_KEEPALIVE), trace)
        self.media = session(aiohttp.TCPConnector(socket_factory=guarded), auto_decompress=False)
        self._response = TraceableResponse
        self._last: WeakKeyDictionary[asyncio.Transport, Answer] = WeakKeyDictionary()

    @property
    def closed(self) -> bool:
        return self.reads.closed or self.creates.closed

    def repeats(self, response: aiohttp.ClientResponse, answer: Answer) -> bool:
        """Say whether an answer is the last one of its connection over again, which was to another order."""
        if not isinstance(response, self._response) or response.wire is None:
            return False
        last, self._last[response.wire] = self._last.get(response.wire), answer
        return (
            last is not None
            and last.request.idempotency_key != answer.request.idempotency_key
            and (last.request_id, last.status, last.body) == (answer.request_id, answer.status, answer.body)
            and answer.request_id is not None
        )

    def distrust(self, response: aiohttp.ClientResponse) -> None:
        """Never use a connection again that has delivered something strange: it may deliver the next answer too."""
        if isinstance(response, self._response) and response.wire is not None:
            response.wire.abort()

    async def close(self) -> None:
        for session in (self.creates, self.media) if self._borrowed else (self.creates, self.media, self.reads):
            await session.close()


def _translated(error: Exception, *, sent: bool | None, where: str) -> errors.APIConnectionError:
    """Say in our words what aiohttp ran into; its own exceptions may hold the key, so only names and numbers pass."""
    import aiohttp

    name = type(error).__name__
    connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    state: errors.SendState = "not_sent" if connecting or sent is False else "maybe_sent"
    if isinstance(error, TimeoutError):
        what = "no connection" if state == "not_sent" else "no complete answer"
        return errors.APITimeoutError(f"{where}: {what} in time ({name})", sent=state)
    if isinstance(error, aiohttp.ClientSSLError):
        return errors.APIConnectionError(
            f"{where}: the server cannot prove who it is ({name})", sent="not_sent", retryable=False
        )
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL | ValueError):
        return errors.ProtocolError(f"{where}: the answer is not proper HTTP ({name})")
    number = f" {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    if connecting:
        return errors.APIConnectionError(f"{where}: cannot connect ({name}{number})", sent=state)
    hint = "; does it speak https?" if where.startswith("http:") else ""
    if isinstance(error, aiohttp.ClientError | OSError):
        return errors.APIConnectionError(f"{where}: the connection broke ({name}{number}){hint}", sent=state)
    return errors.APIConnectionError(f"{where}: the request failed ({name})", sent=state, retryable=False)


def _named(failure: errors.FloraError) -> str:
    # Not its text, which may hold what FLORA quotes: prompts, signed URLs.
    status = f" {failure.status}" if isinstance(failure, errors.APIError) else ""
    return f"{type(failure).__name__}{status}"


def _conclusion(
    request: Request, failures: list[errors.FloraError], *, window: tuple[float, float]
) -> errors.FloraError:
    """Say what became of a request that will not be sent again."""
    last = failures[-1]
    attempts = len(failures)
    doubtful = any(_pacing.may_have_arrived(failure) for failure in failures)
    known = isinstance(last, errors.IdempotencyConflictError)
    if known:
        # Ours, if an earlier attempt can have been let in: a 503 comes from FLORA's front as well as from behind it.
        doubtful = doubtful or any(isinstance(failure, errors.InternalServerError) for failure in failures)
    if request.order is not None and request.idempotency_key is not None and doubtful:
        named = next((failure.run_id for failure in failures if failure.run_id), None)
        unknown = errors.CreateOutcomeUnknownError(
            order=request.order,
            idempotency_key=request.idempotency_key,
            window=window,
            attempts=attempts,
            reason=str(last),
            accepted=known or named is not None,
        )
        unknown.run_id = named
        return unknown
    if isinstance(last, errors.APIError | errors.APIConnectionError | errors.ResponseDecodeError):
        last.attempts = attempts
    return last
