"""HTTP, read-only, on two addresses.

- The HTTP port: probes for Kubernetes, metrics for Prometheus, the public status (`routes`). Anyone may reach it, so
  none of its answers names a customer.
- The operator's pages (`operator_routes`), on loopback: they name customers.

`health` decides whether a replica is live and ready, and its docstring gives the rules.

Guarantees
----------
- GET and HEAD only. No path changes anything.
- `/metrics`, `/status.json` and `/` together cost the database at most one set of queries every FRESH_SECONDS, however
  many clients ask, on one short-lived session. They cost nothing if no client asks. The same holds for the operator's
  overview. An explanation costs one short session, and at most MAX_EXPLAINING are read at once.
- No client occupies a thread for long. A request waits for the database for at most WAIT_SECONDS, and at most
  MAX_WAITING requests wait. The server has more threads than that, so the probes are always answered.
- No client occupies a connection for long. A connection carries one request and ends after CONNECTION_SECONDS. At the
  limit, the oldest connection without a complete request is closed. Heads and bodies are bounded in size.
- The pages escape every value, have no script and load nothing.

This package must not decide anything, write anything, open database sessions (it receives callables), read settings, or
log clients' mistakes.
"""

from controller.web.health import Vitals
from controller.web.operator_routes import OperatorRoutes
from controller.web.routes import Routes
from controller.web.server import HttpServer
from controller.web.status_cache import Snapshot, StatusCache
from controller.web.wsgi import Identity

__all__ = [
    "HttpServer",
    "Identity",
    "OperatorRoutes",
    "Routes",
    "Snapshot",
    "StatusCache",
    "Vitals",
]
