"""How long nothing is billed after `kill -9` of the leader, and in a planned handover."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Final

import psycopg

from bench.measurement import Aim, Measurement, Section
from controller.demo.process import ControllerProcess
from tests.support.ledger_probe import LedgerProbe
from tests.support.servers import Server, migrated_database
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import handover_seconds, seconds_to_next_charge, seconds_to_next_term

KILLED_AIM: Final = Aim(2.0, judged_by="worst")
HANDOVER_AIM: Final = Aim(300.0, judged_by="worst")
#: Starts a cycle as soon as something is due. The new leader then has something to charge.
ALWAYS_DUE: Final = {"BILLING_INTERVAL_MINUTES": "0.003"}


def failover(server: Server, runs: int) -> Section:
    """Measures `runs` kills and `runs` handovers.

    Raises:
        AssertionError: after a run, an hour or an amount is wrong, or the stopped leader failed.
        ExpectationError: a process did not log what it should have.
    """
    with migrated_database(server) as url:
        terms, charges = _kill(url, runs)
    with migrated_database(server) as url:
        handovers = _stop(url, runs)
    return Section(
        "failover",
        "Failover and handover",
        f"{runs} runs each, with real processes and default settings, except that a cycle starts whenever something is"
        " due. Killed: `kill -9` of a leader that has just begun a cycle, until the next leader writes. Stopped:"
        " SIGTERM to a leader that has just begun a cycle, from its last commit to the next term. Every run checks all"
        " charges to the cent.",
        (
            Measurement("killed, to the next leader's term", "s", terms, KILLED_AIM),
            Measurement("killed, to the next leader's first charge", "s", charges, KILLED_AIM),
            Measurement("stopped, from the last commit to the next term", "ms", handovers, HANDOVER_AIM),
        ),
    )


def _kill(url: str, runs: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Seconds to the next term, and to the next charge."""
    terms, charges = [], []
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        ledger = LedgerProbe(connection)
        leader = _start(stack, url)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            term = leader.wait_for("leader.elected")["term"]
            standby = _standby_during_a_cycle(stack, url, leader, ledger)
            killed_at = leader.kill()
            ledger.add()
            elected = standby.wait_for("leader.elected")
            standby.wait_until(
                lambda line: bool(line.event == "cycle.completed" and line["instances"]), "charging cycle"
            )
            standby.wait_for("cycle.completed", after=elected)
            ledger.judge()
            terms.append(seconds_to_next_term(ledger, killed_at))
            charges.append(seconds_to_next_charge(ledger, killed_at, term))
            leader = standby
    return tuple(terms), tuple(charges)


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
    wait_until_standing_by(ledger, standby)
    ledger.add()
    leader.wait_for("cycle.started", after=leader.events()[-1])
    return standby


def _start(stack: ExitStack, url: str) -> ControllerProcess:
    replica = ControllerProcess(url, **ALWAYS_DUE)
    stack.callback(replica.remove)
    return replica
