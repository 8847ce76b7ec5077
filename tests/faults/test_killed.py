"""The leader is killed with -9. A successor leads within two seconds and finishes the work, exact to the cent."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from itertools import cycle, islice, pairwise
from typing import Any, Final

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.faults.proxy import Proxy, When
from tests.faults.wire import Statement, starts_with
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica
from tests.support.sessions import wait_until_standing_by
from tests.support.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.support.waiting import eventually, through

BOUND_SECONDS: Final = 2.0
#: The statements between the lock and the holder's term.
MINT: Final[list[tuple[str, When]]] = [
    ("lock table", "after"),
    ("COMMIT", "after"),
    ("BEGIN", "before"),
    ("BEGIN", "after"),
    ("lock table", "before"),
    ("with former", "before"),
    ("with former", "after"),
    ("COMMIT", "before"),
]
#: Two processes start on two cores, and one of them is elected and bills.
START_SECONDS: Final = 5.0


@pytest.mark.parametrize(
    ("when", "every"),
    [
        ("before", 3),
        pytest.param("before", 1, marks=pytest.mark.slow),
        pytest.param("after", 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(180)
def test_leader_killed_around_any_statement_of_a_batch_loses_and_doubles_nothing(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, when: When, every: int
) -> None:
    url = through(database, proxy.port)
    statements: list[Statement] = []

    def record(statement: Statement) -> bool:
        statements.append(statement)
        return False

    with proxy.hold(" worker ", record):
        leader = start(url, **BUSY)
        leader.wait_for("cycle.completed")
    # the first transaction is the trial before the return, which is rolled back
    _trial, *begins = [
        begin.number
        for begin, first in pairwise(statements)
        if begin.sql.startswith("BEGIN") and first.sql.startswith("select term, pg_current_xact_id")
    ]
    assert len(begins) == 6
    for number in range(1, begins[1] + 1, every):  # statements from the connection to the start of the second batch
        standby = start(url, **BUSY)
        wait_until_standing_by(ledger, standby)
        with proxy.hold(f"worker {leader.instance}", _is_number(number), when) as hold:
            ledger.add(organizations=3)
            statement = hold.wait()
            term = leader.wait_for("leader.elected")["term"]
            killed_at = leader.kill()
            proxy.cut(leader.instance)  # the kernel closes a dead process's connections
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_charge(ledger, killed_at, term)
        fault = "leader killed: inside a batch, around each statement"
        assert timings.record(fault, seconds, ledger.judge(), bound=BOUND_SECONDS), statement
        leader = standby


@pytest.mark.runs(20, short=2)
@pytest.mark.timeout(240)
def test_leader_killed_inside_a_statement_does_not_delay_its_successor(
    database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    ledger.conn.execute("""
        create function block() returns trigger language plpgsql as
        $$ begin perform pg_advisory_xact_lock_shared(4242); return new; end $$;
        create trigger block before update on wallets for each row execute function block();
    """)
    leader = start(database, **BUSY)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(database, **BUSY)
        wait_until_standing_by(ledger, standby)
        with psycopg.connect(database, autocommit=True) as blocker:
            blocker.execute("select pg_advisory_lock(4242)")
            ledger.add(organizations=3)
            eventually(lambda: _someone_waits(ledger), "a batch is inside its statement")
            killed_at = leader.kill()
            standby.wait_for("leader.elected")
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("leader killed: inside a statement", seconds, ledger.judge(), bound=BOUND_SECONDS)
        leader = standby


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(240)
def test_idle_leader_killed_is_replaced(
    database: str, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(database)
        wait_until_standing_by(ledger, standby)
        killed_at = leader.kill()
        standby.wait_for("leader.elected")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("leader killed: idle", seconds, ledger.judge(), bound=BOUND_SECONDS)
        leader = standby


@pytest.mark.runs(20)
@pytest.mark.timeout(240)
def test_leader_killed_between_two_batches_leaves_the_second_to_its_successor(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url = through(database, proxy.port)
    leader = start(url, **BUSY)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(url, **BUSY)
        wait_until_standing_by(ledger, standby)
        before = ledger.billed_instances
        with proxy.hold(f"worker {leader.instance}", _is_beginning(2)) as hold:
            ledger.add(organizations=3)
            hold.wait()
            term = leader.wait_for("leader.elected")["term"]
            assert ledger.billed_instances == before + 3
            killed_at = leader.kill()
            proxy.cut(leader.instance)
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_charge(ledger, killed_at, term)
        timings.record("leader killed: between batches", seconds, ledger.judge(), bound=BOUND_SECONDS)
        leader = standby


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(300)
def test_winner_killed_inside_its_mint_does_not_block_the_next(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int
) -> None:
    url = through(database, proxy.port)
    leader: ControllerProcess | None = None
    steps = [(starts_with(step), when) for step, when in MINT]
    for step, when in islice(cycle(steps), runs):
        with proxy.hold(" elector ", step, when) as hold:
            winner = start(url)
            if leader is not None:
                leader.kill()
                proxy.cut(leader.instance)
            hold.wait()
            standby = start(database)
            wait_until_standing_by(ledger, standby)
            killed_at = winner.kill()
            proxy.cut(winner.instance)
            standby.wait_for("cycle.completed" if leader is None else "leader.elected")
        assert not winner.events("leader.elected")
        seconds = seconds_to_next_term(ledger, killed_at)
        timings.record("leader killed: inside its mint", seconds, ledger.judge(), bound=BOUND_SECONDS)
        leader = standby


@pytest.mark.runs(20, short=1)
@pytest.mark.timeout(300)
def test_all_replicas_killed_at_once_and_started_again_bill_what_is_left(
    *, database: str, proxy: Proxy, start: StartReplica, ledger: LedgerProbe, timings: Timings, runs: int, seed: int
) -> None:
    chance = random.Random(seed)
    url = through(database, proxy.port)
    replicas = [start(url, **BUSY), start(url, **BUSY)]
    for _ in range(runs):
        with proxy.hold(" worker ", _is_number(chance.randrange(4, 40))) as hold:
            ledger.add()
            hold.wait()
            for each in replicas:
                each.kill()
            proxy.cut()
        since, replicas = datetime.now(UTC), [start(url, **BUSY), start(url, **BUSY)]
        eventually(lambda: ledger.all_billed, "the rest of it")
        seconds = seconds_to_next_charge(ledger, since)
        timings.record("all replicas killed, and started again", seconds, ledger.judge(), bound=START_SECONDS)


def _is_number(number: int) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return statement.number == number

    return matches


def _is_beginning(number: int) -> Any:  # noqa: ANN401 - a predicate
    """Matches the start of the n-th transaction from now on."""
    begun = iter(range(1, number + 1))

    def matches(statement: Statement) -> bool:
        return statement.sql.startswith("BEGIN") and next(begun) == number

    return matches


def _someone_waits(ledger: LedgerProbe) -> bool:
    return bool(ledger.rows("select from pg_locks where locktype = 'advisory' and objid = 4242 and not granted"))
