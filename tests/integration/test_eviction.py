"""A standby ends the session of a silent leader, and no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from controller.election import Bounds, LockSessionError
from controller.postgres.connections import Database
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.support.waiting import eventually

LockSessions = Callable[[str, str], PostgresLockSession]

STATEMENT = "/* leads for 5.0 s from asking this */ select"


@pytest.fixture
def lock_session(database: str) -> Iterator[LockSessions]:
    """Opens lock sessions: `lock_session(lock_name, instance)`."""
    opened: list[PostgresLockSession] = []

    def open_session(name: str, instance: str) -> PostgresLockSession:
        where = Database(lambda: database, "DATABASE_URL", instance)
        opened.append(PostgresLockSession.open(where, LockName(name), Bounds()))
        return opened[-1]

    yield open_session
    for each in opened:
        each.close()


def test_slower_of_two_evictions_ends_nothing(lock_session: LockSessions) -> None:
    silent, first, second = (lock_session("a", f"test-{number}") for number in (1, 2, 3))
    assert silent.contend(0).taken
    silent.ping()
    seen = first.contend(0).holder
    assert seen is not None
    assert seen == second.contend(0).holder
    assert (seen.instance, seen.deadline_seconds) == ("test-1", 5.0)
    assert first.evict(seen)
    eventually(lambda: first.contend(0).taken, "the lock is free")
    assert not second.evict(seen)
    assert first.ping().held


@pytest.mark.parametrize(
    ("name", "ended"), [("billing worker test-1", True), ("billing worker test-2", False), ("psql", False)]
)
def test_winner_ends_a_batch_of_the_former_leader_and_waits_for_any_other(
    database: str, lock_session: LockSessions, name: str, *, ended: bool
) -> None:
    former, winner = lock_session("a", "test-1"), lock_session("a", "test-3")
    assert former.contend(0).taken
    former.mint()
    former.close()
    eventually(lambda: winner.contend(0).taken, "the lock is free")
    winner._connection.execute("set lock_timeout = '200ms'")
    with psycopg.connect(database, application_name=name) as batch:
        batch.execute("select from billing_leadership for share")
        if ended:
            assert winner.mint() == 2
            with pytest.raises(psycopg.OperationalError):
                batch.execute("select")
        else:
            with pytest.raises(LockSessionError, match="lock timeout"):
                winner.mint()
            batch.execute("select")


def test_holder_that_has_pinged_again_is_not_evicted(lock_session: LockSessions) -> None:
    holder, standby = lock_session("a", "test-1"), lock_session("a", "test-2")
    holder.contend(0)
    holder.ping()
    seen = standby.contend(0).holder
    assert seen is not None
    holder.ping()
    assert not standby.evict(seen)
    assert standby.contend(0).holder != seen
    assert holder.ping().held


def test_eviction_spares_the_holder_of_another_lock(lock_session: LockSessions) -> None:
    ours, theirs, standby = (lock_session(name, "test-1") for name in ("a", "b", "a"))
    for holder in (ours, theirs):
        assert holder.contend(0).taken
        holder.ping()
    seen = standby.contend(0).holder
    assert seen is not None
    assert not lock_session("b", "test-2").evict(seen)
    assert standby.evict(seen)
    assert theirs.ping().held


def test_holder_that_states_no_deadline_is_not_watched(database: str, lock_session: LockSessions) -> None:
    """An older version of the controller, or a person who took the lock by hand."""
    standby = lock_session("a", "test-1")
    with psycopg.connect(database, autocommit=True) as person:
        person.execute("select pg_advisory_lock(%s)", [LockName("a").key])
        assert [standby.contend(0).holder for _ in range(3)] == [None] * 3


def test_holder_with_a_statement_in_progress_is_not_evicted(database: str, lock_session: LockSessions) -> None:
    """The running statement may be a ping, so the leader isn't silent."""
    standby, other_key = lock_session("a", "test-1"), LockName("b").key
    with psycopg.connect(database, autocommit=True) as person, psycopg.connect(database, autocommit=True) as other:
        person.execute("select pg_advisory_lock(%s)", [LockName("a").key])
        person.execute(STATEMENT)
        seen = standby.contend(0).holder
        assert seen is not None
        other.execute("select pg_advisory_lock(%s)", [other_key])
        pinging = threading.Thread(
            target=person.execute,
            args=(f"{STATEMENT} pg_advisory_lock(%s)", [other_key]),
        )
        pinging.start()
        eventually(lambda: standby.contend(0).holder is None, "the ping is in progress")
        assert not standby.evict(seen)
        other.execute("select pg_advisory_unlock(%s)", [other_key])
        pinging.join()
        assert standby.contend(0).holder not in {None, seen}
