"""Spans and metrics on OpenTelemetry: ``Flora(on_event=telemetry.observe())``.

Each wait for a run is a span, ``flora.wait``, below the span that was current where it began; each look at the run is
one below it, ``flora.poll``, and the HTTP requests are below that, where opentelemetry-instrumentation-aiohttp-client
makes spans of them. A page of the history serves many waits: its look is below one, and linked to the others.

============================  ===============  =============================================================
metric                        unit             attributes
============================  ===============  =============================================================
``flora.client.requests``     ``{request}``    method, template, and status code or error
``flora.client.retries``      ``{retry}``      template, error
``flora.client.rate_limits``  ``{response}``   template
``flora.run.created``         ``{run}``        ``flora.type``
``flora.run.cost``            ``{USD}``        ``flora.type``; as charged, failed runs are given back later
``flora.run.wait``            ``s``            ``flora.status`` or error
``flora.run.polls``           ``{look}``       ``flora.status`` or error
``flora.run.lag``             ``s``            ``flora.status``
============================  ===============  =============================================================

Method, template, status code and error are ``http.request.method``, ``url.template``, ``http.response.status_code`` and
``error.type``. All have few values; run ids are on spans only.
"""

from __future__ import annotations

from contextvars import ContextVar

from flora_async import errors
from flora_async._version import __version__
from flora_async.events import (
    Event,
    OnEvent,
    PollFinished,
    PollStarted,
    RateLimited,
    RequestFinished,
    RetryScheduled,
    RunCreated,
    WaitFinished,
    WaitStarted,
)

try:
    from opentelemetry import context, metrics, trace
except ImportError:
    raise errors.ConfigurationError("telemetry needs OpenTelemetry: pip install 'flora-async[otel]'") from None

__all__ = ["observe"]

OTHER = "_OTHER"
"""What OpenTelemetry says where a value is none of a known few."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
TEMPLATES = frozenset({"/generate", "/generations", "/runs/{id}", "/models", "/projects", "/workspaces"})
SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
LOOKS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


def observe(
    *, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
) -> OnEvent:
    """Give an ``on_event`` that keeps spans and metrics, for one client or many. Providers default to the global ones.

    Whoever wants the events as well calls it from a function of their own.
    """
    spans = _Spans(trace.get_tracer("flora_async", __version__, tracer_provider))
    numbers = _Metrics(metrics.get_meter("flora_async", __version__, meter_provider))

    def on_event(event: Event) -> None:
        spans.hear(event)
        numbers.hear(event)

    return on_event


class _Spans:
    """A span for each wait and each look, current in the context in which that is told."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._waits: dict[str, dict[int, trace.Span]] = {}
        """By run."""
        self._look: ContextVar[trace.Span | None] = ContextVar("flora.poll", default=None)

    def hear(self, event: Event) -> None:
        match event:
            case WaitStarted():
                span = self._begin("flora.wait", {"flora.run_id": event.run_id})
                self._waits.setdefault(event.run_id, {})[event.wait] = span
            case PollStarted():
                about: dict[str, str | int] = {"flora.how": event.how, "flora.runs": len(event.run_ids)}
                self._look.set(self._begin("flora.poll", about, event.run_ids))
            case PollFinished():
                look = self._look.get()
                if look is not None:
                    look.end()
            case WaitFinished():
                self._end(event)
            case _:
                pass

    def _begin(self, name: str, attributes: dict[str, str | int], run_ids: tuple[str, ...] = ()) -> trace.Span:
        parent = trace.get_current_span().get_span_context()
        waits = (wait.get_span_context() for run_id in run_ids for wait in self._waits.get(run_id, {}).values())
        links = [trace.Link(wait) for wait in waits if wait != parent]
        span = self._tracer.start_span(name, attributes=attributes, links=links)
        context.attach(trace.set_span_in_context(span))  # for as long as the context lasts: it is the wait's or look's
        return span

    def _end(self, event: WaitFinished) -> None:
        waits = self._waits.get(event.run_id, {})
        span = waits.pop(event.wait, None)
        if not waits:
            self._waits.pop(event.run_id, None)
        if span is None:
            return
        said = {
            "flora.polls": event.polls,
            "flora.status": event.status,
            "flora.lag": event.lag,
            "flora.charged_cost": event.charged_cost,
            "error.type": event.error,
        }
        span.set_attributes({name: value for name, value in said.items() if value is not None})
        if event.status == "failed" or event.error not in (None, "CancelledError"):
            span.set_status(trace.StatusCode.ERROR, event.error or "the run has failed")
        span.end()


class _Metrics:
    """Sums and distributions, by attributes that have few values."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._requests = meter.create_counter("flora.client.requests", "{request}", "HTTP requests, each attempt")
        self._retries = meter.create_counter("flora.client.retries", "{retry}", "Requests sent again")
        self._limits = meter.create_counter("flora.client.rate_limits", "{response}", "Answers 429")
        self._created = meter.create_counter("flora.run.created", "{run}", "Runs that FLORA has accepted")
        self._cost = meter.create_counter("flora.run.cost", "{USD}", "Charged as runs were accepted")
        self._wait = _histogram(meter, "flora.run.wait", "s", "How long a run was waited for", SECONDS)
        self._looks = _histogram(meter, "flora.run.polls", "{look}", "Requests that asked for a run", LOOKS)
        self._lag = _histogram(meter, "flora.run.lag", "s", "From a run's end until it was known", SECONDS)

    def hear(self, event: Event) -> None:
        match event:
            case RequestFinished():
                method = event.method if event.method in METHODS else OTHER
                said: dict[str, str | int] = {"http.request.method": method, "url.template": _template(event.path)}
                if event.status is not None:
                    said["http.response.status_code"] = event.status
                if event.error is not None:
                    said["error.type"] = event.error
                self._requests.add(1, said)
            case RetryScheduled():
                self._retries.add(1, {"url.template": _template(event.path), "error.type": event.error})
            case RateLimited():
                self._limits.add(1, {"url.template": _template(event.path)})
            case RunCreated():
                self._created.add(1, {"flora.type": event.type})
                self._cost.add(event.charged_cost, {"flora.type": event.type})
            case WaitFinished():
                end = {"flora.status": event.status} if event.status else {"error.type": event.error or OTHER}
                self._wait.record(event.seconds, end)
                self._looks.record(event.polls, end)
                if event.lag is not None:
                    self._lag.record(event.lag, end)
            case _:
                pass


def _template(path: str) -> str:
    return path if path in TEMPLATES else OTHER


def _histogram(
    meter: metrics.Meter, name: str, unit: str, description: str, bounds: tuple[float, ...]
) -> metrics.Histogram:
    return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
