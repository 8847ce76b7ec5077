"""Decides whether a replica is live and ready, and if not, why. `Replica._vitals` supplies the facts.

Both probes answer 200 `ok`, or 503 with one line for each failed check. They use only what the process knows, never the
database, so they cost no query and answer even while the database hangs.

`/livez`: the elector's loop is running, and no required thread has ended. It says nothing about the database, because
restarting a process doesn't repair a database. Every wait in the elector's loop is bounded: after joining, by the lock
session's reply timeout (JOINED_SECONDS is far above it); before, by the timeouts of connecting and of name servers
(CONNECTING_LIVENESS_SECONDS is above those). A late restart does no harm: a leader that hangs stops believing in its
leadership at its deadline, seconds earlier, and its successor doesn't wait for the restart.

`/readyz`: the replica could lead. Its elector has joined the election, as standby or leader; and the elector's loop has
turned within the lock session's timeout. This proves that the database can be reached and that its
schema is supported. Joining opens the lock session and checks the schema on it. After that, a standby tries the lock in
every round and a leader pings, each with a bounded reply. The first failure closes the session; the elector is then
`connecting`, which is not ready, and the answer says why. The server ends a session that is silent for longer than its
timeout. Leadership plays no part: a standby is as ready as a leader.

A draining replica answers 200 with `draining` in the body. A terminating pod has already left its Service, so a failed
probe would only add warnings to each planned stop.

The lock session proves nothing about the workers if they use another connection string (DATABASE_DIRECT_URL is set).
The replica is then ready only after it has read the status once through the workers' connection string. So a wrong
address stops a rollout, and a standby doesn't query the database again.
"""

from dataclasses import dataclass
from typing import Final

from controller.election import Role
from controller.errors import one_line

#: The longest round of an elector that is connecting. Name servers that don't answer are slow.
CONNECTING_LIVENESS_SECONDS: Final = 300.0
#: The longest round of an elector that has joined; LIVE_TIMEOUTS session timeouts if that is longer.
JOINED_SECONDS: Final = 60.0
LIVE_TIMEOUTS: Final = 3

_JOINED: Final = {Role.STANDBY, Role.LEADER}


@dataclass(frozen=True)
class Vitals:
    """What a replica knows about itself without asking the database.

    Attributes:
        role: the elector's role.
        term: the term in which the replica may believe that it leads; None if it doesn't lead.
        silent_seconds: time since the elector's loop last turned.
        draining: True once the replica has been told to stop.
        ended_threads: names of the required threads that have ended. During a drain they may end.
        connect_error: why the replica has not joined the election.
        halted: why this leader bills nothing now; None if it bills or doesn't lead.
    """

    role: Role
    term: int | None
    silent_seconds: float
    draining: bool = False
    ended_threads: tuple[str, ...] = ()
    connect_error: str | None = None
    halted: str | None = None


def why_not_live(vitals: Vitals, session_timeout_seconds: float) -> list[str]:
    """Returns one line for each failed check; none if the replica is live.

    Args:
        vitals: this replica's vitals.
        session_timeout_seconds: the server ends a lock session that is silent for longer.
    """
    reasons = []
    joined = max(JOINED_SECONDS, LIVE_TIMEOUTS * session_timeout_seconds)
    bound = joined if vitals.role in _JOINED else max(joined, CONNECTING_LIVENESS_SECONDS)
    if vitals.role is not Role.STOPPED and vitals.silent_seconds > bound:
        reasons.append(f"elector: its loop has not turned for {vitals.silent_seconds:.0f} s")
    return reasons + _ended(vitals)


def why_not_ready(vitals: Vitals, session_timeout_seconds: float, workers_unreachable: str | None = None) -> list[str]:
    """Returns one line for each failed check; none if the replica is ready, or is draining.

    Args:
        vitals: this replica's vitals.
        session_timeout_seconds: the server ends a lock session that is silent for longer.
        workers_unreachable: why the workers' sessions may not reach the database; None if they do.
    """
    if vitals.draining:
        return []
    reasons = []
    if vitals.role not in _JOINED:
        reasons.append(_why_not_joined(vitals))
    elif vitals.silent_seconds > session_timeout_seconds:
        reasons.append(f"database: the lock session has been silent for {vitals.silent_seconds:.0f} s")
    if workers_unreachable is not None:
        reasons.append(f"database: not yet reached through DATABASE_URL: {one_line(workers_unreachable)}")
    return reasons + _ended(vitals)


def _why_not_joined(vitals: Vitals) -> str:
    if vitals.role is Role.STOPPED:
        return "elector: stopped"
    return (
        f"database: {one_line(vitals.connect_error)}" if vitals.connect_error else "elector: connecting to the database"
    )


def _ended(vitals: Vitals) -> list[str]:
    return [] if vitals.draining else [f"{name}: its thread has ended" for name in vitals.ended_threads]
