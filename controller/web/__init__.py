"""HTTP: probes for Kubernetes, metrics for Prometheus, the status for programs and people. It only shows.

Live and ready
--------------
Both probes answer 200 `ok`, or 503 with one line for each failed check. They use only what the process knows, never the
database: they cost nothing at rest, and they answer while the database hangs.

`/livez`: the elector's loop turns, and no thread that must run has ended. It says nothing about the database, because
restarting a process doesn't repair a database. Every wait in the elector's loop is bounded: after joining, by the lock
session's reply timeout (JOINED_SECONDS is far above it); before, by the timeouts of connecting and of name servers
(CONNECTING_LIVENESS_SECONDS is above those). A late restart does no harm: a leader that hangs stops believing in its
leadership at its deadline, seconds earlier, and its successor doesn't wait for the restart.

`/readyz`: the replica could lead. It isn't draining; its elector has joined the election, as standby or leader; and the
elector's loop has turned within the lock session's timeout. This proves that the database can be reached and that its
schema is supported. Joining opens the lock session and checks the schema on it. After that, a standby tries the lock in
every round and a leader pings, each with a bounded reply. The first failure closes the session; the elector is then
`connecting`, which is not ready, and the answer says why. The server ends a session that is silent for longer than its
timeout. Leadership plays no part: a standby is as ready as a leader.

The lock session proves nothing about the workers if they use another connection string (DATABASE_DIRECT_URL is set).
The replica is then ready only after it has read the status once through the workers' connection string. A rollout thus
stops at a wrong address, and a standby doesn't query the database again.

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
