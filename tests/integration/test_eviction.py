"""What a standby sees of the session that holds the lock, and which sessions it can end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from controller.election import Bounds
from controller.postgres.connections import Database
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.support.waiting import eventually

LockSessions = Callable[[str, str], PostgresLockSession]

STATEMENT = "/* leads for 6.0 s from asking this */ select"


@pytest.fixture
def lock_session(database: str) -> Iterator[LockSessions]:
    """Opens lock sessions: `lock_session(lock name, instance)`."""
    opened: list[PostgresLockSession] = []

    def open_one(name: str, instance: str) -> PostgresLockSession:
        where = Database(lambda: database, "DATABASE_URL", instance)
        opened.append(PostgresLockSession.open(where, LockName(name), Bounds()))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_slower_of_two_evictions_finds_nothing_to_end(lock_session: LockSessions) -> None:
    silent, first, second = (lock_session("a", f"test-{number}") for number in (1, 2, 3))
    assert silent.try_lock().taken
    silent.ping()
    seen = first.try_lock().holder
    assert seen is not None
    assert seen == second.try_lock().holder
    assert (seen.instance, seen.deadline_seconds) == ("test-1", 6.0)
    assert first.evict(seen)
    eventually(lambda: first.try_lock().taken, "the lock is free")
    assert not second.evict(seen)
    assert first.ping().held


def test_holder_that_has_spoken_is_not_ended(lock_session: LockSessions) -> None:
    holder, standby = lock_session("a", "test-1"), lock_session("a", "test-2")
    holder.try_lock()
    holder.ping()
    seen = standby.try_lock().holder
    assert seen is not None
    holder.ping()
    assert not standby.evict(seen)
    assert standby.try_lock().holder != seen
    assert holder.ping().held


def test_election_of_another_name_is_another_matter(lock_session: LockSessions) -> None:
    ours, theirs, standby = (lock_session(name, "test-1") for name in ("a", "b", "a"))
    for holder in (ours, theirs):
        assert holder.try_lock().taken
        holder.ping()
    seen = standby.try_lock().holder
    assert seen is not None
    assert not lock_session("b", "test-2").evict(seen)
    assert standby.evict(seen)
    assert theirs.ping().held


def test_holder_that_states_no_deadline_is_not_watched(database: str, lock_session: LockSessions) -> None:
    """A controller of an older version, or a person who has taken the lock by hand."""
    standby = lock_session("a", "test-1")
    with psycopg.connect(database, autocommit=True) as person:
        person.execute("select pg_advisory_lock(%s)", [LockName("a").key])
        assert [standby.try_lock().holder for _ in range(3)] == [None] * 3


def test_holder_in_the_middle_of_a_statement_is_not_watched(database: str, lock_session: LockSessions) -> None:
    """The server is still at its ping: nobody can say that it is silent."""
    standby, failure_reason = lock_session("a", "test-1"), LockName("b").key
    with psycopg.connect(database, autocommit=True) as person, psycopg.connect(database, autocommit=True) as other:
        person.execute("select pg_advisory_lock(%s)", [LockName("a").key])
        person.execute(STATEMENT)
        seen = standby.try_lock().holder
        assert seen is not None
        other.execute("select pg_advisory_lock(%s)", [failure_reason])
        pinging = threading.Thread(
            target=person.execute,
            args=(f"{STATEMENT} pg_advisory_lock(%s)", [failure_reason]),
        )
        pinging.start()
        eventually(lambda: standby.try_lock().holder is None, "it is at its ping")
        assert not standby.evict(seen)
        other.execute("select pg_advisory_unlock(%s)", [failure_reason])
        pinging.join()
        assert standby.try_lock().holder not in {None, seen}
