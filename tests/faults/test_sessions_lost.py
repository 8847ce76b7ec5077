"""Single sessions are lost, ended by the server or cut on the way: nobody leads twice, nothing is lost."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import pytest

from tests.faults.books import Books
from tests.faults.conftest import StartReplica
from tests.faults.proxy import Hold, Proxy
from tests.faults.replica import LOW_BOUNDS, Replica
from tests.faults.standing import end_sessions, wait_until_standing_by
from tests.faults.timings import Timings, seconds_to_next_term
from tests.faults.waiting import eventually, through
from tests.faults.wire import Statement

BOUND_SECONDS: Final = 2.0
BUSY: Final = {"BILLING_WORKERS": "1", "BILLING_BATCH_SIZE": "3", "BILLING_INTERVAL_MINUTES": "0.003"}


def starts_with(sql: str) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return statement.sql.startswith(sql)

    return matches


def test_leader_whose_lock_session_the_server_ends_is_deposed_at_once(
    database: str, start: StartReplica, books: Books, timings: Timings
) -> None:
    leader = start(database)
    leader.wait_for("cycle.completed")
    standby = start(database)
    wait_until_standing_by(books, standby)
    since = datetime.now(UTC)
    assert end_sessions(books, "elector", leader) == 1
    leader.wait_for("leader.deposed", within=BOUND_SECONDS)
    eventually(lambda: bool(books.rows("select from billing_terms where term = 2")), "either leads again")
    seconds = seconds_to_next_term(books, since)
    assert timings.record("lock session ended by the server", seconds, books.judge()) < BOUND_SECONDS


def test_leader_deposed_inside_a_batch_commits_nothing_after_its_successors_term(
    database: str, proxy: Proxy, start: StartReplica, books: Books
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY)
    wait_until_standing_by(books, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with("BEGIN")) as hold:
        books.add(organizations=3)
        hold.wait()
        proxy.refuse()  # or it would be back before the standby
        end_sessions(books, "elector", leader)
        standby.wait_for("leader.elected")
        hold.release()
        leader.wait_for("cycle.deposed")
    proxy.accept()
    standby.wait_for("cycle.completed")
    books.judge()


def test_worker_session_ended_by_the_server_is_replaced_within_the_cycle(
    database: str, proxy: Proxy, start: StartReplica, books: Books
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    first = leader.wait_for("cycle.completed")
    with proxy.hold(f"worker {leader.instance}", starts_with("insert into billing_wallet_baselines")) as hold:
        books.add(organizations=3)
        hold.wait()
        assert end_sessions(books, "worker", leader) == 1
    done = leader.wait_until(lambda line: line.fields.get("instances") == 9, "the cycle of nine", first)
    assert done.event == "cycle.completed"
    assert not leader.events("leader.deposed")
    books.judge()


@pytest.mark.parametrize("statement", ["COMMIT", "with due as materialized"])
def test_answer_of_a_worker_lost_on_the_way_is_not_charged_again(
    database: str, proxy: Proxy, start: StartReplica, books: Books, statement: str
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    with proxy.hold(f"worker {leader.instance}", starts_with(statement), "after") as hold:
        books.add(organizations=3)
        hold.wait()
        assert proxy.cut(f"worker {leader.instance}") == 1
    leader.wait_until(
        lambda line: line.event == "cycle.completed" and books.all_billed, "the end of it", leader.events()[-1]
    )
    assert not leader.events("cycle.failed", "leader.deposed")
    books.judge()


def test_lock_session_cut_while_it_is_being_opened_is_opened_again(
    database: str, proxy: Proxy, start: StartReplica, books: Books
) -> None:
    with ExitStack() as stack:
        holds = [stack.enter_context(proxy.hold("elector", _is_number(number))) for number in (1, 2)]
        replica = start(through(database, proxy.port))
        for number in range(3, 10):
            held = holds[-2]
            eventually(partial(_is_held_or_over, held, replica), f"statement {number - 2}")
            assert replica.running, replica.tail()
            holds.append(stack.enter_context(proxy.hold("elector", _is_number(number))))
            proxy.cut("elector")
            holds[-3].release()
    replica.wait_for("cycle.completed")
    assert not replica.events("service.crashed"), replica.tail()
    books.judge()


@pytest.mark.parametrize(
    "number", [6, *(pytest.param(number, marks=pytest.mark.slow) for number in (1, 2, 3, 4, 5, 7, 8, 9))]
)
def test_cycles_own_session_cut_at_any_statement_costs_one_try(
    database: str, proxy: Proxy, start: StartReplica, books: Books, number: int
) -> None:
    replica = start(through(database, proxy.port))
    with proxy.hold("cycle", lambda statement: statement.number == number) as hold:
        held = hold.wait()
        proxy.cut("cycle")
    replica.wait_for("cycle.completed")
    assert not replica.events("service.crashed", "leader.deposed"), held
    books.judge()


def test_leader_killed_between_its_commit_and_the_answer_has_charged_once(
    database: str, proxy: Proxy, start: StartReplica, books: Books
) -> None:
    leader = start(through(database, proxy.port), **BUSY)
    leader.wait_for("cycle.completed")
    standby = start(database, **BUSY)
    wait_until_standing_by(books, standby)
    with proxy.hold(f"worker {leader.instance}", starts_with("COMMIT"), "after") as hold:
        books.add(organizations=3)
        hold.wait()
        leader.kill()
        proxy.cut(leader.instance)
    standby.wait_for("cycle.completed")
    books.judge()


def test_replica_that_a_slow_server_has_elected_bills(
    database: str, proxy: Proxy, start: StartReplica, books: Books
) -> None:
    """The mint's answers take longer than the leader's deadline, each of them less than what it waits for one."""
    with (
        proxy.hold(" elector ", starts_with("lock table"), "after") as first,
        proxy.hold(" elector ", starts_with("with minted"), "after") as second,
        proxy.hold(" elector ", starts_with("select exists"), "after") as ping,
    ):
        replica = start(through(database, proxy.port), **LOW_BOUNDS)
        for hold in (first, second, ping):
            hold.wait()
            replica.count_for(0.55)
            hold.release()
    replica.wait_for("cycle.completed", within=15)
    books.judge()


def _is_number(number: int) -> Any:  # noqa: ANN401 - a predicate
    def matches(statement: Statement) -> bool:
        return statement.number == number

    return matches


def _is_held_or_over(hold: Hold, replica: Replica) -> bool:
    return hold.reached.is_set() or not replica.running
