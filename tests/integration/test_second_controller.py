"""Two controllers with different lock names never bill the same instances, even through different schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from controller.demo.process import ControllerProcess, run_command
from controller.demo.sample import create_schema
from controller.election import Bounds, LockSessionError, Predecessor
from controller.postgres.claim import OtherControllerError
from controller.postgres.connections import Database
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.support.servers import migrate_url
from tests.support.waiting import eventually

Sessions = Callable[[str, str], PostgresLockSession]


@pytest.fixture
def lock_session() -> Iterator[Sessions]:
    """Opens lock sessions, by URL and lock name, that close after the test."""
    with ExitStack() as opened:

        def open_one(url: str, name: str) -> PostgresLockSession:
            database = Database(lambda: url, "DATABASE_URL", f"replica-of-{name}")
            return opened.enter_context(closing(PostgresLockSession.open(database, LockName(name), Bounds())))

        yield open_one


def leads(session: PostgresLockSession) -> int:
    """Takes the lock and mints a term; returns the term."""
    session.check_schema()
    assert session.contend(0).taken
    return session.mint()


@pytest.fixture
def two_schemas(empty_database: str) -> tuple[str, str]:
    """Two URLs to the same tables of the application, with the controller's tables in two schemas."""
    with psycopg.connect(empty_database, autocommit=True) as owner:
        create_schema(owner)
        owner.execute("create schema other")
    options = quote("-csearch_path=other,public")
    other = f"{empty_database}{'&' if '?' in empty_database else '?'}options={options}"
    migrate_url(other)
    migrate_url(empty_database)
    return empty_database, other


def test_second_lock_name_on_the_same_tables_is_refused_and_both_are_named(
    database: str, lock_session: Sessions
) -> None:
    assert leads(lock_session(database, "blue")) == 1
    second = lock_session(database, "green")
    expected = (
        "BILLING_LOCK_NAME=green can't bill here: replica-of-blue bills the same instances under"
        " BILLING_LOCK_NAME=blue (schema public); stop it, or"
    )
    with pytest.raises(OtherControllerError) as refused:
        second.check_schema()
    assert str(refused.value).startswith(expected)
    assert second.contend(0).taken
    with pytest.raises(LockSessionError, match="BILLING_LOCK_NAME=green can't bill here"):
        second.mint()
    with psycopg.connect(database) as conn:
        assert conn.execute("select term, lock_name from billing_leadership").fetchone() == (1, "blue")


def test_second_lock_name_in_another_schema_is_refused(two_schemas: tuple[str, str], lock_session: Sessions) -> None:
    public, other = two_schemas
    for first, second, schema in ((public, other, "public"), (other, public, "other")):
        leader = lock_session(first, "blue")
        leads(leader)
        contender = lock_session(second, "green")
        with pytest.raises(OtherControllerError, match=rf"under BILLING_LOCK_NAME=blue \(schema {schema}\)"):
            contender.check_schema()
        contender.contend(0)
        with pytest.raises(LockSessionError, match="BILLING_LOCK_NAME=green can't bill here"):
            contender.mint()
        leader.resign()
        contender.close()
        leader.close()


def test_mint_names_the_predecessor_and_knows_if_it_resigned(database: str, lock_session: Sessions) -> None:
    found = []
    for name, resigns in (("a", True), ("b", False), ("c", True)):
        session = lock_session(database, name)
        eventually(partial(joins, session), "the predecessor's claim has ended")
        leads(session)
        found.append(session.predecessor())
        if resigns:
            session.resign()
        session.close()
    assert found == [None, Predecessor("replica-of-a", resigned=True), Predecessor("replica-of-b", resigned=False)]


def test_rename_works_once_the_old_controller_is_silent(database: str, lock_session: Sessions) -> None:
    old, new = lock_session(database, "old"), lock_session(database, "new")
    leads(old)
    with pytest.raises(OtherControllerError):
        new.check_schema()
    old.close()
    eventually(lambda: joins(new), "the claim ends with its session")
    assert leads(new) == 2


def joins(session: PostgresLockSession) -> bool:
    try:
        session.check_schema()
    except OtherControllerError:
        return False
    return True


def test_standby_with_the_leaders_name_joins_and_follows_at_once(database: str, lock_session: Sessions) -> None:
    leader, standby = lock_session(database, "blue"), lock_session(database, "blue")
    leads(leader)
    standby.check_schema()
    assert not standby.contend(0).taken
    leader.resign()  # and its session is still open
    assert leads(standby) == 2


def test_controllers_of_two_applications_in_one_database_do_not_meet(database: str, lock_session: Sessions) -> None:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("create schema staging")
        for table in ("organizations", "wallets", "vps_plans", "vps_instances", "payment_transactions"):
            owner.execute(f"create table staging.{table} (like public.{table} including all)".encode())
        owner.execute("create table staging.vps_billing_cycles (like public.vps_billing_cycles including defaults)")
    staging = f"{database}{'&' if '?' in database else '?'}options={quote('-csearch_path=staging')}"
    migrate_url(staging)
    assert leads(lock_session(database, "production")) == 1
    assert leads(lock_session(staging, "staging")) == 1


def test_commands_and_probes_of_a_second_controller_name_both(database: str, tmp_path: Path) -> None:
    first = ControllerProcess(database, BILLING_LOCK_NAME="blue")
    second: ControllerProcess | None = None
    try:
        first.wait_for("leader.elected")
        second = ControllerProcess(database, BILLING_LOCK_NAME="green")
        failed = second.wait_for("session.failed")
        assert "BILLING_LOCK_NAME=green can't bill here" in failed["error"]
        assert "BILLING_LOCK_NAME=blue" in failed["error"]
        assert second.events("election.joined", "leader.elected") == []
        billed = run_command("bill", folder=tmp_path, DATABASE_URL=database, BILLING_LOCK_NAME="green")
        assert billed.returncode == 4
        assert "under BILLING_LOCK_NAME=blue" in billed.stderr
        first.kill()
        second.wait_for("leader.elected")
    finally:
        for process in filter(None, (first, second)):
            process.remove()
