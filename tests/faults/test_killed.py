"""The leader is killed with -9: a successor is there in two seconds and finishes what it left, to the cent."""

from __future__ import annotations

import random
from typing import Any, Final

import psycopg
import pytest

from tests.faults.books import Books
from tests.faults.conftest import StartReplica
from tests.faults.proxy import Proxy, When
from tests.faults.replica import Replica
from tests.faults.standing import wait_until_standing_by
from tests.faults.timings import Timings, seconds_to_next_charge, seconds_to_next_term
from tests.faults.waiting import eventually, through
from tests.faults.wire import Statement

BOUND_SECONDS: Final = 2.0
#: One worker, an organization a batch, and a cycle whenever there is something to do.
BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}
#: From the moment at which the lock is held to the moment before its holder hears of its term.
MINT: Final = [
    ("select pg_try_advisory_lock", "after"),
    *((step, when) for step in ("BEGIN", "lock table", "with minted", "COMMIT") for when in ("before", "after")),
]


@pytest.mark.parametrize("when", ["before", pytest.param("after", marks=pytest.mark.slow)])
@pytest.mark.timeout(180)
def test_leader_killed_around_any_statement_of_a_batch_loses_and_doubles_nothing(
    *, database: str, proxy: Proxy, start: StartReplica, books: Books, timings: Timings, when: When
) -> None:
    url = through(database, proxy.port)
    statements: list[Statement] = []

    def record(statement: Statement) -> bool:
        statements.append(statement)
        return False

    with proxy.hold(" worker ", record):
        leader = start(url, **BUSY)
        leader.wait_for("cycle.completed")
    begins = [each.number for each in statements if each.sql == "BEGIN"]
    assert [each.sql for each in statements].count("COMMIT") == len(begins) == 6
    for number in range(1, begins[1] + 1):  # from the connection to the beginning of the second batch
        standby = start(url, **BUSY)
        wait_until_standing_by(books, standby)
        with proxy.hold(f"worker {leader.instance}", _is_number(number), when) as hold:
            books.add(organizations=3)
            statement = hold.wait()
            term = leader.wait_for("leader.elected")["term"]
            killed_at = leader.kill()
            proxy.cut(leader.instance)  # as the kernel closes what the process had open
        standby.wait_for("cycle.completed")
        verdict = books.judge()
        timings.record("killed around a statement of a batch", seconds_to_next_term(books, killed_at), verdict)
        assert seconds_to_next_charge(books, killed_at, term) < BOUND_SECONDS, statement
        leader = standby


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_leader_killed_inside_a_statement_holds_its_successor_up_no_longer(
    database: str, start: StartReplica, books: Books, timings: Timings, runs: int
) -> None:
    books.conn.execute("""
        create function block() returns trigger language plpgsql as
        $$ begin perform pg_advisory_xact_lock_shared(4242); return new; end $$;
        create trigger block before update on wallets for each row execute function block();
    """)
    leader = start(database, **BUSY)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(database, **BUSY)
        wait_until_standing_by(books, standby)
        with psycopg.connect(database, autocommit=True) as blocker:
            blocker.execute("select pg_advisory_lock(4242)")
            books.add(organizations=3)
            eventually(lambda: _someone_waits(books), "a batch is inside its statement")
            killed_at = leader.kill()
            standby.wait_for("leader.elected")
        standby.wait_for("cycle.completed")
        seconds = seconds_to_next_term(books, killed_at)
        assert timings.record("killed inside a statement", seconds, books.judge()) < BOUND_SECONDS
        leader = standby


@pytest.mark.parametrize("runs", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_idle_leader_killed_is_replaced(
    database: str, start: StartReplica, books: Books, timings: Timings, runs: int
) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    for _ in range(runs):
        standby = start(database)
        wait_until_standing_by(books, standby)
        killed_at = leader.kill()
        standby.wait_for("leader.elected")
        seconds = seconds_to_next_term(books, killed_at)
        assert timings.record("killed while idle", seconds, books.judge()) < BOUND_SECONDS
        leader = standby


@pytest.mark.parametrize(
    ("step", "when"),
    [
        ("lock table", "after"),
        ("COMMIT", "after"),
        *(pytest.param(step, when, marks=pytest.mark.slow) for step, when in MINT),
    ],
)
def test_winner_killed_inside_its_mint_leaves_the_next_one_free(
    *, database: str, proxy: Proxy, start: StartReplica, books: Books, timings: Timings, step: str, when: When
) -> None:
    winner = start(through(database, proxy.port))
    with proxy.hold(f"elector {winner.instance}", lambda statement: statement.sql.startswith(step), when) as hold:
        hold.wait()
        standby = start(database)
        wait_until_standing_by(books, standby)
        killed_at = winner.kill()
        proxy.cut(winner.instance)
        standby.wait_for("cycle.completed")
    assert not winner.events("leader.elected")
    seconds = seconds_to_next_term(books, killed_at)
    assert timings.record("killed inside the mint", seconds, books.judge()) < BOUND_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_leader_killed_at_random_moments(
    *, database: str, proxy: Proxy, start: StartReplica, books: Books, timings: Timings, seed: int
) -> None:
    chance = random.Random(seed)
    url = through(database, proxy.port)
    leader = start(url, **BUSY)
    for _ in range(20):
        standby = start(url, **BUSY)
        wait_until_standing_by(books, standby)
        session, number = chance.choice(["worker", "cycle", "elector"]), chance.randrange(1, 40)
        with proxy.hold(f"{session} {leader.instance}", _is_number(number)) as hold:
            books.add(organizations=8)
            hold.reached.wait(1.0)  # a session may have fewer statements: then it is killed wherever it is
            killed_at = leader.kill()
            proxy.cut(leader.instance)
        standby.wait_for("cycle.completed")
        _finish(standby, books)
        timings.record("killed at a random moment", seconds_to_next_term(books, killed_at), books.judge())
        leader = standby


def _finish(leader: Replica, books: Books) -> None:
    eventually(lambda: books.all_billed, f"{leader.instance} bills what is left")
    leader.wait_for("cycle.completed", after=leader.events("cycle.completed")[-1])


def _is_number(number: int) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return statement.number == number

    return matches


def _someone_waits(books: Books) -> bool:
    return bool(books.rows("select from pg_locks where locktype = 'advisory' and objid = 4242 and not granted"))
