from __future__ import annotations

import json

from greeter.loadtest.metrics.run_metrics import HISTOGRAMS, RunMetrics, merged
from greeter.loadtest.metrics.timeline import Interval, Timeline
from greeter.loadtest.plan.outcome import FAILURE_CLASSES, GREETED


def metrics(worker: int) -> RunMetrics:
    m = RunMetrics(timeline=Timeline(1.0))
    for position, name in enumerate(HISTOGRAMS):
        getattr(m, name).record((1 + position + 10 * worker) / 1000)
    m.outcomes[GREETED] = 10 * worker
    m.outcomes["empty"] = worker
    m.count_reason("connect_error", "No route to host")
    m.timeline.add(Interval(1.0, attempted=11 * worker, greeted=10 * worker, failed=worker, open=worker))
    m.unstarted, m.cut_off, m.peak_open = 2, 3, 4
    m.reset_after_greeting, m.closed_while_held = 5, 6
    m.greetings.heads[b"220 ready\r\n"] += 1
    m.truncated, m.unstarted_with_free_slots, m.stopped = 7, 1, 0.25 * worker
    m.elapsed, m.scheduled = 1.5 + worker, 1.0
    m.cpu_percent = [10.0 * worker]
    return m


def test_merging_adds_all_figures() -> None:
    whole = merged([metrics(1), metrics(2)])
    assert whole.attempted == 33
    assert whole.outcomes[GREETED] == 30
    assert whole.reasons == {"connect_error": {"No route to host": 2}}
    assert [getattr(whole, name).total for name in HISTOGRAMS] == [2] * len(HISTOGRAMS)
    assert whole.timeline.rows()[1]["attempted"] == 33
    assert (whole.unstarted, whole.cut_off, whole.peak_open) == (4, 6, 8)
    assert (whole.reset_after_greeting, whole.closed_while_held) == (10, 12)
    assert (whole.elapsed, whole.scheduled) == (3.5, 1.0)
    assert (whole.truncated, whole.unstarted_with_free_slots, whole.stopped) == (14, 2, 0.5)
    assert whole.greetings.to_json() == {"texts": [{"text": "220 ready", "count": 2}], "others": 0}
    assert whole.cpu_percent == [10.0, 20.0]
    assert not whole.interrupted
    part = metrics(1)
    part.interrupted = True
    assert merged([metrics(1), part]).interrupted


def test_figures_survive_json() -> None:
    one = metrics(3)
    one.interrupted = True
    back = RunMetrics.from_json(json.loads(json.dumps(one.to_json())))
    assert back.to_json() == one.to_json()
    for name in HISTOGRAMS:
        assert getattr(back, name).counts == getattr(one, name).counts


def test_every_class_has_a_count_from_the_beginning() -> None:
    assert RunMetrics().outcomes == dict.fromkeys((GREETED, *FAILURE_CLASSES), 0)


def test_distinct_reasons_are_limited() -> None:
    m = RunMetrics()
    for n in range(100):
        m.count_reason("tls_error", f"reason {n}")
    assert len(m.reasons["tls_error"]) == 21
    assert sum(m.reasons["tls_error"].values()) == 100
