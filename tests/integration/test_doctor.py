"""The doctor names what keeps a database from being billed, and changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from controller import settings
from controller.billing.access import RIGHTS
from controller.doctor import Finding, Level, examine
from tests.integration.world import World
from tests.model import HOUR, NOON

ROLE = "doctor_test"


@pytest.fixture
def billed(database: str) -> Iterator[World]:
    """A database that a cycle has billed. One organization is due."""
    with World(database) as world:
        world.instance(world.organization("9.00"), world.plan("7.30"), NOON - 5 * HOUR)
        world.bill()
        yield world


def examined(url: str) -> list[Finding]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("BILLING_LOCK_NAME", "test")
        patch.setenv("BILLING_KUBERNETES", "off")
        return examine(lambda: settings.load(None))


def failures(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings if finding.level is Level.FAILURE}


def test_database_that_nothing_is_wrong_with_has_no_failure_but_the_missing_leader(billed: World) -> None:
    found = examined(billed.url)
    assert {name: each.message for name, each in failures(found).items()} == {"billing": "no replica leads"}
    assert {each.check for each in found if each.level is Level.SKIPPED} == {"kubernetes"}
    assert sum(each.check == "privileges" for each in found) == len(RIGHTS)
    (standbys,) = [each for each in found if each.check == "standbys"]
    assert "Lock/advisory are normal" in standbys.message


def test_database_that_no_replica_has_led_has_no_failure(world: World) -> None:
    found = examined(world.url)
    assert failures(found) == {}
    assert {each.check for each in found if each.level is Level.WARNING} == {"fallback", "billing"}


def test_doctor_only_reads_and_names_each_missing_right(billed: World) -> None:
    """The role may only read, so anything else that the doctor tried would fail."""
    billed.run(f"drop role if exists {ROLE}; create role {ROLE}; grant select on all tables in schema public to {ROLE}")
    try:
        found = examined(make_conninfo(billed.url, options=f"-c role={ROLE} -c default_transaction_read_only=on"))
    finally:
        billed.run(f"drop owned by {ROLE}; drop role {ROLE}")
    lacking = [each.message for each in found if each.check == "privileges" and each.level is Level.FAILURE]
    assert f"{ROLE} lacks the right to update on wallets (balance, updated_at)" in lacking
    assert len(lacking) == sum(rights.keys() != {"select"} for rights in RIGHTS.values())
    assert failures(found).keys() == {"privileges", "billing"}


def test_several_problems_are_listed_together(billed: World) -> None:
    billed.run("alter table wallets alter column balance type real")
    billed.run("alter table vps_plans add column setup_fee numeric")
    billed.run("delete from billing_schema_migrations where name like '030%%'")
    billed.run("update billing_daemon_status set heartbeat_at = now() - interval '3 hours'")
    found = failures(examined(billed.url))
    assert found.keys() == {"types", "migrations"}
    assert found["types"].remedy == "add it to BILLING_ACCEPT_COLUMNS if it is not one"
    assert found["migrations"].remedy == "run `containerstacks-billing migrate`"


def test_pause_is_a_warning_because_an_operator_wants_it(billed: World) -> None:
    billed.run(
        "insert into billing_commands (command, given_by, reason, until)"
        " values ('pause', 'ann', 'a test', now() + interval '1 hour')"
    )
    found = examined(billed.url)
    assert failures(found).keys() == {"billing"}
    paused = [each for each in found if each.message.startswith("paused until")]
    assert [(each.check, each.level) for each in paused] == [("billing", Level.WARNING)]


def test_active_fallback_and_overdue_instances_are_failures(billed: World) -> None:
    billed.run("update billing_daemon_status set heartbeat_at = now() - interval '3 hours'")
    billed.run("update vps_instances set last_billed_at = null, created_at = now() - interval '9 days'")
    billed.run("delete from vps_billing_cycles")
    found = failures(examined(billed.url))
    assert "3 h 0 min old, so the application's built-in billing is active" in found["fallback"].message


def test_missing_index_is_a_warning_in_a_large_table_and_a_failure_if_it_keeps_charges_unique(billed: World) -> None:
    billed.run("drop index billing_open_rows")
    small = [each for each in examined(billed.url) if each.check == "indexes"]
    assert [each.level for each in small] == [Level.OK, Level.FAILURE]
    billed.run("drop index billing_foreign_periods_created_at")
    billed.run("analyze vps_billing_cycles")
    billed.run("update pg_class set reltuples = 20000 where oid = 'vps_billing_cycles'::regclass")
    found = {each.message.split()[0]: each for each in examined(billed.url) if each.check == "indexes"}
    assert found.keys() == {"billing_ledger", "billing_open_rows", "billing_foreign_periods_created_at"}
    assert found["billing_open_rows"].level is Level.FAILURE
    assert found["billing_foreign_periods_created_at"].level is Level.WARNING
    assert found["billing_foreign_periods_created_at"].message.endswith("(20000 rows) is missing, so cycles are slow")
