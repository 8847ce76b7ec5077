"""Migrations succeed on old and unclean databases, after the application's own 012, and in several commands at once."""

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.rows import dict_row

from controller.billing.values import Totals
from controller.demo.process import run_command
from controller.demo.sample import create_schema
from controller.demo.server import Installation
from controller.postgres import migrations
from controller.postgres.migrations import REQUIRED, SchemaError
from tests.integration.world import World
from tests.model import HOUR, NOON
from tests.support.servers import migrate_url
from tests.support.shape import shape

FOLDER: Final = Path(migrations.__file__).parents[2] / "migrations"
FILES: Final = sorted(FOLDER.glob("[0-9]*.sql"))
NAMES: Final = [file.stem for file in FILES]
ADOPTION: Final = next(file for file in FILES if file.stem == "015_billing_wallet_baselines")
#: Migrations 012 to 016 as they were when 017 was written.
FIRST_SCHEMA: Final = Path(__file__).with_name("first_schema.sql")

#: The application's own 012, applied long ago.
APPLICATIONS_012: Final = b"""
create table billing_daemon_status (
    id serial primary key,
    daemon_instance_id varchar(255) unique not null,
    status varchar(50) not null default 'stopped',
    last_run_at timestamptz,
    last_run_success boolean,
    instances_billed integer default 0,
    total_amount numeric(10, 2) default 0,
    total_hours numeric(10, 2) default 0,
    error_message text,
    started_at timestamptz default now(),
    heartbeat_at timestamptz default now(),
    metadata jsonb default '{}',
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);
create index idx_billing_daemon_status_heartbeat on billing_daemon_status (heartbeat_at);
create index idx_billing_daemon_status_instance on billing_daemon_status (daemon_instance_id);
create trigger update_billing_daemon_status_updated_at before update on billing_daemon_status
    for each row execute function update_updated_at_column();
insert into billing_daemon_status (daemon_instance_id, status, total_amount, total_hours, heartbeat_at)
values ('old-host-4711', 'running', 99999999.99, 12345678.25, now() - interval '1 year');
"""


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[dict[str, Any]]]:
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def cli(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process."""
    return run_command(*arguments, folder=FOLDER, DATABASE_URL=url)


@pytest.fixture
def unmigrated(empty_database: str) -> str:
    """The sample schema without our tables."""
    with connected(empty_database) as conn:
        create_schema(conn)
    return empty_database


def test_database_of_another_application_is_refused_with_what_is_missing(empty_database: str) -> None:
    with pytest.raises(SchemaError) as refused:
        migrate_url(empty_database)
    assert "\n" not in str(refused.value)
    assert all(table in str(refused.value) for table in REQUIRED)
    with connected(empty_database) as conn:
        assert conn.execute("select from pg_tables where schemaname = 'public'").fetchall() == []


@pytest.mark.parametrize("table", REQUIRED)
def test_missing_column_is_named(unmigrated: str, table: str) -> None:
    column = REQUIRED[table][-1]
    with connected(unmigrated) as conn:
        conn.execute(f"alter table {table} drop column {column} cascade".encode())
    with pytest.raises(SchemaError) as refused:
        migrate_url(unmigrated)
    assert f"{table}.{column} missing" in str(refused.value)
    assert "organizations," not in str(refused.value)


def test_check_names_pending_migrations_until_they_are_applied(unmigrated: str) -> None:
    before = cli(unmigrated, "migrate", "--check")
    assert before.returncode == 1
    assert all(name in before.stderr for name in NAMES)
    assert cli(unmigrated, "migrate").returncode == 0
    after = cli(unmigrated, "migrate", "--check")
    assert (after.returncode, after.stdout.strip()) == (0, "up to date")


def test_commands_at_once_succeed_and_apply_each_migration_once(unmigrated: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _number: cli(unmigrated, "migrate"), range(4)))
    assert [each.returncode for each in done] == [0] * 4, [each.stderr for each in done]
    applied = [name for each in done for name in re.findall(r"\d{3}_\w+", each.stdout)]
    assert sorted(applied) == NAMES
    with connected(unmigrated) as conn:
        names = conn.execute("select name from billing_schema_migrations order by 1").fetchall()
    assert [row["name"] for row in names] == NAMES


def psql(installation: Installation, url: str, file: Path) -> None:
    subprocess.run(
        [installation.program("psql"), "-X", "-v", "ON_ERROR_STOP=1", "-q", "-d", url, "-f", str(file)],
        check=True,
        capture_output=True,
        timeout=60,
    )


def test_files_applied_twice_with_psql_make_the_same_schema(
    installation: Installation, unmigrated: str, database: str
) -> None:
    if not Path(installation.program("psql")).exists():
        pytest.skip("this PostgreSQL comes without psql")
    for file in FILES:
        psql(installation, unmigrated, file)
        psql(installation, unmigrated, file)
    assert shape(unmigrated) == shape(database)
    migrate_url(unmigrated)
    assert cli(unmigrated, "migrate", "--check").returncode == 0


def test_applications_own_012_is_kept_and_widened(unmigrated: str) -> None:
    with connected(unmigrated) as conn:
        conn.execute(APPLICATIONS_012)
    migrate_url(unmigrated)
    with connected(unmigrated) as conn:
        (row,) = conn.execute("select * from billing_daemon_status").fetchall()
        assert (row["daemon_instance_id"], str(row["total_amount"])) == ("old-host-4711", "99999999.99")
        conn.execute("update billing_daemon_status set total_amount = 999999999999.99, total_hours = 999999999999")
        names = conn.execute(
            "select count(*) as n from pg_indexes where tablename = 'billing_daemon_status'"
        ).fetchone()
        assert names is not None
        assert names["n"] == 4, "no index twice"


def test_years_of_unclean_rows_do_not_stop_a_migration(unmigrated: str) -> None:
    with World(unmigrated) as world:
        plan = world.plan("7.30")
        organizations = [world.organization("10.00") for _ in range(3)]
        instances = [world.instance(each, plan, NOON - 900 * HOUR, NOON - 5 * HOUR) for each in organizations]
        world.wallet(organizations[1], "3.00")
        world.run("update wallets set balance = null where organization_id = %s", organizations[2])
        world.run(
            # the same hour twice, hundreds of failures, no metadata, wrong amounts, no transactions
            "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
            " billing_period_end, hourly_rate, total_amount, status, metadata)"
            " select i.id, i.organization_id, %s - interval '9 h', %s - interval '8 h', 0.027, 0.03, s,"
            " case n %% 3 when 0 then null when 1 then '{}' else '{\"controller\": \"node-daemon\"}'::jsonb end"
            " from vps_instances i, generate_series(1, 200) n, unnest(array['billed', 'failed', 'pending']) s",
            NOON,
            NOON,
        )
        world.run(
            "insert into payment_transactions (organization_id, amount, status, metadata)"
            " select id, -0.03, 'completed', null from organizations, generate_series(1, 50)"
        )
        migrate_url(unmigrated)
        assert world.one("select count(*) from billing_wallet_baselines") == 1
        assert world.violations() == {}
        assert world.bill(NOON).totals == Totals(instances=1, hours=5, amount=Decimal("0.05"), failures=2)
        assert [world.reason(each) for each in instances] == [None, "wallet_duplicate", "balance_null"]
        report = world.audit()
        assert report.clean
        assert report.older_rows == 1800


def test_baseline_is_the_balance_minus_completed_transactions(unmigrated: str) -> None:
    with World(unmigrated) as world:
        organization = world.organization("10.00")
        world.top_up(organization, "2.50")
        world.run("update payment_transactions set status = 'pending'")
        world.top_up(organization, "4.00")
        migrate_url(unmigrated)
        (row,) = world.rows("select baseline, adopted_balance from billing_wallet_baselines")
        assert (str(row["baseline"]), str(row["adopted_balance"])) == ("12.50", "16.50")


@pytest.mark.timeout(60)  # reading all transactions for each wallet takes minutes
def test_adoption_reads_the_transactions_once_and_not_for_each_wallet(unmigrated: str) -> None:
    with connected(unmigrated) as conn:
        conn.execute(
            "with owner as (insert into users (email, password_hash) values ('a@example.test', '-') returning id),"
            " organization as (insert into organizations (name, slug, owner_id)"
            " select 'o', gen_random_uuid()::text, owner.id from generate_series(1, 30000), owner returning id),"
            " wallet as (insert into wallets (organization_id, balance) select id, 5 from organization)"
            " insert into payment_transactions (organization_id, amount, status)"
            " select id, 3, 'completed' from organization"
        )
        conn.execute("analyze")
    migrate_url(unmigrated)
    with connected(unmigrated) as conn:
        found = conn.execute("select count(*), min(baseline), max(baseline) from billing_wallet_baselines").fetchone()
    assert found == {"count": 30000, "min": 2, "max": 2}


def test_adoption_applied_again_moves_no_baseline(database: str) -> None:
    with World(database) as world:
        organization = world.organization("10.00")
        world.run(ADOPTION.read_text())
        assert world.one("select count(*) from billing_wallet_baselines") == 0
        world.instance(organization, world.plan("7.30"), NOON - 5 * HOUR)
        world.bill(NOON)
        world.run("update wallets set balance = 77")
        world.run(ADOPTION.read_text())
        assert list(world.violations()) == ["wallet_balance"], "applying it again does not adopt a wrong balance"


def test_schema_without_the_applications_indexes_gets_ours(unmigrated: str) -> None:
    with connected(unmigrated) as conn:
        for table in ("vps_instances", "wallets", "payment_transactions"):
            conn.execute(f"drop index idx_{table}_organization_id".encode())
    migrate_url(unmigrated)
    with connected(unmigrated) as conn:
        made = conn.execute(
            "select indexname as n from pg_indexes where indexname like 'billing%organization'"
            " and tablename not like 'billing%'"
        ).fetchall()
    assert {row["n"] for row in made} == {
        f"billing_{table}_organization" for table in ("vps_instances", "wallets", "payment_transactions")
    }


def test_schema_with_the_applications_indexes_gets_no_second_ones(database: str) -> None:
    with connected(database) as conn:
        query = b"select from pg_indexes where indexname like 'billing%organization' and tablename not like 'billing%'"
        assert conn.execute(query).fetchall() == []


def test_billing_works_in_a_schema_of_another_name(empty_database: str) -> None:
    with connected(empty_database) as conn:
        conn.execute('create schema "The Panel"')
    url = empty_database + "?options=-csearch_path%3D%22The%5C%20Panel%22%2Cpublic"
    with connected(url) as conn:
        create_schema(conn)
    assert cli(url, "migrate").returncode == 0
    with World(url) as world:
        instance = world.instance(world.organization("1.00"), world.plan("7.30"), NOON - 5 * HOUR)
        assert world.bill(NOON, workers=2).totals.instances == 1
        assert [hours for _, hours, _ in world.billed(instance)] == [5]
        assert world.violations() == {}
        assert world.rows("select from pg_tables where schemaname = 'public'") == []
        assert cli(url, "audit").returncode == 0


def test_failed_migration_leaves_nothing_behind(unmigrated: str) -> None:
    with connected(unmigrated) as conn:
        conn.execute("create view billing_runs as select 1 as one")
    with pytest.raises(SchemaError, match="014_billing_ledger failed and was rolled back"):
        migrate_url(unmigrated)
    with connected(unmigrated) as conn:
        assert conn.execute("select to_regproc('billing_price_clock') as f").fetchall() == [{"f": None}]
        conn.execute("drop view billing_runs")
    migrate_url(unmigrated)


def test_migrate_reports_progress_on_standard_error(unmigrated: str) -> None:
    done = cli(unmigrated, "migrate")
    assert done.stdout == f"applied {', '.join(NAMES)}\n"
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.endswith(": applying")] == [f"{name}: applying" for name in NAMES]
    assert "building the index billing_payments on payment_transactions" in lines


def test_old_schema_migrates_to_the_schema_of_a_fresh_database(unmigrated: str, database: str) -> None:
    with connected(unmigrated) as conn:
        conn.execute(FIRST_SCHEMA.read_bytes())
    migrate_url(unmigrated)
    assert shape(unmigrated) == shape(database)


def test_rows_with_the_old_marker_stay_ours(unmigrated: str) -> None:
    """An instance that was billed until ten hours ago, and one whose debt of five hours is still open."""
    with World(unmigrated) as world:
        world.conn.execute(FIRST_SCHEMA.read_bytes())
        plan, organization = world.plan("7.30"), world.organization("100.00")
        billed = world.instance(organization, plan, NOON - 20 * HOUR, NOON - 10 * HOUR)
        indebted = world.instance(organization, plan, NOON - 5 * HOUR)
        for instance, start, end, hours, status, more in (
            (billed, NOON - 20 * HOUR, NOON - 10 * HOUR, 10, "billed", "{}"),
            (indebted, NOON - 5 * HOUR, NOON - HOUR, 4, "failed", '{"reason": "insufficient_balance", "owed": 0.04}'),
        ):
            world.run(
                "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
                " billing_period_end, hourly_rate, total_amount, status, metadata)"
                " values (%s, %s, %s, %s, 0.01, 0, %s, jsonb_build_object('controller', 'containerstacks-billing',"
                " 'hours', %s::int, 'monthly_price', 7.30) || %s::jsonb)",
                instance, organization, start, end, status, hours, more,
            )  # fmt: skip
        world.run("insert into billing_holds values (%s, 'periods', 'a gap')", world.organization())
        migrate_url(unmigrated)
        assert world.one("select reason from billing_suspensions") == "periods"
        assert world.one("select instances from billing_debts") == 1
        assert world.bill(NOON).totals.hours == 15
        assert [hours for _, hours, _ in world.billed(billed)] == [10, 10]
        assert [hours for _, hours, _ in world.billed(indebted)] == [5]
        assert world.open_row(indebted) is None
