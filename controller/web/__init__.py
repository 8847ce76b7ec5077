"""HTTP: probes for Kubernetes, metrics for Prometheus, status for programs and for people. Shows, and changes nothing.

What is alive and what is ready
-------------------------------
Both answer 200 `ok`, or 503 with one line a failing check. Both are computed from what the process knows already: a
probe never touches the database, so probes cost nothing at rest and answer while the database hangs.

`/livez`, the loops turn: the elector's loop has come round lately, and no thread that must run has ended. Never the
database: restarting a process does not repair one. Every wait in that loop is bounded, by the lock session's reply
timeout once it has joined (JOINED_SECONDS is well above), and before by time-outs of connecting and of name servers
(CONNECTING_SECONDS is above those). A slow answer to this probe harms nobody: a leader that hangs has stopped believing
in itself by its deadline, seconds before, and its successor does not wait for the restart.

`/readyz`, it could lead if it had to: it is not draining, and its elector has *joined* the election (it is standby or
leader) and has come round within the lock session's own timeout. That proves the database and the schema: joining
means that the lock session was opened and that the schema was checked on it; on every round a standby tries the lock
and a leader pings, each with a bounded reply, and the first of these that fails closes the session, so that the
elector is `connecting`, which is not ready and says why. A session silent for longer than its timeout has been ended by
the server. Leadership has no part in it: a standby is as ready as a leader.
Where the workers reach the database by another address than the lock session (DATABASE_DIRECT_URL), the lock session
proves nothing about theirs. Then a replica is ready only once it has read the status by the workers' address, once: so
a rollout stops at an address that is wrong, and a standby asks nothing afterwards.

What it guarantees
------------------
- GET and HEAD only; no path changes anything, and none takes a parameter.
- `/metrics`, `/status.json` and `/` cost the database at most one set of queries each FRESH_SECONDS, however many ask,
  one at a time, on a session of its own that is closed afterwards; none when nobody asks.
- No client keeps a thread: a request that waits for the database waits for WAIT_SECONDS, and only MAX_WAITING do, of
  more threads than that; the others answer the probes.
- No client keeps a connection: each carries one request and ends after CONNECTION_SECONDS at most; when there are too
  many, the oldest that has sent no complete request makes room. Heads and bodies are bounded in size.
- Everything on the page is escaped; it needs no script and nothing from elsewhere.

What it must not do: decide anything, write anything, know PostgreSQL (it is given callables), read settings, or let a
client's mistake become a line in the log.
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
