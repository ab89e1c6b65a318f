"""The ``process_*`` metrics of the whole service: those of prometheus-client, summed over its processes.

By convention (https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics) they describe the
process that is scraped, and dashboards know them by these names. A scrape of this service is about all of its
processes, so they are sums, without a label for each worker: workers are replaced.

Invariants:

- ``process_cpu_seconds_total`` never decreases: the kernel adds the time of a child that has exited to that
  of its parent, when the parent has waited for it (getrusage(2), RUSAGE_CHILDREN).
- ``process_start_time_seconds`` is that of the first process, which lives as long as the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

try:
    import resource
except ImportError:  # pragma: no cover  # not a Unix
    resource = None  # type: ignore[assignment]  # the function below checks for None

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.metrics_core import Metric


def process_metrics(processes: Iterable[int | str]) -> Iterator[Metric]:
    """Read the metrics of processes from /proc. Where there is none, there are no metrics.

    Args:
        processes: Process IDs, first "self". A process that has exited counts nothing.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.process_collector import ProcessCollector

    sums: dict[str, float] = {}
    texts: dict[str, tuple[str, bool]] = {}
    for process in map(str, processes):
        for metric in ProcessCollector(pid=process.__str__, registry=None).collect():
            name, value = metric.name, metric.samples[0].value
            texts[name] = (metric.documentation, metric.type == "counter")
            if name != "process_start_time_seconds" or name not in sums:
                sums[name] = sums.get(name, 0.0) + value
    if resource is not None and "process_cpu_seconds" in sums:
        exited = resource.getrusage(resource.RUSAGE_CHILDREN)
        sums["process_cpu_seconds"] += exited.ru_utime + exited.ru_stime
    for name, (text, is_counter) in texts.items():
        family = CounterMetricFamily if is_counter else GaugeMetricFamily
        yield family(name, text, value=sums[name])
