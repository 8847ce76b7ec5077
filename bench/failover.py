"""How long nothing is billed after `kill -9` of the leader, and in a planned handover."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import psycopg

from bench.measurement import Aim, Measurement, Section
from bench.record import Record, Values
from controller.demo.process import ControllerProcess
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import freeze
from tests.support.servers import TEMPLATE, Server, create_template, temporary_database
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
#: Runs in one database. At its end, all charges of these runs are checked.
RUNS_A_DATABASE: Final = 10
#: A worker's session that is executing a batch.
BATCH: Final = """
select from pg_stat_activity
where application_name = %s and state = 'active' and query like '-- Charges the organizations that plainly can pay%%'
"""
CHARGED: Final = "select from billing_batches where term > %s limit 1"
RUNNING: Final = "select from billing_runs where outcome = 'running'"
CYCLE_IS_DUE: Final = "select from billing_next_cycle() where due_at < clock_timestamp()"


def failover(server: Server, runs: int, record: Record) -> Section:
    """Measures `runs` kills at rest, `runs` kills inside a batch, and `runs` handovers.

    Raises:
        AssertionError: an hour or an amount is wrong, or the stopped leader failed.
        ExpectationError: a process did not log what it should have.
    """
    create_template(server)
    idle = _runs(server, record, "killed at rest", runs, kills_at_rest)
    busy = _runs(server, record, "killed inside a batch", runs, _kills_inside_a_batch)
    handovers = _runs(server, record, "stopped", runs, _handovers)
    return Section(
        "failover",
        "Failover and handover",
        f"{runs} runs each, with real processes and default settings, except that a cycle starts whenever something is"
        " due. Killed at rest: `kill -9` of a leader between two cycles, with the next cycle due and new instances in"
        " six organizations that were billed before. Killed inside a batch: while the server executes a batch of 3,000"
        " instances; the time to the next term contains the mint's wait for that batch. Stopped: SIGTERM to a leader"
        " that has just begun a cycle, from its last commit to the next term. A database serves"
        f" {RUNS_A_DATABASE} runs. All of their charges are then checked to the cent.",
        (
            Measurement("killed at rest, to the next leader's term", "s", tuple(term for term, _ in idle)),
            Measurement("killed at rest, to its first charge", "s", tuple(charge for _, charge in idle), IDLE_AIM),
            Measurement("killed inside a batch, to the next leader's term", "s", tuple(term for term, _ in busy)),
            Measurement("killed inside a batch, to its first charge", "s", tuple(c for _, c in busy), BUSY_AIM),
            Measurement("stopped, from the last commit to the next term", "ms", sum(handovers, ()), HANDOVER_AIM),
        ),
    )


def _runs(
    server: Server, record: Record, kind: str, runs: int, measure: Callable[[str, int], Iterator[Values]]
) -> list[Values]:
    """The values of each run. Skips the runs that the record has."""
    made = record.read(kind)
    while len(made) < runs:
        with temporary_database(server, TEMPLATE) as url:
            group = list(measure(url, min(RUNS_A_DATABASE, runs - len(made))))
        record.add(kind, group)
        made += group
        print(f"  {kind}: {len(made)} runs", flush=True)
    return made[:runs]  # the record may have more


def kills_at_rest(url: str, runs: int) -> Iterator[Values]:
    """Seconds to the next term and to the next charge of each kill of a leader that does nothing."""
    return _kills(url, runs, _add_at_rest)


def _kills_inside_a_batch(url: str, runs: int) -> Iterator[Values]:
    return _kills(url, runs, _begin_full_batch)


def _kills(url: str, runs: int, arrange: Callable[[LedgerProbe, ControllerProcess], None]) -> Iterator[Values]:
    """Seconds to the next term and to the next charge of each kill. `arrange` brings the leader to the kill."""
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        ledger = LedgerProbe(connection)
        ledger.add()
        leader = _start(stack, url)
        for _ in range(runs):
            term = leader.wait_for("leader.elected")["term"]
            standby = _start(stack, url)
            _wait_until_at_rest(ledger, leader)
            wait_until_ready_to_lead(ledger, standby)
            arrange(ledger, leader)
            killed_at = leader.kill()
            standby.wait_for("leader.elected")
            _wait_for_charge(ledger, term)
            yield seconds_to_next_term(ledger, killed_at), seconds_to_next_charge(ledger, killed_at, term)
            leader = standby
        _wait_until_at_rest(ledger, leader)
        ledger.judge()


def _wait_for_charge(ledger: LedgerProbe, term: int) -> None:
    eventually(lambda: bool(ledger.rows(CHARGED, term)), "the next leader's first charge")


def _wait_until_at_rest(ledger: LedgerProbe, leader: ControllerProcess) -> None:
    """Blocks until everything is billed, then brings the planner's statistics up to date, as autovacuum would."""
    leader.wait_for("cycle.completed")
    eventually(lambda: ledger.all_billed, "everything is billed")
    ledger.conn.execute("analyze")


def _add_at_rest(ledger: LedgerProbe, leader: ControllerProcess) -> None:
    """Freezes the leader between two cycles and adds something due, which only the next leader can charge.

    Then waits until the next cycle is due. The next leader would wait for that too, which is no part of a failover.
    """
    eventually(lambda: not ledger.rows(RUNNING), "no cycle runs", every=0.001)
    freeze(leader)
    ledger.add_instances()
    eventually(lambda: bool(ledger.rows(CYCLE_IS_DUE)), "the next cycle is due")


def _begin_full_batch(ledger: LedgerProbe, leader: ControllerProcess) -> None:
    """Waits until the leader's batch of 3,000 instances is on the server."""
    ledger.add(FULL_BATCH)
    eventually(lambda: bool(ledger.rows(BATCH, f"billing worker {leader.instance}")), "a batch", every=0.001)


def _handovers(url: str, runs: int) -> Iterator[Values]:
    """Milliseconds from the last commit to the next term, for each stop of a leader that has just begun a cycle."""
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        ledger = LedgerProbe(connection)
        leader, stopped = _start(stack, url), None
        leader.wait_for("leader.elected")
        for _ in range(runs):
            standby = _start(stack, url)
            _require_success(stopped)
            _wait_until_at_rest(ledger, leader)
            wait_until_ready_to_lead(ledger, standby)
            ledger.add()
            leader.wait_for("cycle.started", after=leader.events()[-1])
            leader.signal(signal.SIGTERM)
            standby.wait_for("leader.elected")
            yield (1000 * handover_seconds(ledger),)
            leader, stopped = standby, leader
        _require_success(stopped)
        _wait_until_at_rest(ledger, leader)
        ledger.judge()


def _require_success(stopped: ControllerProcess | None) -> None:
    """Waits until the process has ended. Raises: AssertionError if it failed."""
    if stopped is not None and stopped.wait() != 0:
        raise AssertionError(f"the stopped leader failed:\n{stopped.tail()}")


def _start(stack: ExitStack, url: str) -> ControllerProcess:
    replica = ControllerProcess(url, **ALWAYS_DUE)
    stack.callback(replica.remove)
    return replica
