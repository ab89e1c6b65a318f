"""A part of the fault matrix (tests/faults): each fallible call of a service fails once, with each error.

``python -m tests.faults`` runs the whole matrix, which takes too long for the suite.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.faults.errors import ERRORS
from tests.faults.matrix import Matrix, Row, spread
from tests.faults.services import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Services that run at the same time: each of them waits most of its time.
JOBS = 6
# Of so many rows of the whole matrix, one is run. The numbers are prime, so that every call has its turn.
SHORT, LONG, LONG_OF_WORKERS = 227, 29, 59
# Rows that have failed once, as regular expressions: their first row each runs in any case.
REGRESSIONS = (
    "direct asyncio epoll_add .* ENOSPC",  # a listening socket that cannot be watched
    "direct asyncio getsockname 1 ENOBUFS",  # a line of error that did not say what failed
    "direct asyncio poll .* ENOMEM",  # a log that cannot be polled
    "direct asyncio socketpair 1 EMFILE",  # an event loop that cannot be made
    "direct uvloop eventfd 1 ENOMEM",
    "direct uvloop socketpair 1 EMFILE",
    "direct uvloop socketpair 2 ENFILE",  # ... or that cannot be closed
    "streams asyncio dup .* EMFILE",
    "streams asyncio epoll_add 3 ENOMEM",  # a connection that asyncio cannot watch
    "streams uvloop listen 2 EADDRINUSE",  # an error that uvloop keeps to itself
    "streams uvloop getsockname 6 ENOBUFS",  # an accepted socket that cannot be asked for its address
    "datagrams-any asyncio socket 1 EMFILE",  # one address was left out
    "watched asyncio socket 1 ENFILE",  # systemd cannot be notified
    "workers asyncio epoll_add.other 3 ENOMEM",  # a worker whose exit cannot be watched
    "workers asyncio epoll_add.pair 2 ENOMEM",  # a worker that cannot be heard
    "workers asyncio open 20 ELOOP",  # a worker that cannot read a certificate
)


def survive(matrix: Matrix, rows: list[Row], record_property: Callable[[str, object], None]) -> None:
    """Run some rows: each fault is survived, and nearly each is injected."""
    results = list(matrix.run(rows))
    failed = [result for result in results if result.problems]
    record_property("faults", (len(results) - len(failed), len(results)))
    assert not failed, "\n".join(str(result) for result in failed)
    reached = sum(bool(result.record.hit_in) for result in results)
    assert reached > len(rows) * 0.8, f"{reached} of {len(rows)} faults were injected"


def known(matrix: Matrix, kind: str = "") -> list[Row]:
    """The rows of REGRESSIONS that are about ``kind``."""
    rows = list(matrix.rows())
    names = [name for name in REGRESSIONS if (name.partition(" ")[0] == "workers") == (kind == "workers")]
    found = [[row for row in rows if re.fullmatch(name, str(row))][:1] for name in names]
    assert all(found), [name for name, rows in zip(names, found, strict=True) if not rows]
    return [row for rows in found for row in rows]


@pytest.fixture(scope="module")
def matrix(shim: Path) -> Iterator[Matrix]:
    """The rows of all kinds of service but workers, which take ten times as long."""
    with Matrix(shim, JOBS, [kind for kind in KINDS if kind != "workers"]) as matrix:
        yield matrix


def test_rows_that_have_failed_once_are_survived(
    matrix: Matrix, record_property: Callable[[str, object], None]
) -> None:
    survive(matrix, known(matrix), record_property)


def test_a_part_of_the_matrix_is_survived(
    matrix: Matrix, record_property: Callable[[str, object], None]
) -> None:
    survive(matrix, list(matrix.rows())[::SHORT], record_property)


@pytest.mark.thorough
@pytest.mark.one_interpreter
def test_a_larger_part_of_the_matrix_is_survived(
    matrix: Matrix, record_property: Callable[[str, object], None]
) -> None:
    survive(matrix, list(matrix.rows())[1::LONG], record_property)


@pytest.mark.thorough
@pytest.mark.one_interpreter
def test_a_part_of_the_rows_of_workers_is_survived(
    shim: Path, matrix: Matrix, record_property: Callable[[str, object], None]
) -> None:
    with Matrix(shim, JOBS // 2, ["workers"]) as workers:
        rows = list(workers.rows())
        survive(workers, [*known(workers, "workers"), *rows[::LONG_OF_WORKERS]], record_property)
        made = {row.fault.call for row in (*rows, *matrix.rows())}
    assert made == set(ERRORS), f"never made: {set(ERRORS) - made}"


@pytest.mark.parametrize(
    ("count", "most", "numbers"),
    [(0, 5, []), (1, 5, [1]), (5, 5, [1, 2, 3, 4, 5]), (9, 5, [1, 3, 5, 7, 9]), (100, 3, [1, 50, 100])],
)
def test_the_calls_that_are_hit_are_spread_evenly(count: int, most: int, numbers: list[int]) -> None:
    assert spread(count, most) == numbers
