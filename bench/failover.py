"""How long nothing is billed after `kill -9` of the leader, and in a planned handover."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

import psycopg

from bench.measurement import Aim, Measurement, Section
from controller.demo.process import ControllerProcess
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import freeze
from tests.support.servers import Server, migrated_database
from tests.support.sessions import wait_until_ready_to_lead
from tests.support.timings import handover_seconds, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually

IDLE_AIM: Final = Aim(0.15, judged_by="p99")
BUSY_AIM: Final = Aim(0.3, judged_by="p99")
HANDOVER_AIM: Final = Aim(50.0, judged_by="worst")
#: Starts a cycle as soon as something is due. The new leader then has something to charge.
ALWAYS_DUE: Final = {"BILLING_INTERVAL_MINUTES": "0.003"}
#: Organizations of three instances that make one full batch.
FULL_BATCH: Final = 1000
#: Kills inside a full batch in one database. Each one adds 3,000 instances, and every run checks all of them.
RUNS_A_DATABASE: Final = 10
#: A worker's session that is executing a batch.
BATCH: Final = """
select from pg_stat_activity
where application_name = %s and state = 'active' and query like '-- Charges the organizations that plainly can pay%%'
"""


def failover(server: Server, runs: int) -> Section:
    """Measures `runs` kills at rest, `runs` kills inside a batch, and `runs` handovers.

    Raises:
        AssertionError: after a run, an hour or an amount is wrong, or the stopped leader failed.
        ExpectationError: a process did not log what it should have.
    """
    with migrated_database(server) as url:
        idle = _kill(url, runs, _add_at_rest)
    busy: list[tuple[float, float]] = []
    while len(busy) < runs:
        with migrated_database(server) as url:
            busy += _kill(url, min(RUNS_A_DATABASE, runs - len(busy)), _begin_full_batch)
    with migrated_database(server) as url:
        handovers = _stop(url, runs)
    return Section(
        "failover",
        "Failover and handover",
        f"{runs} runs each, with real processes and default settings, except that a cycle starts whenever something is"
        " due. Killed at rest: `kill -9` of a leader that does nothing, with six organizations due. Killed inside a"
        " batch: while the server executes a batch of 3,000 instances; the time to the next term contains the mint's"
        " wait for that batch. Stopped: SIGTERM to a leader that has just begun a cycle, from its last commit to the"
        " next term. Every run checks all charges to the cent.",
        (
            Measurement("killed at rest, to the next leader's term", "s", tuple(term for term, _ in idle)),
            Measurement("killed at rest, to its first charge", "s", tuple(charge for _, charge in idle), IDLE_AIM),
            Measurement("killed inside a batch, to the next leader's term", "s", tuple(term for term, _ in busy)),
            Measurement("killed inside a batch, to its first charge", "s", tuple(c for _, c in busy), BUSY_AIM),
            Measurement("stopped, from the last commit to the next term", "ms", handovers, HANDOVER_AIM),
        ),
    )


def _kill(url: str, runs: int, arrange: Callable[[LedgerProbe, ControllerProcess], None]) -> list[tuple[float, float]]:
    """Seconds to the next term and to the next charge, for each run. `arrange` brings the leader to the kill."""
    seconds = []
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        ledger = LedgerProbe(connection)
        leader = _start(stack, url)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            term = leader.wait_for("leader.elected")["term"]
            standby = _start(stack, url)
            wait_until_ready_to_lead(ledger, standby)
            arrange(ledger, leader)
            killed_at = leader.kill()
            eventually(lambda: ledger.all_billed, "everything is billed")
            standby.wait_for("leader.elected")
            ledger.judge()
            seconds.append((seconds_to_next_term(ledger, killed_at), seconds_to_next_charge(ledger, killed_at, term)))
            leader = standby
    return seconds


def _add_at_rest(ledger: LedgerProbe, leader: ControllerProcess) -> None:
    """Adds something due while the leader is frozen, so that the next leader charges it and this one doesn't."""
    freeze(leader)
    ledger.add()


def _begin_full_batch(ledger: LedgerProbe, leader: ControllerProcess) -> None:
    """Waits until the leader's batch of 3,000 instances is on the server."""
    ledger.add(FULL_BATCH)
    eventually(lambda: bool(ledger.rows(BATCH, f"billing worker {leader.instance}")), "a batch", every=0.001)


def _stop(url: str, runs: int) -> tuple[float, ...]:
    """Milliseconds from the last commit to the next term."""
    milliseconds = []
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        ledger = LedgerProbe(connection)
        leader = _start(stack, url)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            standby = _standby_during_a_cycle(stack, url, leader, ledger)
            leader.signal(signal.SIGTERM)
            standby.wait_for("leader.elected")
            if leader.wait() != 0:
                raise AssertionError(f"the stopped leader failed:\n{leader.tail()}")
            milliseconds.append(1000 * handover_seconds(ledger))
            standby.wait_for("cycle.completed")
            ledger.judge()
            leader = standby
    return tuple(milliseconds)


def _standby_during_a_cycle(
    stack: ExitStack, url: str, leader: ControllerProcess, ledger: LedgerProbe
) -> ControllerProcess:
    """Starts a standby, and returns it when the leader has just begun a cycle with something to charge."""
    standby = _start(stack, url)
    wait_until_ready_to_lead(ledger, standby)
    ledger.add()
    leader.wait_for("cycle.started", after=leader.events()[-1])
    return standby


def _start(stack: ExitStack, url: str) -> ControllerProcess:
    replica = ControllerProcess(url, **ALWAYS_DUE)
    stack.callback(replica.remove)
    return replica
