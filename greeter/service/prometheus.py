"""``--metrics ENDPOINT``: metrics, health checks and a status page over HTTP.

Invariants:

- The metrics show the counters of the server. Nothing is counted, stored or measured for them alone.
- Without a request, they cost nothing. Workers are asked when a request asks.
"""

from __future__ import annotations

import asyncio
import platform
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, Protocol

from greeter import __version__
from greeter.core.stats import BOUNDS, DATAGRAM_FAILURES, DATAGRAM_REJECTIONS
from greeter.errors import MissingExtra
from greeter.service.httpd import TEXT, HTTPServer, Response, serve_http
from greeter.service.snapshot import Counters
from greeter.service.status import page_handlers, status_response

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from greeter.core.endpoint import Endpoint

# The version is that of the text format.
EXPOSITION = "text/plain; version=0.0.4; charset=utf-8"


class Monitored(Protocol):
    """What is asked of a service. ServiceProcess documents it."""

    @property
    def addresses(self) -> tuple[str, ...]: ...

    @property
    def uptime(self) -> float: ...

    @property
    def worker_pids(self) -> tuple[int, ...]: ...

    @property
    def stopping(self) -> bool: ...

    async def snapshot(self) -> Counters: ...

    async def unready(self) -> str: ...

    async def not_alive(self) -> str: ...


async def serve_metrics(
    endpoint: Endpoint, service: Monitored, *, unix_mode: int | None = None
) -> HTTPServer:
    """Serve ``/metrics``, ``/healthz``, ``/livez`` and the status page over HTTP.

    ``/healthz`` is readiness: 200 and "ok" while clients are served, else 503 and the reason. A load balancer
    sends clients elsewhere then. ``/livez`` is liveness: 503 and the reason only if a restart is the remedy.

    Args:
        endpoint: Where to listen.
        service: The service to show.
        unix_mode: The mode of a Unix socket's file.

    Returns:
        The running server.

    Raises:
        MissingExtra: prometheus-client is not installed. (Importing this module raises it without h11.)
        ListenFailed: ``endpoint`` cannot be listened on.
    """
    render(Counters())  # load prometheus-client now, and raise MissingExtra now, not at the first scrape

    async def metrics() -> Response:
        snapshot = await service.snapshot()
        # In a thread: to count its descriptors, the kernel lists them, which takes 30 ms for 18,000.
        text = await asyncio.to_thread(render, snapshot, ("self", *service.worker_pids))
        return Response(EXPOSITION, text)

    async def problem() -> str:
        return "stopping" if service.stopping else await service.unready()

    async def ready() -> Response:
        return _health(await problem())

    async def alive() -> Response:
        return _health("" if service.stopping else await service.not_alive())  # a stop has its own deadline

    async def status() -> Response:
        return status_response(
            await service.snapshot(),
            addresses=service.addresses,
            uptime=service.uptime,
            problem=await problem(),
        )

    pages = {"/metrics": metrics, "/healthz": ready, "/livez": alive, "/status.json": status}
    return await serve_http(endpoint, {**pages, **page_handlers()}, unix_mode=unix_mode)


def _health(problem: str) -> Response:
    if problem:
        return Response(TEXT, f"{problem}\n".encode(), HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(TEXT, b"ok\n")


def render(snapshot: Counters, processes: Iterable[int | str] = ()) -> bytes:
    """Render a snapshot in the Prometheus text format 0.0.4.

    Args:
        snapshot: The counters.
        processes: The processes of the service, as in ``process_metrics``.

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
    from greeter.service.process_metrics import process_metrics

    class SnapshotCollector(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _metrics(snapshot)
            yield from process_metrics(processes)

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
        (
            "paused_seconds",
            now.paused_micros / 1e6,
            "Time for which accepting was paused, at capacity or after such a failure.",
        ),
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
    yield from _datagram_metrics(now.datagrams, now.datagrams_dropped)
    for name, value, text in (
        ("open_connections", now.open, "Connections that are open: being greeted or lingering."),
        ("lingering_connections", now.lingering, "Greeted clients that have not closed yet."),
        ("max_connections", now.max_connections, "Open connections at which accepting pauses."),
        ("accepting", now.accepting > 0, "1 while clients are accepted, 0 while accepting is paused."),
        ("workers", now.workers, "Processes that are to serve."),
        ("workers_ready", now.workers_ready, "Processes that serve."),
    ):
        yield GaugeMetricFamily(f"greeter_{name}", text, value=value)
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


def _datagram_metrics(counts: Mapping[str, int], dropped: int) -> Iterator[Metric]:
    from prometheus_client.core import CounterMetricFamily

    counts = {**counts, "dropped": dropped}
    for name, text in (
        ("received", "Datagrams received."),
        ("dropped", "Datagrams that the kernel dropped before they were received."),
        ("greeted", "Datagrams whose greeting the kernel has taken."),
        ("sent_bytes", "Bytes of the greetings of greeted datagrams."),
        ("receive_errors", "Errors of receiving datagrams, those reported by ICMP included."),
    ):
        yield CounterMetricFamily(f"greeter_datagrams_{name}", text, value=counts.get(name, 0))
    for name, label, keys, text in (
        ("failed", "class", DATAGRAM_FAILURES, "Datagrams that were not greeted, by class."),
        ("rejected", "reason", DATAGRAM_REJECTIONS, "Datagrams that were rejected, by reason."),
    ):
        family = CounterMetricFamily(f"greeter_datagrams_{name}", text, labels=[label])
        for key in keys:
            family.add_metric([key], counts.get(f"{name}_{key}", 0))
        yield family
