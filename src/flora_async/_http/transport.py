"""Send requests with the rate limit, retries and events. The only retry loop of the package.

:mod:`session` opens the sockets. It is imported before the first request is sent.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from flora_async import errors
from flora_async._aio import CLOSE_TIMEOUT, close_on_loop, import_in_thread, require_loop, running_loop
from flora_async._http.allowance import Allowance, SharedRate
from flora_async._http.clock import ServerClock
from flora_async._http.rate_limit import Lane, RateLimiter
from flora_async._http.requests import Request
from flora_async._http.responses import RawResponse
from flora_async._http.retry import RetryBudget, RetryPolicy, may_have_been_received
from flora_async._http.settings import HTTPSettings
from flora_async.events import Emit, RateLimited, RequestFinished, RetryScheduled

if TYPE_CHECKING:
    from flora_async._http.session import HTTPSessions, SendOnce

T = TypeVar("T")

log = logging.getLogger("flora_async")


class OutputStream(Struct, frozen=True, gc=False):
    """An output that is being downloaded: status and headers of the response, and its bytes."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Attempt(Struct, frozen=True):
    """One failed attempt of a request."""

    error: errors.FloraError
    sent: float
    """Time of sending, by the event loop's clock."""
    server_time: float | None
    """Time of sending by FLORA's clock, as estimated then; ``None`` if unknown."""


check_before_post: ContextVar[Callable[[], Awaitable[None]] | None] = ContextVar("check_before_post", default=None)
"""Awaited before each attempt of a create in this task. An exception other than FloraError prevents the attempt."""


class Transport:
    """Send requests and parse responses on one event loop, until it is closed."""

    def __init__(self, settings: HTTPSettings, *, emit: Emit | None) -> None:
        if settings.session is not None:
            from flora_async._http.session import check_session

            check_session(settings.session)
        self._settings = settings
        self._emit = emit
        self._process = os.getpid()
        self._sessions: HTTPSessions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._closing = asyncio.Event()
        self._awaited: dict[asyncio.Event, None] = {}
        """Events that :meth:`wait` waits for, which the end of the client sets."""
        self._close_task: asyncio.Future[None] | None = None
        self.retry_policy: RetryPolicy = settings.retry
        self._limiter = RateLimiter(settings.rate_limit, settings.retry)
        self._budget = RetryBudget(settings.retry)
        self._accepted_at = -math.inf
        """Time of the last accepted create."""
        self.clock: ServerClock = ServerClock()
        self.polls: Lane = self._limiter.polls
        """Queue of the polls."""
        self._shared: SharedRate | None = None

    @property
    def allowance(self) -> Allowance | None:
        """The rate limit that this client shares with others."""
        return None if self._shared is None else self._shared.allowance

    @allowance.setter
    def allowance(self, allowance: Allowance | None) -> None:
        limiter = self._limiter
        if self._shared is not None:
            self._shared.close()
        self._shared = None
        if allowance is not None:
            base_url, policy = self._settings.origin.url, self._settings.rate_limit
            limiter.rate = self._shared = SharedRate(allowance, base_url, limiter, policy)
        if self._loop is not None and self._loop is running_loop():
            limiter.wake_waiting()

    async def send(
        self,
        request: Request,
        read: Callable[[RawResponse], T],
        *,
        retries: int | None = None,
        lane: Lane | None = None,
        turn: float | None = None,
        attempts: list[Attempt] | None = None,
    ) -> T:
        """Send *request* and parse its response. Retry as the policy in :mod:`retry` allows.

        Each attempt waits in *lane*; ``None`` is the queue of calls. *turn* is the time of a permit that the caller has
        acquired for the first attempt. Raise the last error. *attempts* collects the failed attempts.

        The 429 of a create does not count if another one was accepted within ``RetryPolicy.max_delay`` seconds before:
        its turn comes.
        """
        loop = self._check_loop()
        lane = lane or self._limiter.calls
        failures: list[errors.FloraError] = []
        now = started = loop.time()
        first_seen: float | None = None
        retries = self._settings.max_retries if retries is None else retries
        self._budget.deposit()
        while True:
            sent, turn, succeeded = turn, None, False
            try:
                sessions = self._sessions_or_none() or await self._open_sessions()
                if sent is None:
                    sent = now if lane.try_acquire(now) else await lane.acquire(started)
                value = await self._send_function(sessions, request, attempt=len(failures) + 1)(request, read)
                succeeded = True
                return value
            except errors.FloraError as error:
                failures.append(error)
                if attempts is not None:
                    at = now if sent is None else sent
                    attempts.append(Attempt(error, at, self.clock.at(at)))
                if first_seen is None and may_have_been_received(error):
                    first_seen = sent
                if sent is not None and isinstance(error, errors.RateLimitError):
                    self._on_rate_limited(error, request, sent)
                    retries += retries > 0 and request.billable and self._accepts_creates(loop.time())
            finally:
                if sent is not None:
                    lane.release(sent, succeeded=succeeded)
                    if succeeded and request.billable:
                        self._accepted_at = loop.time()
            elapsed = 0.0 if first_seen is None else loop.time() - first_seen
            pause = self._retry_delay(failures, request, elapsed=elapsed, retries=retries)
            if pause is None:
                last = _final_error(failures)
                failures.clear()
                try:
                    raise last.with_traceback(None)
                finally:
                    del last  # it refers to this frame
            self._log_retry(request, failures, pause)
            await self.sleep(pause)
            now = loop.time()

    def _send_function(self, sessions: HTTPSessions, request: Request, *, attempt: int) -> SendOnce:
        """Return the function that sends one attempt, with its event and the check of this task, if there are any."""
        send_once = sessions.send
        if self._emit is not None:
            send_once = partial(_send_with_event, self._emit, attempt, send_once)
        if (check := check_before_post.get()) is not None and request.billable:
            send_once = partial(_check_and_send, check, send_once)
        return send_once

    def _on_rate_limited(self, error: errors.RateLimitError, request: Request, sent: float) -> None:
        self._limiter.on_rate_limited(error.retry_after, sent=sent)
        if self._emit is not None:
            asked, pause = error.retry_after, self._limiter.delay()
            self._emit(RateLimited(path=request.template, retry_after=asked, pause=pause))

    def _accepts_creates(self, now: float) -> bool:
        """Return whether FLORA has just accepted a create of this client."""
        return now - self._accepted_at <= self.retry_policy.max_delay

    def _log_retry(self, request: Request, failures: list[errors.FloraError], pause: float) -> None:
        failure, attempt = failures[-1], len(failures)
        label, method, path = type(failure).__name__, request.method, request.template
        fields = {"method": method, "path": path, "error": label, "attempt": attempt, "pause": pause}
        log.info("%s %s: retry in %.1f s after %s", method, request.path, pause, _error_label(failure), extra=fields)
        if self._emit is not None:
            self._emit(RetryScheduled(method=method, path=path, error=label, attempt=attempt, pause=pause))

    def _retry_delay(
        self, failures: list[errors.FloraError], request: Request, *, elapsed: float, retries: int
    ) -> float | None:
        failure, billable = failures[-1], request.billable
        pause = self.retry_policy.next_delay(
            failures,
            retries=retries,
            idempotent=request.idempotent,
            billable=billable,
            elapsed=elapsed,
        )
        if pause is None or self._closed:
            return None
        # The rate limiter handles 429. A create with an unknown outcome is retried even if the retry budget is empty.
        unbudgeted = isinstance(failure, errors.RateLimitError) or (billable and failure.outcome_unknown)
        return pause if unbudgeted or self._budget.try_withdraw() else None

    def server_time(self) -> float:
        """Return FLORA's time in Unix seconds, as far as it is known."""
        loop = self._loop
        steady = time.monotonic() if loop is None else loop.time()
        return self.clock.now(steady=steady, wall=time.time())

    def time(self) -> float:
        """Return the time of this client's event loop; of the steady clock, before the first request."""
        return time.monotonic() if self._loop is None else self._loop.time()

    async def sleep(self, seconds: float) -> None:
        """Sleep for so many seconds, or until the client is closed."""
        from anyio import move_on_after  # imported beside aiohttp, in a thread: see import_in_thread

        with move_on_after(seconds):
            await self._closing.wait()

    async def wait(self, event: asyncio.Event) -> None:
        """Wait until *event* is set. Raise ClientClosedError if the client is closed, at once."""
        self._check_loop()
        self._awaited[event] = None
        try:
            if not self._closed:
                await event.wait()
        finally:
            self._awaited.pop(event, None)
        if self._closed:
            raise errors.ClientClosedError("this client was closed before the order was sent")

    def _check_loop(self) -> asyncio.AbstractEventLoop:
        """Return the event loop. Raise ConfigurationError in another process or on another event loop."""
        if self._process != os.getpid():
            raise errors.ConfigurationError(
                "this client belongs to another process. Open one Flora(...) in each process"
            )
        self._loop = require_loop(self._loop)
        return self._loop

    def _sessions_or_none(self) -> HTTPSessions | None:
        """Return the sessions; ``None`` before the first request. Raise ClientClosedError after close."""
        if self._closed:
            raise errors.ClientClosedError("this client is closed. Open a new one with Flora(...)")
        return self._sessions

    async def _open_sessions(self) -> HTTPSessions:
        # The import takes a quarter of a second, for which it would block the event loop.
        await import_in_thread("flora_async._http.session", "backoff")
        from flora_async._http.session import HTTPSessions

        if self._closed:
            raise errors.ClientClosedError("this client was closed before it had opened")
        if self._sessions is None:
            self._sessions = HTTPSessions(self._settings, self.clock)
        return self._sessions

    @asynccontextmanager
    async def media(self, url: str, headers: Mapping[str, str]) -> AsyncGenerator[OutputStream, None]:
        """Open the *url* of an output, without API key, cookies or redirects. Each read has the timeout."""
        self._check_loop()
        sessions = self._sessions_or_none() or await self._open_sessions()
        async with await sessions.open_media(url, headers) as response:
            yield OutputStream(response.status, response.headers, sessions.chunks(response))

    async def upload(
        self, method: str, url: str, headers: Mapping[str, str], body: AsyncIterable[bytes]
    ) -> tuple[int, bytes]:
        """Send a file to *url*, without API key, cookies or redirects; return the status and some of the response."""
        self._check_loop()
        sessions = self._sessions_or_none() or await self._open_sessions()
        return await sessions.upload(method, url, headers, body)

    async def close(self, close_first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Await *close_first*, then close all connections. Pending requests end in ClientClosedError at once.

        The connections are closed on the event loop that opened them. If it is not running, it closes them when it runs
        again. A forked process closes nothing: the connections belong to its parent.
        """
        self._closed = True
        if self._process == os.getpid():
            await close_on_loop(self._loop, partial(self._close, close_first))

    async def _close(self, close_first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if running_loop() is None:
            return  # asyncio's transports can only be closed on an event loop
        try:
            await import_in_thread()  # a client that sent nothing has not imported anyio
        finally:
            await self._close_shielded(close_first)

    async def _close_shielded(self, close_first: Callable[[], Coroutine[Any, Any, None]]) -> None:
        from anyio import move_on_after  # imported beside aiohttp, in a thread: see import_in_thread

        with move_on_after(CLOSE_TIMEOUT, shield=True):
            try:
                await close_first()
            finally:
                await self._close_connections()

    async def _close_connections(self) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            if loop is not running_loop():
                loop.call_soon_threadsafe(self._close_soon)
                return
            self._wake_waiters()
        if self._sessions is not None:
            await self._sessions.close()

    def _wake_waiters(self) -> None:
        """Cancel the pauses and the queued requests."""
        self._closing.set()
        for event in self._awaited:
            event.set()
        self._limiter.close(errors.ClientClosedError("this client was closed before its request went out"))
        if self._shared is not None:
            self._shared.close()

    def _close_soon(self) -> None:
        self._wake_waiters()
        if self._sessions is not None:
            self._close_task = asyncio.ensure_future(self._sessions.close())


async def _check_and_send(
    check: Callable[[], Awaitable[None]], send_once: SendOnce, request: Request, read: Callable[[RawResponse], T]
) -> T:
    await check()
    return await send_once(request, read)


async def _send_with_event(
    emit: Emit,
    attempt: int,
    send_once: SendOnce,
    request: Request,
    read: Callable[[RawResponse], T],
) -> T:
    """Send one attempt and emit RequestFinished."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    responses: list[RawResponse] = []
    failure: BaseException | None = None
    try:
        return await send_once(request, partial(_record_and_read, responses, read))
    except (errors.FloraError, asyncio.CancelledError) as error:
        failure = error
        raise
    finally:
        answer = responses[-1] if responses else None
        emit(
            RequestFinished(
                method=request.method,
                path=request.template,
                status=answer.status if answer else None,
                error=type(failure).__name__ if failure else None,
                seconds=loop.time() - started,
                attempt=attempt,
                request_id=answer.request_id if answer else None,
            )
        )
        failure = None  # it refers to this frame


def _record_and_read(responses: list[RawResponse], read: Callable[[RawResponse], T], answer: RawResponse) -> T:
    responses.append(answer)
    return read(answer)


def _error_label(failure: errors.FloraError) -> str:
    # The text of an error can quote prompts and signed URLs, so it is not logged.
    status = f" {failure.status}" if isinstance(failure, errors.APIError) else ""
    return f"{type(failure).__name__}{status}"


def _final_error(failures: list[errors.FloraError]) -> errors.FloraError:
    """Return the error of a request that will not be sent again."""
    last = failures[-1]
    if isinstance(last, errors.APIError | errors.APIConnectionError | errors.ResponseDecodeError):
        last.attempts = len(failures)
    if last.run_id is None:  # an earlier response, which could not be decoded, named the started run
        last.run_id = next((failure.run_id for failure in failures if failure.run_id), None)
    return last
