"""How long billing is without a leader, after `kill -9` and in a planned handover: by the fault suite's own tools."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from typing import Final

import psycopg

from bench.figures import Aim, Figure, Section
from controller.demo.server import Server
from tests.faults.books import Books
from tests.faults.replica import Replica
from tests.faults.standing import wait_until_standing_by
from tests.faults.test_stopping import handover_seconds
from tests.faults.timings import seconds_to_next_charge, seconds_to_next_term
from tests.servers import migrated_database

KILLED: Final = Aim(2.0, held="worst")
HANDED_OVER: Final = Aim(300.0, held="worst")
#: A cycle whenever there is something to do, so that the successor has something to charge.
BUSY: Final = {"BILLING_INTERVAL_MINUTES": "0.003"}


def failover(server: Server, runs: int) -> Section:
    """Each run ends with every cent and hour where it belongs, or this raises AssertionError."""
    with migrated_database(server) as url:
        terms, charges = _killed(url, runs)
    with migrated_database(server) as url:
        handovers = _stopped(url, runs)
    return Section(
        "failover",
        "Failover and handover",
        f"{runs} runs each of real processes with default settings, but a cycle whenever something is due. Killed:"
        " `kill -9` of a leader that has just begun a cycle, to what its successor writes. Stopped: SIGTERM to a leader"
        " that has just begun a cycle, from its last commit to the successor's term. The books are judged to the cent"
        " after every run.",
        (
            Figure("killed, to the next leader's first write, its term", "s", terms, KILLED),
            Figure("killed, to the next leader's first charge", "s", charges, KILLED),
            Figure("stopped, from the last commit to the next term", "ms", handovers, HANDED_OVER),
        ),
    )


def _killed(url: str, runs: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    terms, charges = [], []
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        books = Books(connection)
        leader = _start(stack, url)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            term = leader.wait_for("leader.elected")["term"]
            standby = _join_in_a_cycle(stack, url, leader, books)
            killed_at = leader.kill()
            books.add()
            elected = standby.wait_for("leader.elected")
            standby.wait_until(
                lambda line: bool(line.event == "cycle.completed" and line["instances"]), "charging cycle"
            )
            standby.wait_for("cycle.completed", after=elected)
            books.judge()
            terms.append(seconds_to_next_term(books, killed_at))
            charges.append(seconds_to_next_charge(books, killed_at, term))
            leader = standby
    return tuple(terms), tuple(charges)


def _stopped(url: str, runs: int) -> tuple[float, ...]:
    seconds = []
    with ExitStack() as stack, psycopg.connect(url, autocommit=True) as connection:
        books = Books(connection)
        leader = _start(stack, url)
        leader.wait_for("cycle.completed")
        for _ in range(runs):
            standby = _join_in_a_cycle(stack, url, leader, books)
            leader.signal(signal.SIGTERM)
            standby.wait_for("leader.elected")
            if leader.wait() != 0:
                raise AssertionError(f"the leader did not end well:\n{leader.tail()}")
            seconds.append(1000 * handover_seconds(books))
            standby.wait_for("cycle.completed")
            books.judge()
            leader = standby
    return tuple(seconds)


def _join_in_a_cycle(stack: ExitStack, url: str, leader: Replica, books: Books) -> Replica:
    """A standby that stands by, of a leader that has just begun a cycle with something to charge."""
    standby = _start(stack, url)
    wait_until_standing_by(books, standby)
    books.add()
    leader.wait_for("cycle.started", after=leader.events()[-1])
    return standby


def _start(stack: ExitStack, url: str) -> Replica:
    replica = Replica(url, **BUSY)
    stack.callback(replica.remove)
    return replica
