"""How a request travels: when it may go out, what may be tried again, and what became of it. The one retry loop.

What touches a socket is :mod:`session`, which is entered when the first request goes out.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from msgspec import Struct

from flora_async import errors
from flora_async._aio import CLOSE_TIMEOUT, close_at_home, import_in_thread, require_loop, running_loop
from flora_async._http import retry
from flora_async._http.auth import APIKey
from flora_async._http.clock import ServerClock
from flora_async._http.rate_limit import Lane, RateLimiter
from flora_async._http.requests import Request
from flora_async._http.responses import RawResponse
from flora_async._http.retry import RetryBudget
from flora_async.events import Emit, RateLimited, RequestFinished, RetryScheduled

if TYPE_CHECKING:
    import aiohttp

    from flora_async._http.session import HTTPSessions

T = TypeVar("T")

log = logging.getLogger("flora_async")


class OutputStream(Struct, frozen=True, gc=False):
    """An output on its way: what its host calls it, and its bytes."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Attempt(Struct, frozen=True):
    """One failed attempt of a request."""

    error: errors.FloraError
    sent: float
    """When it went out, by the event loop's clock."""
    server_time: float | None
    """The same by FLORA's clock, as far as that was known then."""


check_before_post: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("check_before_post", default=None)
"""Awaited by this task before each attempt of a create, in its turn; an exception that is no FloraError prevents it."""


class Transport:
    """Send requests and read answers, on one event loop, from the first request until closed."""

    def __init__(
        self,
        *,
        key: APIKey,
        version: str,
        timeout: float,
        max_retries: int,
        max_bytes: int,
        proxy: str | None,
        session: aiohttp.ClientSession | None,
        may_connect: Callable[[str], bool],
        ssl: SSLContext | None,
        tell: Emit | None,
    ) -> None:
        if session is not None:
            from flora_async._http.session import check_session

            check_session(session)
        self._key = key
        self._version = version
        self._timeout = timeout
        self._max_retries = max_retries
        self._max_bytes = max_bytes
        self._proxy = proxy
        self._may_connect = may_connect
        self._ssl = ssl
        self._tell = tell
        self._process = os.getpid()
        self._borrowed = session
        self._sessions: HTTPSessions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closing = asyncio.Event()
        self._closing_later: asyncio.Future[None] | None = None
        self._limiter = RateLimiter()
        self._budget = RetryBudget()
        self.clock = ServerClock()
        self.polls: Lane = self._limiter.polls
        """Where polls wait for their turns."""

    async def call(
        self,
        request: Request,
        read: Callable[[RawResponse], T],
        *,
        retries: int | None = None,
        lane: Lane | None = None,
        turn: float | None = None,
        attempts: list[Attempt] | None = None,
    ) -> T:
        """Send *request* and read its answer, again if the answer allows and the policy (:mod:`retry`) does.

        Its turns come in *lane*; ``None``: that of calls. *turn* is when the caller was given the first one, if it was.
        Raise the last error; *attempts* collects all that failed.
        """
        loop = self._here()
        lane = lane or self._limiter.calls
        failures: list[errors.FloraError] = []
        now = began = loop.time()
        first_seen: float | None = None
        self._budget.deposit()
        while True:
            sent, turn, answered = turn, None, False
            try:
                sessions = self._opened() or await self._open()
                if sent is None:
                    sent = now if lane.enter(now) else await lane.turn(began)
                value = await self._exchange(sessions, request, read, attempt=len(failures) + 1)
                answered = True
                return value
            except errors.FloraError as error:
                failures.append(error)
                if attempts is not None:
                    at = now if sent is None else sent
                    attempts.append(Attempt(error, at, self.clock.at(at)))
                if first_seen is None and retry.may_have_been_received(error):
                    first_seen = sent
                if sent is not None and isinstance(error, errors.RateLimitError):
                    self._refused(error, request, sent)
            finally:
                if sent is not None:
                    lane.leave(sent, answered=answered)
            elapsed = 0.0 if first_seen is None else loop.time() - first_seen
            pause = self._pause_after(failures, request, elapsed=elapsed, retries=retries)
            if pause is None:
                last = _final_error(failures)
                failures.clear()
                try:
                    raise last.with_traceback(None)
                finally:
                    del last  # it refers to this frame
            self._say(request, failures, pause)
            await self.pause(pause)
            now = loop.time()

    async def _exchange(
        self, sessions: HTTPSessions, request: Request, read: Callable[[RawResponse], T], *, attempt: int
    ) -> T:
        if (check := check_before_post.get()) is not None and request.billable:
            await check()
        if self._tell is None:
            return await sessions.send_once(request, read)
        return await _told(self._tell, attempt, sessions.send_once, request, read)

    def _refused(self, error: errors.RateLimitError, request: Request, sent: float) -> None:
        self._limiter.refuse(error.retry_after, sent=sent)
        if self._tell is not None:
            asked, pause = error.retry_after, self._limiter.wait()
            self._tell(RateLimited(path=request.template, retry_after=asked, pause=pause))

    def _say(self, request: Request, failures: list[errors.FloraError], pause: float) -> None:
        failure, attempt = failures[-1], len(failures)
        named, method, path = type(failure).__name__, request.method, request.template
        said = {"method": method, "path": path, "error": named, "attempt": attempt, "pause": pause}
        log.info("%s %s: again in %.1f s after %s", method, request.path, pause, _named(failure), extra=said)
        if self._tell is not None:
            self._tell(RetryScheduled(method=method, path=path, error=named, attempt=attempt, pause=pause))

    def _pause_after(
        self, failures: list[errors.FloraError], request: Request, *, elapsed: float, retries: int | None
    ) -> float | None:
        failure, billable = failures[-1], request.billable
        pause = retry.next_retry_delay(
            failures,
            retries=self._max_retries if retries is None else retries,
            idempotent=request.idempotent,
            billable=billable,
            elapsed=elapsed,
        )
        if pause is None or self._closed:
            return None
        # A 429 is the limiter's business; and no load is worth a run that is paid for and not known.
        unbudgeted = isinstance(failure, errors.RateLimitError) or (billable and failure.outcome_unknown)
        return pause if unbudgeted or self._budget.try_withdraw() else None

    def server_time(self) -> float:
        """Return FLORA's time in Unix seconds, as far as it is known."""
        loop = self._loop
        steady = time.monotonic() if loop is None else loop.time()
        return self.clock.now(steady=steady, wall=time.time())

    def time(self) -> float:
        """Return the time of this client's event loop, also where none is running."""
        return time.monotonic() if self._loop is None else self._loop.time()

    async def pause(self, seconds: float) -> None:
        """Sleep, or until the client is closed."""
        with anyio.move_on_after(seconds):
            await self._closing.wait()

    def _here(self) -> asyncio.AbstractEventLoop:
        """Give the event loop, if this client may be used on it."""
        if self._process != os.getpid():
            raise errors.ConfigurationError("this client belongs to another process: open one Flora(...) in each")
        self._loop = require_loop(self._loop)
        return self._loop

    def _opened(self) -> HTTPSessions | None:
        """Give what is open, if this client is not closed."""
        if self._closed:
            raise errors.ClientClosedError("this client is closed: open a new one with Flora(...)")
        return self._sessions

    async def _open(self) -> HTTPSessions:
        # A quarter of a second of imports must not stop a loop that has other work.
        await import_in_thread("flora_async._http.session")
        from flora_async._http.session import HTTPSessions

        if self._closed:
            raise errors.ClientClosedError("this client was closed before it had opened")
        if self._sessions is None:
            self._sessions = HTTPSessions(
                key=self._key,
                version=self._version,
                timeout=self._timeout,
                max_bytes=self._max_bytes,
                proxy=self._proxy,
                borrowed=self._borrowed,
                clock=self.clock,
                # Through a proxy it is the proxy that is connected, and the proxy that decides.
                may_connect=self._may_connect if self._proxy is None else None,
                ssl=self._ssl,
            )
        return self._sessions

    @asynccontextmanager
    async def media(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[OutputStream, None]:
        """Open an output's *url*, without our key, cookies or redirects; the deadline is for each read."""
        self._here()
        sessions = self._opened() or await self._open()
        async with await sessions.open_media(url, headers) as response:
            yield OutputStream(response.status, response.headers, sessions.chunks(response))

    async def close(self, first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Close what was opened here, after what *first* closes. Requests end in an error at once, wherever they are.

        From another event loop than the one that was used: on that one, where it runs, and when it runs again, where it
        can. A process that was forked closes nothing, for the connections are its parent's.
        """
        self._closed = True
        if self._process == os.getpid():
            await close_at_home(self._loop, partial(self._close, first))

    async def _close(self, first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if running_loop() is None:
            return  # nothing of asyncio's can be closed from here
        with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await first()
            finally:
                await self._close_connections()

    async def _close_connections(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            if loop is not running_loop():
                loop.call_soon_threadsafe(self._close_later)
                return
            self._end()
        if self._sessions is not None:
            await self._sessions.close()

    def _end(self) -> None:
        """End what waits for its turn, or pauses."""
        self._closing.set()
        self._limiter.close(errors.ClientClosedError("this client was closed before its request went out"))

    def _close_later(self) -> None:
        self._end()
        if self._sessions is not None:
            self._closing_later = asyncio.ensure_future(self._sessions.close())


async def _told(
    tell: Emit,
    attempt: int,
    send_once: Callable[[Request, Callable[[RawResponse], T]], Coroutine[Any, Any, T]],
    request: Request,
    read: Callable[[RawResponse], T],
) -> T:
    """Make an exchange, and tell how it ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    heard: list[RawResponse] = []
    failure: BaseException | None = None
    try:
        return await send_once(request, partial(_finished_early, heard, read))
    except (errors.FloraError, asyncio.CancelledError) as error:
        failure = error
        raise
    finally:
        answer = heard[-1] if heard else None
        tell(
            RequestFinished(
                method=request.method,
                path=request.template,
                status=answer.status if answer else None,
                error=type(failure).__name__ if failure else None,
                seconds=loop.time() - began,
                attempt=attempt,
                request_id=answer.request_id if answer else None,
            )
        )
        failure = None  # which refers to this frame


def _finished_early(heard: list[RawResponse], read: Callable[[RawResponse], T], answer: RawResponse) -> T:
    heard.append(answer)
    return read(answer)


def _named(failure: errors.FloraError) -> str:
    # Not its text, which may hold what FLORA quotes: prompts, signed URLs.
    status = f" {failure.status}" if isinstance(failure, errors.APIError) else ""
    return f"{type(failure).__name__}{status}"


def _final_error(failures: list[errors.FloraError]) -> errors.FloraError:
    """Return the error of a request that will not be sent again."""
    last = failures[-1]
    if isinstance(last, errors.APIError | errors.APIConnectionError | errors.ResponseDecodeError):
        last.attempts = len(failures)
    return last
