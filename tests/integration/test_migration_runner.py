"""A migration never blocks the application. If one is interrupted, the next one cleans up."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final, Self

import psycopg
import pytest
from structlog.testing import capture_logs

from controller.billing.guard import Guard
from controller.demo.process import COMMAND, clean_environment
from controller.demo.sample import create_schema
from controller.errors import DatabaseUnreachableError
from controller.postgres import index_builds, migrations
from controller.postgres.connections import MIGRATION, Database
from controller.postgres.migrations import SchemaError, available
from tests.integration.world import ScriptedStop, World
from tests.model import HOUR, NOON
from tests.support.servers import migrate_url
from tests.support.shape import shape
from tests.support.waiting import eventually

ALL: Final = available()
NAMES: Final = [migration.name for migration in ALL]
#: A migration that changes a table which batches lock, the first index build, and the one on payments.
LEADERSHIP: Final = "017_billing_ownership"
LEDGER: Final = "018_billing_ledger_index"
PAYMENTS: Final = "020_billing_payments_index"
#: The application waits this long for a lock, and fails if it does not get it.
APPLICATION_PATIENCE: Final = "1s"


class Migrate:
    """Migrates on a thread once `start` is called. The `with` block waits for its end."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._pool = ThreadPoolExecutor(1)
        self.result: Future[list[str]] = Future()
        self.progress: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def start(self) -> None:
        self.result = self._pool.submit(self._run)

    def _run(self) -> list[str]:
        with Database(lambda: self._url, "DATABASE_URL", "test").connect(MIGRATION) as connection:
            return migrations.migrate(connection, self.progress.append)

    def reports(self, text: str) -> int:
        """Returns how many lines of progress contain the text."""
        return sum(text in line for line in self.progress)


class Application:
    """The application's sessions: an open transaction, and top-ups and charges that don't wait for locks."""

    def __init__(self, url: str) -> None:
        self.url = url
        with World(url) as world:
            plan = world.plan("7.30")
            self.organizations = [world.organization("100.00") for _ in range(2)]
            self.instances = [world.instance(each, plan, NOON - 5 * HOUR) for each in self.organizations]
        self.conn = psycopg.connect(url, autocommit=True)
        self.conn.execute(f"set lock_timeout = '{APPLICATION_PATIENCE}'".encode())

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """A transaction that has written to every table and stays open for the length of a block."""
        with psycopg.connect(self.url) as other:
            self._charge(other, 0)
            yield
            other.rollback()

    def top_up_and_charge(self) -> None:
        """Commits a top-up, or fails if a lock is not free within APPLICATION_PATIENCE."""
        with self.conn.transaction():
            self.conn.execute(
                "update wallets set balance = balance + 1 where organization_id = %s", self.organizations[1:]
            )
            self.conn.execute(
                "insert into payment_transactions (organization_id, amount, status) values (%s, 1, 'completed')",
                self.organizations[1:],
            )
        with self.conn.transaction():
            self._charge(self.conn, 1)

    def _charge(self, conn: psycopg.Connection[Any], number: int) -> None:
        if conn.execute("select to_regclass('billing_leadership')").fetchone() != (None,):
            conn.execute("select from billing_leadership for share")
        organization, instance = self.organizations[number], self.instances[number]
        conn.execute("update wallets set balance = balance - 0.01 where organization_id = %s", [organization])
        conn.execute("update vps_instances set last_billed_at = now() where id = %s", [instance])
        conn.execute(
            "with paid as (insert into payment_transactions (organization_id, amount, status)"
            " values (%s, -0.01, 'completed') returning id)"
            " insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
            " billing_period_end, hourly_rate, total_amount, status, payment_transaction_id)"
            " select %s, %s, now(), now() + interval '1 h', 0.01, 0.01, 'billed', id from paid",
            [organization, instance, organization],
        )

    def migration_waits(self) -> bool:
        """Returns True while a migration waits for a lock, or for a transaction to end."""
        return bool(
            self.conn.execute(
                "select from pg_stat_activity where datname = current_database()"
                " and application_name like 'billing migrate%' and wait_event_type = 'Lock'"
            ).fetchall()
        )

    def invalid_indexes(self) -> list[str]:
        rows = self.conn.execute("select indexrelid::regclass::text from pg_index where not indisvalid").fetchall()
        return [name for (name,) in rows]


@pytest.fixture
def unmigrated(empty_database: str) -> str:
    """The sample schema without our tables."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        create_schema(conn)
    return empty_database


@pytest.fixture
def application(unmigrated: str) -> Iterator[Application]:
    made = Application(unmigrated)
    yield made
    made.conn.close()


def migrate_before(monkeypatch: pytest.MonkeyPatch, url: str, name: str) -> None:
    """Applies the migrations that come before one."""
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "available", lambda: ALL[: NAMES.index(name)])
        migrate_url(url)


@pytest.mark.parametrize("name", NAMES)
def test_top_up_and_charge_commit_during_the_migration(
    application: Application, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    migrate_before(monkeypatch, application.url, name)
    with application.conn.transaction():  # gives every index statement something to do
        for table in ("vps_instances", "wallets", "payment_transactions"):
            application.conn.execute(f"drop index idx_{table}_organization_id".encode())
        for index in ("billing_one_charge_a_period", "billing_one_open_debt_an_instance"):
            application.conn.execute(f"create index {index} on vps_billing_cycles (vps_instance_id)".encode())
    monkeypatch.setattr(migrations, "available", lambda: ALL[: NAMES.index(name) + 1])
    with Migrate(application.url) as running, application.in_flight():
        running.start()
        eventually(lambda: running.result.done() or application.migration_waits(), f"{name} is being applied")
        application.top_up_and_charge()
    assert running.result.result() == [name]


def test_lock_that_another_session_holds_is_waited_for_in_short_attempts(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_before(monkeypatch, application.url, LEADERSHIP)
    monkeypatch.setattr(migrations, "REPORT_SECONDS", 0.0)
    with Migrate(application.url) as running:
        with application.in_flight():
            running.start()
            for attempts in range(1, 5):  # for about five seconds
                eventually(lambda least=attempts: running.reports("waiting for a lock") >= least, "another attempt")  # type: ignore[misc]
                application.top_up_and_charge()
        assert running.result.result(60) == NAMES[NAMES.index(LEADERSHIP) :]


@pytest.mark.parametrize("mode", ["share update exclusive", "row exclusive"])
def test_index_build_waits_for_other_sessions_and_is_tried_again(
    application: Application, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    migrate_before(monkeypatch, application.url, LEDGER)
    monkeypatch.setattr(index_builds, "CONCURRENT_LOCK_TIMEOUT", "100ms")
    monkeypatch.setattr(migrations, "LOCK_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(migrations, "REPORT_SECONDS", 0.0)
    with Migrate(application.url) as running:
        with psycopg.connect(application.url) as other:
            other.execute(f"lock table vps_billing_cycles in {mode} mode".encode())
            running.start()
            eventually(lambda: running.reports("waiting for a lock") >= 3, "the third attempt")
            application.top_up_and_charge()
        assert LEDGER in running.result.result(60)
    assert application.invalid_indexes() == []


def test_statement_timeout_of_the_role_does_not_end_an_index_build(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_before(monkeypatch, application.url, LEDGER)
    application.conn.execute(
        "do $$ begin execute format('alter role %I in database %I set statement_timeout = ''1s''',"
        " current_user, current_database()); end $$"
    )
    with Migrate(application.url) as running, application.in_flight():
        running.start()
        eventually(
            lambda: bool(
                application.conn.execute(
                    "select from pg_stat_activity where datname = current_database()"
                    " and query like 'create unique index concurrently%'"
                    " and clock_timestamp() - query_start > interval '1200 ms'"
                ).fetchall()
            ),
            "the build has taken longer than the role allows",
        )
    assert LEDGER in running.result.result()


def test_failed_index_build_is_dropped_and_built_again(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate_before(monkeypatch, application.url, LEDGER)
    conn = application.conn
    conn.execute(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status, metadata)"
        " select id, organization_id, %s, %s, 0, 0, 'billed', '{\"controller\": \"vps-billing\"}'"
        " from vps_instances, generate_series(1, 2)",
        [NOON, NOON + HOUR],
    )
    with pytest.raises(SchemaError, match=rf"^migration {LEDGER} failed: could not create unique index"):
        migrate_url(application.url)
    assert application.invalid_indexes() == ["billing_ledger"]
    conn.execute("delete from vps_billing_cycles")
    migrate_url(application.url)
    assert application.invalid_indexes() == []


def test_index_build_whose_session_was_ended_is_repaired(application: Application, database: str) -> None:
    with Migrate(application.url) as running, application.in_flight():
        running.start()
        eventually(lambda: running.reports("building the index") == 1, "it builds")
        eventually(application.migration_waits, "it waits for the transaction in flight")
        application.conn.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name like 'billing migrate%'"
        )
        with pytest.raises(DatabaseUnreachableError, match=f"lost during migration {LEDGER}"):
            running.result.result(30)
    assert application.invalid_indexes() == ["billing_ledger"]
    migrate_url(application.url)
    assert shape(application.url) == shape(database)


def test_killed_migrate_is_waited_for_and_completed_by_the_next(application: Application, database: str) -> None:
    with Migrate(application.url) as running, application.in_flight():
        killed = subprocess.Popen(
            [*COMMAND, "migrate"],
            env=clean_environment({"DATABASE_URL": application.url}),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(application.migration_waits, "it waits for the transaction in flight")
        finally:
            killed.kill()
            killed.wait()
        running.start()
        eventually(lambda: running.reports("waiting for another process") == 1, "the next one waits")
    assert LEDGER in running.result.result()
    assert shape(application.url) == shape(database)


PARTITIONED: Final = b"""
alter table vps_billing_cycles drop constraint vps_billing_cycles_payment_transaction_id_fkey;
alter table payment_transactions rename to unpartitioned;
create table payment_transactions (like unpartitioned including defaults) partition by hash (id);
create table payments_0 partition of payment_transactions for values with (modulus 2, remainder 0);
create table "Payments 1" partition of payment_transactions for values with (modulus 2, remainder 1)
    partition by list (status);
create table payments_completed partition of "Payments 1" for values in ('completed');
create table payments_other partition of "Payments 1" default;
insert into payment_transactions select * from unpartitioned;
drop table unpartitioned;
"""


def test_partitioned_payments_are_indexed_without_blocking_a_top_up(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    application.conn.execute(PARTITIONED)
    migrate_before(monkeypatch, application.url, PAYMENTS)
    with Migrate(application.url) as running, application.in_flight():
        running.start()
        eventually(lambda: running.reports("building the index billing_payments_") > 0, "it builds on a partition")
        eventually(application.migration_waits, "it waits for the transaction in flight")
        application.top_up_and_charge()
    assert PAYMENTS in running.result.result()
    assert application.invalid_indexes() == []
    for index in ("billing_payments", "billing_payment_transactions_organization"):
        leaves = application.conn.execute("select from pg_partition_tree(to_regclass(%s)) where isleaf", [index])
        assert len(leaves.fetchall()) == 3
    with World(application.url) as world:
        plan = world.plan("7.30")
        for _ in range(30):
            world.instance(application.organizations[0], plan, NOON - 5 * HOUR)
        assert world.bill(NOON).totals.failures == 0
        with capture_logs() as logs:
            Guard(world.ledger, ScriptedStop()).check(world.term())
        assert [line["event"] for line in logs] == ["guard.passed"]
        assert world.violations() == {}
        written = "select distinct tableoid from payment_transactions where billing_is_ours(metadata)"
        assert len(world.rows(written)) == 2
