"""HTTP: probes for Kubernetes, metrics for Prometheus, and the status for programs and people. It is read-only.

`health` decides whether a replica is live and ready, and its docstring gives the rules.

Guarantees
----------
- GET and HEAD only. No path changes anything or takes a parameter.
- `/metrics`, `/status.json` and `/` together cost the database at most one set of queries every FRESH_SECONDS, however
  many clients ask, on one short-lived session. They cost nothing if no client asks.
- No client occupies a thread for long. A request waits for the database for at most WAIT_SECONDS, and at most
  MAX_WAITING requests wait. The server has more threads than that, so the probes are always answered.
- No client occupies a connection for long. A connection carries one request and ends after CONNECTION_SECONDS. At the
  limit, the oldest connection without a complete request is closed. Heads and bodies are bounded in size.
- The page escapes every value, has no script and loads nothing.

It must not decide anything, write anything, open database sessions (it is given callables), read settings, or log the
mistakes of clients.
"""

from controller.web.health import Vitals
from controller.web.routes import Identity, Routes
from controller.web.server import HttpServer
from controller.web.status_cache import Snapshot, StatusCache

__all__ = [
    "HttpServer",
    "Identity",
    "Routes",
    "Snapshot",
    "StatusCache",
    "Vitals",
]
