"""The status page of ``--metrics``: a page that shows a Counters, and asks for it again every two seconds.

Invariants:

- The service records nothing for the page. The page keeps the history that it draws.
- The page asks no other host. Its content security policy allows its own script and style only, and no markup
  is made of what it is told: texts of the service are set as text.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING

from greeter import __version__
from greeter.service.httpd import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from greeter.service.httpd import Handler
    from greeter.service.snapshot import Counters

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FIELDS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
# The files of the page, with their paths.
FILES = {
    "/": ("status.html", "text/html; charset=utf-8"),
    "/status.css": ("status.css", "text/css; charset=utf-8"),
    "/status.js": ("status.js", "text/javascript; charset=utf-8"),
}
JSON = "application/json"


def page_handlers() -> dict[str, Handler]:
    """Return the handlers of the page's files, which are read now."""
    place = files("greeter.service") / "page"
    return {path: _file((place / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}


def _file(body: bytes, content_type: str) -> Handler:
    async def handler() -> Response:
        return Response(content_type, body, fields=FIELDS)

    return handler


def status_response(snapshot: Counters, *, addresses: Iterable[str], uptime: float, problem: str) -> Response:
    """Return the data of the page, as JSON.

    Args:
        snapshot: The counters.
        addresses: The addresses that the service listens on.
        uptime: Seconds since the start of the service.
        problem: Why no client is served; "" if clients are.
    """
    found = asdict(snapshot)
    workers = {"count": "workers", "ready": "workers_ready", "restarts": "worker_restarts"}
    status = {
        "version": __version__,
        "addresses": list(addresses),
        "problem": problem,
        "time": time.time(),
        "uptime_s": uptime,
        "accepting": found.pop("accepting") > 0,
        "sent_bytes": found.pop("bytes_sent"),
        "paused_s": found.pop("paused_micros") / 1e6,
        "workers": {key: found.pop(name) for key, name in workers.items()},
        **found,
    }
    status["greeting_time"] = {
        "count": sum(snapshot.greeting_time.counts),
        "sum_s": snapshot.greeting_time.micros / 1e6,
    }
    return Response(JSON, json.dumps(status).encode(), fields=FIELDS)
