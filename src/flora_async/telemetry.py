"""Spans and metrics on OpenTelemetry: ``Flora(on_event=telemetry.observe())``.

Each wait for a run is a span ``flora.wait``, a child of the span that was current when the wait began. Each poll is a
child of it, ``flora.poll``. HTTP requests are children of the poll if opentelemetry-instrumentation-aiohttp-client
creates spans for them. A page of the history serves several waits: its span is a child of one and links to the others.

============================  ===============  =============================================================
metric                        unit             attributes
============================  ===============  =============================================================
``flora.client.requests``     ``{request}``    method, template, and status code or error
``flora.client.retries``      ``{retry}``      template, error
``flora.client.rate_limits``  ``{response}``   template
``flora.run.created``         ``{run}``        ``flora.type``
``flora.run.cost``            ``{USD}``        ``flora.type``; as charged by the create, without later refunds
``flora.run.wait``            ``s``            ``flora.status`` or error
``flora.run.polls``           ``{poll}``       ``flora.status`` or error
``flora.run.lag``             ``s``            ``flora.status``
============================  ===============  =============================================================

Method, template, status code and error are ``http.request.method``, ``url.template``, ``http.response.status_code`` and
``error.type``. All attributes have few values; run ids are on spans only.
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
"""OpenTelemetry's attribute value for everything outside a known set."""
METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_PROJECT = "/workspaces/{id}/projects/{id}"
TEMPLATES = frozenset(
    {
        *("/generate", "/generations", "/runs/{id}", "/models", "/projects", "/workspaces", "/feedback"),
        *("/runs/technique", "/techniques", "/techniques/{id}", "/techniques/{id}/runs", "/technique-runs"),
        *("/techniques/{id}/runs/{id}", "/runs/action", "/actions", "/actions/{id}"),
        *("/assets", "/assets/{id}", "/assets/{id}/complete", "/assets/{id}/retry"),
        *("/projects/{id}", "/projects/{id}/nodes", "/projects/{id}/canvas", "/projects/{id}/actions"),
        *("/projects/{id}/actions/{id}/run", "/projects/{id}/assets/{id}/attach", "/workspaces/{id}/projects"),
        *(f"{_PROJECT}/graph", f"{_PROJECT}/nodes/run", f"{_PROJECT}/canvas/changeset"),
        *(f"{_PROJECT}/canvas/definition", "/workspaces/{id}/folders/{id}/projects"),
        *("/workspaces/{id}/library/folders", "/workspaces/{id}/library/folders/{id}"),
        *("/workspaces/{id}/library/folders/{id}/items", "/gateway/models", "/gateway/generate"),
    }
)
SECONDS_BOUNDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
POLL_BOUNDS = (1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100)


def observe(
    *, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
) -> OnEvent:
    """Return an ``on_event`` that records spans and metrics, for one client or several.

    The providers default to the global ones. To receive the events too, call the returned function from your own.
    """
    spans = _Spans(trace.get_tracer("flora_async", __version__, tracer_provider))
    measurements = _Metrics(metrics.get_meter("flora_async", __version__, meter_provider))

    def on_event(event: Event) -> None:
        spans.record(event)
        measurements.record(event)

    return on_event


class _Spans:
    """A span for each wait and each poll, current in the context of its first event."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._waits: dict[str, dict[int, trace.Span]] = {}
        """Spans by run id and wait number."""
        self._poll: ContextVar[trace.Span | None] = ContextVar("flora.poll", default=None)

    def record(self, event: Event) -> None:
        match event:
            case WaitStarted():
                span = self._start_span("flora.wait", {"flora.run_id": event.run_id})
                self._waits.setdefault(event.run_id, {})[event.wait] = span
            case PollStarted():
                attributes: dict[str, str | int] = {"flora.how": event.how, "flora.runs": len(event.run_ids)}
                self._poll.set(self._start_span("flora.poll", attributes, event.run_ids))
            case PollFinished():
                poll = self._poll.get()
                if poll is not None:
                    poll.end()
            case WaitFinished():
                self._end_wait(event)
            case _:
                pass

    def _start_span(self, name: str, attributes: dict[str, str | int], run_ids: tuple[str, ...] = ()) -> trace.Span:
        parent = trace.get_current_span().get_span_context()
        waits = (wait.get_span_context() for run_id in run_ids for wait in self._waits.get(run_id, {}).values())
        links = [trace.Link(wait) for wait in waits if wait != parent]
        span = self._tracer.start_span(name, attributes=attributes, links=links)
        context.attach(trace.set_span_in_context(span))  # Never detached: the wait or poll has a context of its own.
        return span

    def _end_wait(self, event: WaitFinished) -> None:
        waits = self._waits.get(event.run_id, {})
        span = waits.pop(event.wait, None)
        if not waits:
            self._waits.pop(event.run_id, None)
        if span is None:
            return
        attributes = {
            "flora.polls": event.polls,
            "flora.status": event.status,
            "flora.lag": event.lag,
            "flora.charged_cost": event.charged_cost,
            "error.type": event.error,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if event.status == "failed" or event.error not in (None, "CancelledError"):
            span.set_status(trace.StatusCode.ERROR, event.error or "the run failed")
        span.end()


class _Metrics:
    """Counters and histograms, by attributes with few values."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._requests = meter.create_counter("flora.client.requests", "{request}", "HTTP requests, each attempt")
        self._retries = meter.create_counter("flora.client.retries", "{retry}", "Retries of requests")
        self._limits = meter.create_counter("flora.client.rate_limits", "{response}", "Responses with status 429")
        self._created = meter.create_counter("flora.run.created", "{run}", "Runs that FLORA accepted")
        self._cost = meter.create_counter("flora.run.cost", "{USD}", "Cost that FLORA charged for accepted runs")
        self._wait = _create_histogram(meter, "flora.run.wait", "s", "Duration of waits for runs", SECONDS_BOUNDS)
        self._polls = _create_histogram(meter, "flora.run.polls", "{poll}", "Polls in a wait for a run", POLL_BOUNDS)
        self._lag = _create_histogram(meter, "flora.run.lag", "s", "Time from a run's end to its poll", SECONDS_BOUNDS)

    def record(self, event: Event) -> None:
        match event:
            case RequestFinished():
                method = event.method if event.method in METHODS else OTHER
                attributes: dict[str, str | int] = {
                    "http.request.method": method,
                    "url.template": _template(event.path),
                }
                if event.status is not None:
                    attributes["http.response.status_code"] = event.status
                if event.error is not None:
                    attributes["error.type"] = event.error
                self._requests.add(1, attributes)
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
                self._polls.record(event.polls, end)
                if event.lag is not None:
                    self._lag.record(event.lag, end)
            case _:
                pass


def _template(path: str) -> str:
    return path if path in TEMPLATES else OTHER


def _create_histogram(
    meter: metrics.Meter, name: str, unit: str, description: str, bounds: tuple[float, ...]
) -> metrics.Histogram:
    return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds)
