"""A standby's spare sessions: planned in advance, replaced when lost, and never in the way of an election."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import psycopg
import pytest

from controller import sql
from controller.app import FIRST_STATEMENTS
from controller.postgres.connections import BILLER, FOREGROUND, WORKER, Database
from controller.postgres.spare_sessions import SpareSessions
from tests.support.waiting import eventually

KINDS: Final = [kind.purpose for kind, _ in FIRST_STATEMENTS]


@pytest.fixture
def spares(database: str) -> Iterator[SpareSessions]:
    sessions = SpareSessions(Database(lambda: database, "DATABASE_URL", "test-1"), FIRST_STATEMENTS)
    yield sessions
    sessions.close()


def open_sessions(conn: psycopg.Connection[Any]) -> list[str]:
    rows = conn.execute(
        "select split_part(application_name, ' ', 2) from pg_stat_activity"
        " where application_name like 'billing %test-1'"
    )
    return [purpose for (purpose,) in rows]


def test_every_statement_of_the_first_charge_can_be_planned_in_advance(
    conn: psycopg.Connection[Any], spares: SpareSessions
) -> None:
    spares.fill(lambda: True)
    assert sorted(open_sessions(conn)) == sorted(KINDS), "a statement that can't be planned would end the filling"


def test_spare_session_is_used_once(conn: psycopg.Connection[Any], spares: SpareSessions) -> None:
    spares.fill(lambda: True)
    assert spares.take(FOREGROUND) is None
    taken = spares.take(WORKER)
    assert taken is not None
    with taken:
        assert sql.rows(taken, "backend_pid")
        assert spares.take(WORKER) is None
    spares.fill(lambda: True)
    assert sorted(open_sessions(conn)) == sorted(KINDS), "the missing one was opened again"


def test_spare_session_that_the_server_has_ended_is_not_used(
    conn: psycopg.Connection[Any], spares: SpareSessions
) -> None:
    spares.fill(lambda: True)
    conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'billing worker%'")
    eventually(lambda: "worker" not in open_sessions(conn), "the session has ended")
    assert spares.take(WORKER) is None
    other = spares.take(BILLER)
    assert other is not None
    other.close()


def test_filling_ends_when_a_leader_needs_the_thread(conn: psycopg.Connection[Any], spares: SpareSessions) -> None:
    spares.fill(lambda: False)
    assert open_sessions(conn) == [KINDS[0]]


def test_planning_in_advance_locks_nothing(conn: psycopg.Connection[Any], spares: SpareSessions) -> None:
    spares.fill(lambda: True)
    row = conn.execute(
        "select count(*) from pg_locks join pg_stat_activity using (pid) where application_name like 'billing %'"
    ).fetchone()
    assert row == (0,)
