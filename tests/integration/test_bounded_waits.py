"""A standby's wait for the lock is bounded, leaves the server's log quiet, and holds up no other session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import psycopg
import pytest
from structlog.testing import capture_logs

from controller.election import Attempt, Bounds, LockSessionError
from controller.postgres.connections import Database
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.support.servers import Server
from tests.support.waiting import eventually

Standby = Callable[[], PostgresLockSession]
LOCK: Final = LockName("a")
#: Longer than any wait here may take, even on a busy machine.
PATIENCE_SECONDS: Final = 10.0


@pytest.fixture
def standby(database: str) -> Iterator[Standby]:
    """Opens lock sessions."""
    opened: list[PostgresLockSession] = []

    def open_session() -> PostgresLockSession:
        where = Database(lambda: database, "DATABASE_URL", f"test-{len(opened)}")
        opened.append(PostgresLockSession.open(where, LOCK, Bounds()))
        return opened[-1]

    yield open_session
    for each in opened:
        each.close()


@pytest.fixture
def holder(database: str) -> Iterator[psycopg.Connection[Any]]:
    """A session that holds the lock until it closes."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(%s)", [LOCK.key])
        yield connection


def waiting(conn: psycopg.Connection[Any]) -> int:
    """The number of sessions that wait for an advisory lock."""
    row = conn.execute("select count(*) from pg_locks where locktype = 'advisory' and not granted").fetchone()
    assert row is not None
    return int(row[0])


def test_lock_is_handed_over_within_the_wait(
    conn: psycopg.Connection[Any], holder: psycopg.Connection[Any], standby: Standby
) -> None:
    session = standby()
    with ThreadPoolExecutor() as pool:
        attempt = pool.submit(session.contend, PATIENCE_SECONDS)
        # the longest wait is 0.9 s, whatever the caller asks for
        eventually(lambda: waiting(conn) == 1 or attempt.done(), "the standby waits")
        holder.close()
        assert attempt.result().taken or session.contend(0).taken


def test_wait_that_ends_without_the_lock_leaves_no_line_in_the_servers_log(
    server: Server, holder: psycopg.Connection[Any], standby: Standby
) -> None:
    before = len(server.log_path.read_text())
    session = standby()
    assert not session.contend(0.05).taken
    assert not session.contend(0.05).taken
    session.wake()
    assert not session.contend(0.05).taken
    assert "billing_contend" not in server.log_path.read_text()[before:]
    assert not holder.closed


def test_woken_wait_ends_at_once_and_closes_its_session(
    conn: psycopg.Connection[Any], holder: psycopg.Connection[Any], standby: Standby
) -> None:
    session = standby()
    with ThreadPoolExecutor() as pool:
        attempt = pool.submit(session.contend, 0.9)
        eventually(lambda: waiting(conn) == 1 or attempt.done(), "the standby waits")
        session.wake()
        assert attempt.result() == Attempt(taken=False)
    with pytest.raises(LockSessionError):
        session.contend(0)
    assert not holder.closed


def test_standby_frozen_in_its_wait_and_handed_the_lock_is_evicted(
    conn: psycopg.Connection[Any], holder: psycopg.Connection[Any], standby: Standby
) -> None:
    frozen, other = standby(), standby()
    frozen._connection.pgconn.send_query(
        frozen._contend.replace("%(lock_key)s", str(LOCK.key))
        .replace("%(wait_milliseconds)s", "5000")
        .replace("%(watched_pid)s", "null")
        .encode()
    )
    frozen._connection.pgconn.flush()
    eventually(lambda: waiting(conn) == 1, "the frozen standby waits")
    holder.close()
    seen = None

    def sees_holder() -> bool:
        nonlocal seen
        seen = other.contend(0).holder
        return seen is not None

    eventually(sees_holder, "the lock was handed to the frozen standby")
    assert seen is not None
    assert (seen.instance, seen.deadline_seconds) == ("test-0", Bounds().leader_deadline_seconds)
    assert other.evict(seen)
    assert other.contend(PATIENCE_SECONDS).taken


def test_grant_at_the_end_of_a_wait_is_neither_lost_nor_kept_after_resigning(database: str, standby: Standby) -> None:
    """The release comes at about the time at which the wait ends, sometimes before and sometimes after."""
    session = standby()
    with psycopg.connect(database, autocommit=True) as other, ThreadPoolExecutor() as pool:
        for number in range(40):
            other.execute("select pg_advisory_lock(%s)", [LOCK.key])
            attempt = pool.submit(session.contend, 0.02)
            released = threading.Timer(0.015 + 0.00025 * number, other.execute, ["select pg_advisory_unlock_all()"])
            released.start()
            taken = attempt.result().taken
            released.join()
            assert session.ping().held == taken
            if taken:
                session.resign()
            row = other.execute("select pg_try_advisory_lock(%s)", [LOCK.key]).fetchone()
            assert row == (True,), "someone still holds the lock"
            other.execute("select pg_advisory_unlock_all()")


def test_lock_taken_twice_is_free_after_one_resignation(standby: Standby) -> None:
    first, second = standby(), standby()
    assert first.contend(0).taken
    assert first.contend(0).taken
    first.resign()
    assert second.contend(0).taken


def test_cancelled_wait_closes_its_session_and_frees_a_lock_that_was_granted_all_the_same(
    conn: psycopg.Connection[Any], standby: Standby, database: str
) -> None:
    next_one = standby()
    for number in range(5):
        session = standby()
        with psycopg.connect(database, autocommit=True) as other, ThreadPoolExecutor() as pool:
            other.execute("select pg_advisory_lock(%s)", [LOCK.key])
            attempt = pool.submit(session.contend, 0.9)
            eventually(lambda: waiting(conn) == 1 or attempt.done(), "the standby waits")  # noqa: B023 - now
            other.execute("select pg_advisory_unlock_all()")
            if number:
                conn.execute("select pg_cancel_backend(%s)", [session._connection.info.backend_pid])
            with suppress(LockSessionError):  # the cancellation may come too late
                if attempt.result().taken:
                    session.close()
        assert session._connection.closed
        assert next_one.contend(PATIENCE_SECONDS).taken
        next_one.resign()


def test_twenty_standbys_elect_one_and_hold_up_neither_vacuum_nor_an_index_build(
    conn: psycopg.Connection[Any], holder: psycopg.Connection[Any], standby: Standby
) -> None:
    over = threading.Event()

    def stand_by(session: PostgresLockSession) -> bool:
        while not over.is_set():
            if session.contend(Bounds().wait_seconds).taken:
                return True
        return False

    conn.execute("create table other (id int)")
    sessions = [standby() for _ in range(20)]
    with ThreadPoolExecutor(20) as pool:
        standing_by = [pool.submit(stand_by, each) for each in sessions]
        eventually(lambda: waiting(conn) == 20, "all of them wait")
        began = time.monotonic()
        conn.execute("create index concurrently on other (id)")
        assert time.monotonic() - began < 2 * Bounds().wait_seconds + 2.0, "it waits for each snapshot once"
        row = conn.execute(
            "select max(clock_timestamp() - xact_start) < '1 second' from pg_stat_activity"
            " where application_name like 'billing elector%'"
        ).fetchone()
        assert row == (True,)
        holder.close()
        eventually(lambda: any(each.done() for each in standing_by), "one of them has the lock")
        over.set()
        assert sum(each.result() for each in standing_by) == 1


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({"deadlock_timeout": "500ms"}, 0.9),
        ({"deadlock_timeout": "500ms", "log_lock_waits": "on"}, 0.4),
        ({"log_min_duration_statement": "600ms", "log_lock_waits": "on"}, 0.48),
        ({"log_min_duration_statement": "5s"}, 0.9),
        ({"log_min_duration_statement": "0"}, 0.9),
    ],
)
def test_wait_is_shorter_than_what_the_server_logs(
    conn: psycopg.Connection[Any], standby: Standby, settings: dict[str, str], seconds: float
) -> None:
    for name, value in settings.items():
        conn.execute(f"alter database {conn.info.dbname} set {name} = '{value}'".encode())
    assert standby()._longest_wait_seconds == pytest.approx(seconds)


def test_standby_tries_at_intervals_if_the_server_would_log_even_short_waits(
    conn: psycopg.Connection[Any], holder: psycopg.Connection[Any], standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresLockSession, "_logged_limit", None)
    conn.execute(f"alter database {conn.info.dbname} set log_min_duration_statement = '100ms'".encode())
    with capture_logs() as logs:
        session, _ = standby(), standby()
    assert [(line["event"], line["log_level"]) for line in logs] == [("lock_wait.disabled", "warning")]
    assert "log_min_duration_statement" in logs[0]["reason"]
    began = time.monotonic()
    assert not session.contend(0.3).taken
    assert time.monotonic() - began >= 0.3, "it waits, but not on the server"
    holder.close()
    eventually(lambda: session.contend(0).taken, "the lock is free")
