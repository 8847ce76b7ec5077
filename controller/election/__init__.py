"""Leader election on a PostgreSQL advisory lock: the specification.

What it is for
--------------
Of any number of replicas at most one works at a time, and a replica that has stopped being the one can't do harm.
The lock makes the first *likely at every moment*, cheaply and fast; the term makes the second *certain*.

    lock   a session-level advisory lock, held by a dedicated session. Gone when the session is gone.
    term   a whole number, minted in the database on winning; it only grows. The fencing token.
    fence  the first statement of every transaction that writes: it locks the term's row `for share` and finds its own
           term and its own name there, or the writer is deposed. A mint waits for such transactions and excludes later
           ones, so whatever a deposed leader still has in flight commits *before* the next term begins, or never.

The states of a replica
-----------------------

                      connect fails: wait, try again holder silent: evict it, try again
                      .--------.                     .--------.
                      v        |                     v        |
    +-------+  run  +------------+  session good   +---------+  lock is free   +---------+
    |  off  |------>| connecting |---------------->| standby |---------------->| winning |
    +-------+       +------------+                 +---------+                 +---------+
        ^                ^   ^    session lost         |  ^     server is a        |
        |                |   '-------------------------'  |     standby, or no     |  term minted
        |                |                                '------ term minted -----'
        |  stopped       |  deposed: any error, a late ping, a lost lock           v
        |                |                                                    +---------+
        |                '----------------------------------------------------| leading |
        |                                                                     +---------+
        |         +-----------+      work has stopped: unlock, notify              |
        '---------| resigning |<---------------------------------------------------'
                  +-----------+

*Standing by*, a replica tries the lock about once a second, with jitter, and at once when it hears of a resignation.
It never waits in the database for the lock. It may end the session of a holder that has fallen silent: see Eviction.

*Winning* is: the lock is taken, the server is not in recovery, and a term is minted. Only then does it lead. When the
server is in recovery or the mint fails, the session is closed: a lock without a term is of no use.

*Leading*, it pings the lock session every `ping_interval`: the same backend still holds the lock. It may believe that
it leads until `leader_deadline` after the moment at which the last good ping *was sent*, by its own monotonic clock,
and not a moment longer, whatever its threads are blocked in: everyone who works asks `Leadership.still_leads()`.

*Deposed* is what it is when a ping fails, is late, or finds the lock gone. There is no way back: the session is closed
(after an error the server may have done anything, and advisory locks stack), and the replica contends as a new one.

*Resigning* is leaving on purpose, once the work has stopped. The lock is released and standbys are notified.

The three bounds
----------------
    ping_interval  <  leader_deadline  <  session_timeout          (2 s, 6 s, 10 s)

The server ends a lock session that has been silent for `session_timeout` (and one whose TCP peer is gone), which frees
the lock. A leader that can't ping stops believing by `leader_deadline`, which is sooner. So of a frozen, unplugged or
partitioned leader and its successor, the first has stopped by its own clock before the second can win, and should the
clock of the first have been frozen with it, the fence still holds. `Bounds` refuses settings in another order.

Eviction
--------
A standby need not wait for the server. The leader's ping says, in its own text, for how long it makes the leader
believe, and the server shows to sessions of the same role when it dealt with it. So the try that fails tells a standby
whether the holder has spoken since the last one, and nothing is written. Once its own clock has counted the holder's
deadline (and a twentieth more, for the rates of two clocks) since it first saw the holder's last word, the standby ends
that session and tries the lock again at once.

    sent by the leader  <  dealt with by the server  <  first seen by the standby
            |---- deadline ---->|  the leader has stopped
                                         |------ deadline and a twentieth ------>|  the standby evicts

Each interval is counted by one monotonic clock, and the second begins later: a leader that may still believe is never
evicted, however loaded the machines and wherever the wall clocks stand. Nor is a session with a statement under way,
one of another role, one that has stated no deadline, or one that has spoken meanwhile: the statement that ends the
session matches its backend, its last word and the lock once more, so that of several standbys the slower can't hit
the new leader. `evicts=False` leaves it all to the server.

What it must not do
-------------------
Touch the database other than through the `LockSession` it is given; read the wall clock; sleep; decide that a replica
is healthy because it leads, or ill because it does not.
"""

from controller.election.bounds import Bounds, BoundsError, Deadline
from controller.election.elector import Elector, Leadership, Role
from controller.election.session import Attempt, Holder, LockSession, LockSessionError, Ping
from controller.election.silence import Silence

__all__ = [
    "Attempt",
    "Bounds",
    "BoundsError",
    "Deadline",
    "Elector",
    "Holder",
    "Leadership",
    "LockSession",
    "LockSessionError",
    "Ping",
    "Role",
    "Silence",
]
