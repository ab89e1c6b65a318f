"""Whatever a test of the server does, its connections change their states as connection.py draws it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from greeter.server.connection import TRANSITIONS, Connection, State

if TYPE_CHECKING:
    from collections.abc import Iterator

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
