"""The class of the connections of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greeter.loadtest.generator.datagram_connection import DatagramConnection
from greeter.loadtest.generator.load_connection import LoadConnection
from greeter.loadtest.generator.tls_load_connection import TLSLoadConnection

if TYPE_CHECKING:
    from greeter.loadtest.plan.plan import LoadPlan


def connection_class(plan: LoadPlan) -> type[LoadConnection]:
    """Return the class of the connections of ``plan``."""
    if plan.datagrams:
        return DatagramConnection
    return TLSLoadConnection if plan.tls else LoadConnection
