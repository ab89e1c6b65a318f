"""What a greeting over TLS 1.3 costs the server, with a full handshake for each client.

Invariants:
- All servers have the same ECDSA P-256 certificate and their default options, session tickets among them.
  No client ever resumes a session.
- HAProxy greets from Lua, because in TCP mode it has no other way.
- A client is greeted once it has every byte and close_notify.
"""

from __future__ import annotations

import ssl
from functools import partial
from typing import TYPE_CHECKING

from tests.benchmarks import servers
from tests.benchmarks.bench import greets
from tests.benchmarks.certificate import Certificate
from tests.benchmarks.costs import Effort, compare

if TYPE_CHECKING:
    from tests.benchmarks.bench import Bench
    from tests.benchmarks.figures import Table

LIMIT = 1.4
EFFORT = Effort(greetings=(1_000, 200), rounds=(9, 1), seconds=60)


def run(bench: Bench) -> list[Table]:
    load, certificate = bench.tls_load, bench.certificate
    if isinstance(load, str) or not isinstance(certificate, Certificate):
        bench.left_out["tls"] = str(load)
        return []
    contenders = [
        *servers.nginx(bench, certificate=certificate),
        *servers.haproxy(bench, certificate=certificate),
        *servers.greeters(bench, options=servers.tls_options(certificate)),
        *servers.patterns(bench, "--tls", str(certificate.cert), str(certificate.key)),
    ]
    context = ssl.create_default_context(cafile=certificate.cert)
    with bench.serving(contenders, probe=partial(greets, context=context)) as up:
        found = compare(bench, up, load, EFFORT)
    title = "server CPU per greeting over TLS 1.3, full handshakes, ECDSA P-256"
    return [found.table("tls", title, servers.direct_limits(bench, LIMIT))]
