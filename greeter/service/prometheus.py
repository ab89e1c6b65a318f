"""``--metrics ENDPOINT``: serve Counters as Prometheus text over HTTP.

Invariants:

- The metrics show the counters of the server. Nothing is counted, stored or measured for them alone.
- Without a scrape, they cost nothing.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, TypeAlias

from greeter import __version__
from greeter.core.stats import BOUNDS
from greeter.errors import MissingExtra
from greeter.service.httpd import TEXT, HTTPServer, Response, serve_http
from greeter.service.snapshot import Counters

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from greeter.core.endpoint import Endpoint

# The version is that of the text format.
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"

Collect: TypeAlias = Callable[[], Awaitable[Counters]]


async def serve_metrics(
    endpoint: Endpoint, collect: Collect, *, stopping: Callable[[], bool], unix_mode: int | None = None
) -> HTTPServer:
    """Serve ``/metrics`` and ``/healthz`` over HTTP.

    ``/healthz`` is 200 and "ok", or 503 and "stopping" for load balancers to send clients elsewhere.

    Args:
        endpoint: Where to listen.
        collect: Awaited for each scrape; what it returns is rendered.
        stopping: Called for each health check; True makes it 503.
        unix_mode: The mode of a Unix socket's file.

    Returns:
        The running server.

    Raises:
        MissingExtra: prometheus-client is not installed. (Importing this module raises it without h11.)
        ListenFailed: ``endpoint`` cannot be listened on.
    """
    render(Counters())  # load prometheus-client now, and raise MissingExtra now, not at the first scrape

    async def metrics() -> Response:
        return Response(EXPOSITION, render(await collect()))

    async def health() -> Response:
        if stopping():
            return Response(TEXT, b"stopping\n", HTTPStatus.SERVICE_UNAVAILABLE)
        return Response(TEXT, b"ok\n")

    return await serve_http(endpoint, {"/metrics": metrics, "/healthz": health}, unix_mode=unix_mode)


def render(snapshot: Counters) -> bytes:
    """Render a snapshot in the Prometheus text format 0.0.4.

    Args:
        snapshot: The counters.

    Returns:
        The text, encoded.

    Raises:
        MissingExtra: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.registry import Collector
    except ImportError:
        raise MissingExtra("--metrics", "metrics") from None

    class SnapshotCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            return _metrics(snapshot)

    registry = CollectorRegistry()
    registry.register(SnapshotCollector())
    return generate_latest(registry)


def _metrics(now: Counters) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for name, value, text in (
        ("accepted", now.accepted, "Connections taken from the accept queue."),
        ("greeted", now.greeted, "Clients whose greeting and end of stream the kernel has taken."),
        ("sent_bytes", now.bytes_sent, "Bytes of the greetings of greeted clients."),
        ("linger_timeouts", now.linger_timeouts, "Greeted clients aborted at the linger deadline."),
        ("accept_errors", now.accept_errors, "Failures to accept, for lack of descriptors or memory."),
        ("drains", now.drains, "Completed drains."),
        ("worker_restarts", now.worker_restarts, "Worker processes that died and were replaced."),
    ):
        yield CounterMetricFamily(f"greeter_{name}", text, value=value)
    for name, label, values, text in (
        ("failed", "class", now.failed, "Accepted connections that were not greeted, by class."),
        ("rejected", "reason", now.rejected, "Accepted connections that were rejected, by reason."),
        ("reloads", "result", now.reloads, "Reloads of the configuration, by result."),
    ):
        family = CounterMetricFamily(f"greeter_{name}", text, labels=[label])
        for key, value in values.items():
            family.add_metric([key], value)
        yield family
    text = "Connections that are open: being greeted or lingering."
    yield GaugeMetricFamily("greeter_open_connections", text, value=now.open)
    text = "Greeted clients that have not closed yet."
    yield GaugeMetricFamily("greeter_lingering_connections", text, value=now.lingering)
    if now.certificate_expiry is not None:
        text = "Expiry of the TLS certificate in use, in seconds since the epoch."
        yield GaugeMetricFamily("greeter_certificate_expiry_seconds", text, value=now.certificate_expiry)
    times = now.greeting_time
    buckets = [*map(str, BOUNDS), "+Inf"]
    yield HistogramMetricFamily(
        "greeter_greeting_seconds",
        "Time from accept until the kernel had the whole greeting.",
        buckets=list(zip(buckets, accumulate(times.counts), strict=True)),
        sum_value=times.micros / 1e6,
    )
    info = GaugeMetricFamily(
        "greeter_build_info", "Always 1; the labels say what runs.", labels=["version", "python"]
    )
    info.add_metric([__version__, platform.python_version()], 1)
    yield info
