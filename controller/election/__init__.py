"""Leader election on a PostgreSQL advisory lock: the specification.

Purpose
-------
At most one replica works at any time, and a replica that has lost the leadership can do no harm. The lock provides
the first property cheaply and quickly, but not with certainty. The term guarantees the second property.

    lock   A session-level advisory lock, held by a dedicated session. It disappears with the session.
    term   An integer that is minted in the database each time a replica wins. It only grows. It is the fencing token.
    fence  The first statement of every transaction that writes. It locks the row of the newest term `for share` and
           compares the term and the holder with the writer's own. If they differ, the writer has been deposed. A mint
           waits for transactions that have passed the fence, and blocks the fence until it has committed. So a
           transaction that a deposed leader still has in flight commits *before* the next term begins, or never.

The states of a replica
-----------------------

                      connect failed: retry      wait over: evict a silent holder, wait again
                      .--------.                     .--------.
                      v        |                     v        |
    +-------+  run  +------------+  session ready  +---------+  lock granted   +---------+
    |  off  |------>| connecting |---------------->| standby |---------------->| winning |
    +-------+       +------------+                 +---------+                 +---------+
        ^              ^  ^  ^    session lost          |                         |   |
        |              |  |  '--------------------------'                         |   |
        |              |  |       server in recovery, or minting failed           |   |  term minted
        |              |  '-------------------------------------------------------'   |
        |              |                                                              v
        |              |    deposed: ping failed, ping late, or lock lost         +---------+
        |              |----------------------------------------------------------| leading |
        |              |                                                          +---------+
        |              |  stepped down         +-----------+   work has stopped       |
        |              '-----------------------| resigning |<-------------------------'
        |                       stopped        +-----------+
        '--------------------------------------------'

A *standby* waits for the lock on the server, in waits of less than a second, one sent directly after the other. The
server hands the lock over the moment it is free, in the order in which the waits arrived. Each wait is one statement
in autocommit mode, so no snapshot lives longer than a wait. When a wait is over, its answer shows the holder of the
lock. The standby may end the session of a holder that has fallen silent; see Eviction below. The first wait takes no
time, so that the replica joins at once. A standby that is stopped closes its session in the middle of a wait. If the
server grants the lock at that moment, it finds the session closed and frees the lock again.

*Winning* takes three steps: the server is not in recovery, the lock is granted, and a term is minted. The replica
leads only after the third. Before it mints, it ends its predecessor's sessions that are inside a batch, because the
mint would wait for them. If a wait fails, is cancelled or gets no answer, the server may have granted the lock
anyway. So the replica closes the session. It also does that if the mint fails, because a lock without a term is
useless.

A *leading* replica pings its lock session every `ping_interval` to confirm that the same backend still holds the
lock. It may believe that it leads until `leader_deadline` after the last good ping *was sent*, by its own monotonic
clock. The first such deadline counts from before the wait for the lock was sent. That is safe, and at worst one wait
too short. The deadline holds even while the elector's thread is blocked, because everything that works under the
leadership asks `Leadership.still_leads()` before each step.

A replica is *deposed* when a ping fails, arrives late, or finds the lock lost. It can't return to leading: it closes
the session, since the server's state is unknown after an error and advisory locks stack, and then contends again.

*Resigning* is giving up the leadership on purpose, after the work has stopped: because the replica is being stopped,
or because it steps down in favour of another one. It unlocks and then closes the session. The unlock counts every
lock of the session: if a grant coincides with the end of a wait, the session holds the lock twice.

The elector reports the end of each leadership exactly once, after the session is closed: with a reason if the replica
was deposed, with None if it resigned.

The three bounds
----------------
    ping_interval  <  leader_deadline  <  session_timeout          (2 s, 5 s, 10 s)

The server ends a lock session that has been silent for `session_timeout`, or whose TCP peer is gone. This releases
the lock. A leader that can't ping stops leading at `leader_deadline`, which is earlier. So a frozen, unplugged or
partitioned leader has stopped by its own clock before a successor can win. If its clock was frozen as well, the fence
still stops it. `Bounds` refuses settings in any other order. It also refuses a deadline that is no longer than a wait
and a ping interval, because a new leader might then be deposed before its first ping.

Eviction
--------
A standby doesn't have to wait for the server's timeout. The text of the leader's ping states the leader's deadline,
and `pg_stat_activity` shows this text, and when the server finished it, to other sessions of the same role. So the
end of each wait also tells the standby whether the holder has sent anything since the last wait, and nothing has to be
written. The standby counts the holder's deadline on its own clock, from the moment it first saw the holder's latest
statement, and adds a twentieth because clock rates differ. No wait is longer than the rest of that time. When it is
over, the standby ends the holder's session and waits for the lock again immediately.

The text of the wait states the same deadline. If a standby freezes in its wait and is then handed the lock, it is
evicted like a frozen leader.

    leader sends ping  <  server finishes it  <  standby first sees it
            |---- deadline ---->|  the leader has stopped
                                         |---- deadline and a twentieth ---->|  the standby evicts

Each interval is measured by one monotonic clock, and the second begins later than the first. So a leader that may
still believe that it leads is never evicted, under any load and with any wall clocks. Four kinds of session are never
ended: sessions that are executing a statement, sessions of another role, sessions that have stated no deadline, and
sessions that have sent something in the meantime. The statement that ends a session compares its backend, its latest
statement and the lock again. So if several standbys try at the same time, a slow one can't end the new leader's
session. `evicts=False` disables eviction.

Checked
-------
`tests/promela` has these rules as two models, and `make model` checks every interleaving of their steps.
`tests/integration/test_leadership_model.py` searches histories of the real statements on a real server.

What it must not do
-------------------
Use the database other than through its `LockSession`; read the wall clock; sleep; treat a replica as healthy because
it leads, or as unhealthy because it doesn't.
"""

from controller.election.bounds import Bounds, BoundsError
from controller.election.elector import Elector, Role
from controller.election.leadership import Leadership
from controller.election.session import Attempt, Holder, LockSession, LockSessionError, Ping, Predecessor
from controller.election.silence import Silence

__all__ = [
    "Attempt",
    "Bounds",
    "BoundsError",
    "Elector",
    "Holder",
    "Leadership",
    "LockSession",
    "LockSessionError",
    "Ping",
    "Predecessor",
    "Role",
    "Silence",
]
