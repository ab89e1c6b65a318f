"""Whatever a test of the server does, its connections change their states as connection.py draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greeter.core.admission import Admission
from greeter.server.connection import TRANSITIONS, Connection, State
from greeter.server.timeouts import TimeoutQueue
from tests.conftest import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from greeter.server import Server

# The states that a connection went through, by name, in order.
Walk = list[str]


@pytest.fixture(autouse=True)
def walks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Walk]]:
    """The walks of all connections of a test. At its end, a change that is not drawn is an error."""
    slot = vars(Connection)["state"]
    walks: list[Walk] = []
    current: dict[int, Walk] = {}  # by id, because a reference would keep a connection alive
    wrong: list[str] = []

    def change(connection: Any, new: State) -> None:
        if new is State.ACCEPTED:  # a new connection
            walks.append([])
            current[id(connection)] = walks[-1]
        elif new is not connection.state and new not in TRANSITIONS[connection.state]:
            wrong.append(f"{connection} -> {new.name}")
        walk = current[id(connection)]
        if walk[-1:] != [new.name]:
            walk.append(new.name)
        slot.__set__(connection, new)

    monkeypatch.setattr(Connection, "state", property(slot.__get__, change))
    yield walks
    assert wrong == []


@pytest.fixture
def give_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], None]:
    """Returns what gives a client that comes from then on PATIENCE more than the greet timeout.

    The deadlines of those that are there stay. So they are cut off, and a client that must not be is not
    judged by how long this process takes for it.
    """
    start = TimeoutQueue.start

    def give(server: Server) -> None:
        queues = _greet_deadlines(server)

        def start_later(queue: TimeoutQueue[Any], item: Any, now: float | None = None) -> None:
            if any(queue is each for each in queues):
                now = server.get_loop().time() + PATIENCE
            start(queue, item, now)

        monkeypatch.setattr(TimeoutQueue, "start", start_later)

    return give


def let_deadlines_come(server: Server) -> None:
    """The greet deadline of each client that waits is now, whatever its greet timeout."""
    now = server.get_loop().time()
    for queue in _greet_deadlines(server):
        for item in list(queue):
            queue.discard(item)
            queue.start(item, now - queue.seconds)
        queue.set_timer()


def _greet_deadlines(server: Server) -> list[TimeoutQueue[Any]]:
    """Those of connections, and those of datagrams."""
    datagrams = [] if server._datagrams is None else [server._datagrams._answers.waiting]
    return [server._tracker.ungreeted, *datagrams]


class Clock:
    """A clock that shows ``now``, which a test sets; ``real`` is the time that it has replaced last."""

    now = real = 0.0


@pytest.fixture
def rate_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of ``rate_per_ip``, so that time passes when a test says so."""
    clock, admit = Clock(), Admission.admit

    def admit_now(admission: Admission, host: str, now: float) -> Any:
        clock.real = now
        return admit(admission, host, clock.now)

    monkeypatch.setattr(Admission, "admit", admit_now)
    return clock
