"""What a connection that has ended adds to the figures of its worker.

Invariants:

- Its class is counted once, and its times are those of its events.
- ``first_byte``, ``service`` and ``response`` have what was answered; ``failed`` has every failure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.generator.load_connection import TRUNCATED
from greeter.loadtest.metrics.greeting_table import HEAD_BYTES
from greeter.loadtest.plan.outcome import ANSWERED, GREETED

if TYPE_CHECKING:
    from greeter.loadtest.generator.load_connection import LoadConnection
    from greeter.loadtest.metrics.run_metrics import RunMetrics
    from greeter.loadtest.metrics.timeline import Interval


def record(
    metrics: RunMetrics,
    interval: Interval,
    connection: LoadConnection,
    outcome: str,
    ended: float,
    open_loop: bool,
) -> None:
    """Count a connection.

    Args:
        metrics: the figures of the worker.
        interval: the current interval.
        connection: the connection.
        outcome: the class in which it has ended.
        ended: when it ended, in seconds of the clock of its other times.
        open_loop: False if service and response times are the same, so that one histogram is enough.
    """
    start = connection.start
    metrics.outcomes[outcome] += 1
    if data := connection.data:
        head = data if isinstance(data, bytes) and len(data) <= HEAD_BYTES else bytes(data[:HEAD_BYTES])
        metrics.greetings.heads[head] += 1
    if connection.connected:
        metrics.connect.record(connection.connected - start)
    if outcome in ANSWERED:
        if connection.first_byte:
            metrics.first_byte.record(connection.first_byte - start)
        interval.response.record(ended - connection.intended)
        if open_loop:
            metrics.service.record(ended - start)
    if outcome == GREETED:
        interval.greeted += 1
        if connection.error == TRUNCATED:
            metrics.truncated += 1
        elif connection.error:
            metrics.reset_after_greeting += 1
    else:
        interval.failed += 1
        interval.errors[outcome] = interval.errors.get(outcome, 0) + 1
        metrics.failed.record(ended - start)
        if connection.error_text:
            metrics.count_reason(outcome, connection.error_text)
