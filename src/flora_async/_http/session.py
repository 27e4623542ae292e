"""aiohttp sessions: send one request with a deadline. The only module of the client that opens sockets.

The import of aiohttp is slow, so this module is imported before the first request. No exception of aiohttp leaves it:
their reprs can hold the API key. The locals of aiohttp's frames can hold it too, so tracebacks are cut here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import platform
import socket
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from errno import EACCES
from io import BytesIO
from ssl import SSLCertVerificationError, SSLError
from typing import Any, Protocol, TypeAlias, TypeVar

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.tracing import Trace
from yarl import URL

from flora_async import errors
from flora_async._http.clock import ServerClock
from flora_async._http.requests import Request
from flora_async._http.responses import RawResponse, decompress, find_run_id, http_date
from flora_async._http.settings import HTTPSettings
from flora_async._version import __version__

T = TypeVar("T")


class SendOnce(Protocol):
    """Sends one attempt of a request and parses its response."""

    def __call__(self, request: Request, read: Callable[[RawResponse], T], /) -> Coroutine[Any, Any, T]: ...


_Address: TypeAlias = tuple[int, int, int, str, tuple[Any, ...]]
"""One result of ``getaddrinfo``."""

log = logging.getLogger("flora_async")

CONNECT_TIMEOUT = 10.0
"""Seconds to open a connection; at most nine tenths of the timeout."""
_STORE_RESPONSE_BYTES = 4096
"""Bytes of a store's response to an upload that are read."""
_LARGE_BODY = 2**20
"""Bytes from which on aiohttp takes a body as a file, whose parts it sends in several steps of the event loop."""
_LAST_RESPONSE = "_flora_last_response"
CREATE_KEEPALIVE = 2.0
"""Maximum idle seconds of a connection for creates. Servers keep connections longer, so none closes under a POST."""


class HTTPSessions:
    """The sessions of a client: reads, creates, recovery and media never share a connection."""

    def __init__(self, settings: HTTPSettings, clock: ServerClock) -> None:
        # aiohttp has no public attribute for the loop. Without the private one the loop is not checked.
        loop = asyncio.get_running_loop()
        borrowed = settings.session
        if borrowed is not None and vars(borrowed).get("_loop", loop) is not loop:
            raise errors.ConfigurationError(
                "session= belongs to another event loop. Make it in the asyncio.run(...) that uses this client"
            )
        connect = min(CONNECT_TIMEOUT, 0.9 * settings.timeout)
        agent = f"flora-async/{__version__} python/{platform.python_version()}"

        def create_public_socket(address: _Address) -> socket.socket:
            if not settings.may_connect(str(address[4][0])):
                raise PermissionError(EACCES, "the address is not a public one")
            return socket.socket(address[0], address[1], address[2])

        self._key = settings.key
        self._seconds = settings.timeout
        self._max_bytes = settings.max_response_bytes
        self._proxy = settings.proxy
        self._borrowed = borrowed
        self._clock = clock
        fixed = {"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": agent}
        self._headers = {**settings.default_headers, **fixed}
        self._media_headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": agent}
        self._timeout = self._timeout_of(settings.timeout)
        self._media_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect, sock_read=settings.timeout, ceil_threshold=math.inf
        )
        self._upload_timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect, ceil_threshold=math.inf)
        # The rate limiter bounds the requests in flight. A wait in its queue does not count towards the timeout.
        trust = True if settings.ssl is None else settings.ssl
        self._reads = borrowed or _session(aiohttp.TCPConnector(limit=0, ssl=trust), self._headers)
        self._connector = _CreateConnector(limit=0, keepalive_timeout=CREATE_KEEPALIVE, ssl=trust)
        self._connector.waiting = set()
        self._creates = _session(self._connector, self._headers)
        # A proxy can deliver a response twice. The second one would be read by the next request of its connection.
        self._fresh = _session(aiohttp.TCPConnector(limit=0, force_close=True, ssl=trust), self._headers)
        self._media = _session(
            aiohttp.TCPConnector(socket_factory=create_public_socket, ssl=trust), self._media_headers
        )
        self._date: str | None = None
        self._closing = False
        self._borrowed_reads: set[asyncio.Timeout] = set()
        self.send: SendOnce = self.send_once if borrowed is None else self._send_until_closed
        """Sends a request once and parses its response."""

    @property
    def closed(self) -> bool:
        """Whether a session was closed: one of this object, or the caller's."""
        return self._reads.closed or self._creates.closed

    async def send_once(self, request: Request, read: Callable[[RawResponse], T]) -> T:
        """Send *request* once and parse its response."""
        create = request.order is not None
        session = self._creates if create else self._fresh if request.fresh else self._reads
        body = None if request.body is None else _payload(request.body)
        waiting = self._connector.waiting
        if create:
            # A passed deadline or a pending cancellation ends a create here, before it is billed.
            await asyncio.sleep(0)
        if self._closing:
            raise errors.ClientClosedError("the client was closed before a request was sent")
        own = request.timeout
        seconds, timeout = (self._seconds, self._timeout) if own is None else (own, self._timeout_of(own))
        began = time.monotonic()
        failure: errors.FloraError | asyncio.CancelledError
        try:
            async with session.request(
                request.method,
                URL(request.url, encoded=True),
                data=body,
                headers=self._request_headers(request, session),
                timeout=timeout,
                allow_redirects=False,
                auto_decompress=False,
                proxy=self._proxy,
            ) as response:
                headers = response.headers
                if headers.get("date") != self._date:
                    self._learn_time(headers, seconds=time.monotonic() - began)
                answer = RawResponse(
                    request=request,
                    status=response.status,
                    headers=headers,
                    body=await self._read_body(response, request, seconds=seconds - (time.monotonic() - began)),
                    received=time.time(),
                )
                if log.isEnabledFor(logging.DEBUG):
                    _log_response(answer, seconds=time.monotonic() - began)
                try:
                    if create and _is_repeated(response, answer):
                        raise errors.ProtocolError(f"{request.path}: the connection repeated an earlier response")
                    return self._parse(answer, read)
                except (errors.APIConnectionError, errors.ResponseDecodeError):
                    _abort_connection(response)
                    raise
        except errors.FloraError:
            raise
        except asyncio.CancelledError as error:
            failure = error
        except (aiohttp.ClientError, *_LIBRARY_ERRORS) as error:
            failure = self._failure_of(error, request, unsent=not create or asyncio.current_task() in waiting)
        try:
            raise failure.with_traceback(None)  # aiohttp's frames hold the key
        finally:
            del failure  # it refers to this frame
            waiting.discard(asyncio.current_task())

    async def _send_until_closed(self, request: Request, read: Callable[[RawResponse], T]) -> T:
        """Send *request* once, a read by the caller's session, which is not closed: the end of the client ends it."""
        if request.order is not None or request.fresh:
            return await self.send_once(request, read)
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._borrowed_reads.add(scope)
                return await self.send_once(request, read)
        except TimeoutError:
            if not scope.expired():
                raise
            raise errors.ClientClosedError("the client was closed while a request was in flight") from None
        finally:
            self._borrowed_reads.discard(scope)

    async def _read_body(self, response: aiohttp.ClientResponse, request: Request, *, seconds: float) -> bytes:
        """Return the body. Raise if it has too many bytes or takes longer than *seconds*.

        The body has its own timeout. For bytes that were buffered before the request, aiohttp uses the timer of the
        previous request, which no longer runs.
        """
        content, limit = response.content, self._max_bytes
        parts: list[bytes] = []
        size = 0
        failure: errors.FloraError | None = None
        try:
            if content.is_eof():  # the usual case: the body came with the headers
                parts.append(content.read_nowait())
                size = len(parts[0])
                if size <= limit:
                    return parts[0]
            length = response.content_length
            async with asyncio.timeout(seconds):
                while size <= limit and (length is None or length <= limit):
                    part = await content.readany()
                    parts.append(part)
                    size += len(part)
                    if content.at_eof() and size <= limit:
                        return b"".join(parts)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._failure_of(error, request, unsent=request.order is None)
        response.close()
        if failure is None:
            failure = errors.ResponseTooLargeError(
                f"{request.path} answered with more than {limit} bytes", request_id=response.headers.get("request-id")
            )
        failure.run_id = find_run_id(request, response.status, b"".join(parts))
        raise failure

    def _timeout_of(self, seconds: float) -> aiohttp.ClientTimeout:
        """Return the timeout of an exchange of so many seconds."""
        return aiohttp.ClientTimeout(
            total=seconds,
            connect=None if self._borrowed is None else 0.9 * seconds,  # its pool has a limit and is shared
            sock_connect=min(CONNECT_TIMEOUT, 0.9 * seconds),
            ceil_threshold=math.inf,
        )

    def _learn_time(self, headers: Mapping[str, str], *, seconds: float) -> None:
        self._date = headers.get("date", "")
        date = http_date(self._date)
        if date is not None and "age" not in headers:  # a cached response is dated when it was made
            received = asyncio.get_running_loop().time()
            self._clock.observe(date, sent=received - seconds, received=received, wall=time.time())

    def _failure_of(self, error: Exception, request: Request, *, unsent: bool) -> errors.FloraError:
        """Map an exception of aiohttp. With *unsent*, nothing of the request was sent, or it does not matter."""
        if self._closing and unsent:
            return errors.ClientClosedError("the client was closed while a request was in flight")
        if self.closed and unsent:
            return errors.ClientClosedError(f"the session was closed under {request.path}")
        if self._closing:
            return errors.APIConnectionError(
                f"{request.path}: the client was closed before the response", sent="maybe_sent", retryable=False
            )
        proxy = self._proxy and str(URL(self._proxy).with_user(None))
        create = request.order is not None
        if isinstance(error, aiohttp.ConnectionTimeoutError) and not create and _is_full(self._borrowed):
            return errors.APITimeoutError(
                f"{request.path}: no connection in time: the pool of session= is full of other requests. "
                "Set a higher limit for its connector, or use a separate session for this client",
                sent="not_sent",
            )
        return _map_exception(error, unsent=create and unsent, where=request.path, proxy=proxy)

    def _request_headers(self, request: Request, session: aiohttp.ClientSession) -> dict[str, str]:
        """Build the headers with the API key. Only frames of aiohttp hold them afterwards."""
        headers = {"Authorization": self._key.bearer()}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        if request.idempotency_key is not None:
            headers["Idempotency-Key"] = request.idempotency_key
        return headers | self._headers if session is self._borrowed else headers

    def _parse(self, answer: RawResponse, read: Callable[[RawResponse], T]) -> T:
        if "content-encoding" in answer.headers:
            answer = decompress(answer, self._max_bytes)
        try:
            return read(answer)
        except errors.FloraError:
            if not self._key.appears_in(answer.body, answer.headers):
                raise
        # A proxy echoed the request. Redact the key.
        return read(
            RawResponse(
                request=answer.request,
                status=answer.status,
                headers=self._key.redact_headers(answer.headers),
                body=self._key.redact_body(answer.body),
                received=answer.received,
            )
        )

    async def open_media(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Open the *url* of an output, without API key, cookies or redirects. Each read has the timeout."""
        try:
            return await self._media.get(
                URL(url, encoded=True),
                headers=headers,
                timeout=self._media_timeout,
                allow_redirects=False,
                auto_decompress=False,
                proxy=self._proxy,
            )
        except (aiohttp.ClientError, *_LIBRARY_ERRORS) as error:
            failure = self._media_failure_of(error, url.partition("?")[0])
        raise failure

    async def upload(
        self, method: str, url: str, headers: Mapping[str, str], body: AsyncIterable[bytes]
    ) -> tuple[int, bytes]:
        """Send *body* without API key, cookies or redirects; return the status and the beginning of the response.

        *headers* must have the length of the body. The caller limits the time.
        """
        try:
            async with self._media.request(
                method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                timeout=self._upload_timeout,
                allow_redirects=False,
                auto_decompress=False,
                proxy=self._proxy,
            ) as response:
                return response.status, await response.content.read(_STORE_RESPONSE_BYTES)
        except (aiohttp.ClientError, *_LIBRARY_ERRORS) as error:
            failure = self._media_failure_of(error, url.partition("?")[0])
        raise failure

    async def chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield the bytes of an output as they are received, also those before a connection breaks."""
        try:
            while True:
                async with asyncio.timeout(self._seconds):  # see _read_body
                    chunk = await response.content.readany()
                if not chunk:
                    return
                yield chunk
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            failure = self._media_failure_of(error, str(response.url.with_query(None)))
        raise failure

    def _media_failure_of(self, error: Exception, where: str) -> errors.FloraError:
        if self._closing:
            return errors.ClientClosedError("the client was closed while a file was transferred")
        return _map_exception(error, where=where)

    async def close(self) -> None:
        """Close the sessions that were opened here. Requests in flight end in ClientClosedError at once."""
        if not self._closing:  # a scope that is ending cannot be ended again
            self._closing = True
            for scope in self._borrowed_reads:
                scope.reschedule(asyncio.get_running_loop().time())
        async with AsyncExitStack() as closing:  # a cancellation skips the wait for one session
            for session in (self._creates, self._fresh, self._media, self._reads):
                if session is not self._borrowed:
                    closing.push_async_callback(session.close)
                    _end_reads(session)


def _end_reads(session: aiohttp.ClientSession) -> None:
    """End the reads of response bodies: aiohttp closes their connections, and lets the readers wait for more.

    Without the private attributes of aiohttp, these reads end with their timeouts.
    """
    connector = session.connector
    protocols = () if connector is None else vars(connector).get("_acquired", ())
    for protocol in protocols:
        content = getattr(protocol, "_payload", None)
        if isinstance(content, aiohttp.StreamReader):
            content.set_exception(aiohttp.ClientConnectionError("the client was closed"))


def _session(connector: aiohttp.TCPConnector, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        headers=headers,
        cookie_jar=aiohttp.DummyCookieJar(),
        response_class=TraceableResponse,
    )


def _payload(body: bytes) -> aiohttp.BytesPayload | BytesIO:
    """Return a body as aiohttp sends it, without its search for the class of the payload."""
    return aiohttp.BytesPayload(body) if len(body) <= _LARGE_BODY else BytesIO(body)


def _log_response(answer: RawResponse, *, seconds: float) -> None:
    request, request_id = answer.request, answer.request_id
    extra = {
        "method": request.method,
        "path": request.template,
        "status": answer.status,
        "seconds": seconds,
        "request_id": request_id,
    }
    said = answer.status, 1000 * seconds, request_id
    log.debug("%s %s: %d in %.0f ms (%s)", request.method, request.path, *said, extra=extra)


class TraceableResponse(aiohttp.ClientResponse):
    """A response that keeps its connection after it was read, when aiohttp has released it."""

    protocol: ResponseHandler | None = None

    async def start(self, connection: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        """Record the connection."""
        self.protocol = connection.protocol
        return await super().start(connection)


def _is_repeated(response: aiohttp.ClientResponse, answer: RawResponse) -> bool:
    """Return whether a connection has delivered the response to its last create again, to another create."""
    if not isinstance(response, TraceableResponse) or response.protocol is None:
        return False
    seen = vars(response.protocol)  # lives as long as the connection
    response_id = answer.headers.get("request-id"), answer.status, answer.body
    key = answer.request.idempotency_key
    last, seen[_LAST_RESPONSE] = seen.get(_LAST_RESPONSE), (key, response_id)
    return last is not None and response_id[0] is not None and last[0] != key and last[1] == response_id


def _abort_connection(response: aiohttp.ClientResponse) -> None:
    """Abort the connection of an unexpected response. It can also deliver a wrong response to the next request."""
    protocol = response.protocol if isinstance(response, TraceableResponse) else None
    if protocol is not None and protocol.transport is not None:
        protocol.transport.abort()


class _CreateConnector(aiohttp.TCPConnector):
    """Record the tasks that wait for a connection: nothing of their requests can have been sent.

    All other requests count as sent, also if a new aiohttp connects in another way.
    """

    waiting: set[asyncio.Task[Any] | None]

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        """Open a connection, or reuse an open one."""
        task = asyncio.current_task()
        self.waiting.add(task)
        connection = await super().connect(req, traces, timeout)
        self.waiting.discard(task)
        return connection


_LIBRARY_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
)
"""Exceptions of aiohttp and its libraries besides ClientError. Servers can cause some of them."""


def check_session(session: object) -> None:
    """Check the caller's session: it must neither replace the API key nor show it to another host.

    Private attributes of aiohttp that do not exist count as unknown, not as an error.
    """
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
                f"session must not have its own {name}, which could replace the key. Make it without {name}"
            )
    if vars(session).get("_default_proxy") is not None:
        raise errors.ConfigurationError("session must not have its own proxy, which would see the key. Use proxy=")
    connector = session.connector
    if connector is not None and type(connector) is not aiohttp.TCPConnector:
        raise errors.ConfigurationError(
            f"session must connect with aiohttp.TCPConnector, not {type(connector).__name__}, which may send the key "
            "to another host. Make the session without connector=, or use proxy="
        )
    if connector is not None and vars(connector).get("_ssl", True) is False:
        raise errors.ConfigurationError(
            "session must verify TLS certificates: its connector has ssl=False, so any host could read the key. "
            "Trust another authority with ssl.create_default_context(cafile=...)"
        )


def _is_full(session: aiohttp.ClientSession | None) -> bool:
    """Return whether all connections that a session's pool may open are in use."""
    connector = None if session is None else session.connector
    if connector is None:
        return False
    used = len(vars(connector).get("_acquired", ()))
    return any(0 < limit <= used for limit in (connector.limit, connector.limit_per_host))


_AUTHORITIES = "ssl= and SSL_CERT_FILE only say which authorities are trusted"
_UNKNOWN_AUTHORITY = (
    "is signed by an unknown authority",
    "Trust the authority with Flora(ssl=...) or the environment variable SSL_CERT_FILE",
)
_CERTIFICATE_FAULTS = {
    9: ("is not valid yet", f"Check this machine's clock; {_AUTHORITIES}"),
    10: ("has expired", f"Renew it, or check this machine's clock; {_AUTHORITIES}"),
    62: ("is for another host name", f"Check the host in the URL; {_AUTHORITIES}"),
    64: ("is for another IP address", f"Check the host in the URL; {_AUTHORITIES}"),
}
"""By OpenSSL's verification code. All other codes concern the authority."""


def _tls_failure(error: aiohttp.ClientSSLError) -> str:
    """Return why a TLS handshake failed, and the fix."""
    cause: object = error.os_error
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        cause = error.certificate_error
    if isinstance(cause, SSLCertVerificationError):
        fault, fix = _CERTIFICATE_FAULTS.get(cause.verify_code, _UNKNOWN_AUTHORITY)
        return f"the TLS certificate of {error.host} {fault} ({cause.verify_message.rstrip('.')}). {fix}"
    reason = cause.reason if isinstance(cause, SSLError) else type(cause).__name__
    return f"the TLS handshake with {error.host} failed ({reason}). Check that it serves https, and the context of ssl="


_PROXY_FIXES = {
    407: "Check the user and the password in proxy=",
    403: "Ask its operator to allow this host",
}


def _map_exception(
    error: Exception, *, where: str, unsent: bool = False, proxy: str | None = None
) -> errors.APIConnectionError:
    """Map an exception of aiohttp. Its text can hold the API key, so only names and numbers are kept."""
    name = type(error).__name__
    connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
    state: errors.SendState = "not_sent" if connecting or unsent else "maybe_sent"
    if isinstance(error, TimeoutError):
        missing = "connection" if state == "not_sent" else "complete response"
        return errors.APITimeoutError(f"{where}: no {missing} in time ({name})", sent=state)
    if isinstance(error, aiohttp.ClientSSLError):
        return errors.APIConnectionError(f"{where}: {_tls_failure(error)}", sent="not_sent", retryable=False)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        fix = _PROXY_FIXES.get(error.status, "Try later, or ask its operator")
        return errors.APIConnectionError(
            f"{where}: the proxy {proxy or ''} refused the tunnel with {error.status} {error.message}. {fix}",
            sent="not_sent",
            retryable=error.status >= 500,
        )
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL | ValueError):
        return errors.ProtocolError(f"{where}: the response is not valid HTTP ({name})")
    number = f" {error.strerror}" if isinstance(error, OSError) and error.strerror else ""
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return errors.APIConnectionError(f"{where}: cannot connect to the proxy {proxy or ''} ({name})", sent=state)
    if connecting:
        return errors.APIConnectionError(f"{where}: cannot connect ({name}{number})", sent=state)
    hint = "; does it speak https?" if where.startswith("http:") else ""
    if isinstance(error, aiohttp.ClientError | OSError | RuntimeError):  # aiohttp's of a body whose connection has gone
        return errors.APIConnectionError(f"{where}: the connection broke ({name}{number}){hint}", sent=state)
    return errors.APIConnectionError(f"{where}: the request failed ({name})", sent=state, retryable=False)
