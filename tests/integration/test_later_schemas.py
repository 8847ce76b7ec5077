"""Later versions of the application can alter their tables, because no object of this project depends on them."""

from __future__ import annotations

from decimal import Decimal

import psycopg
import pytest

from controller.billing.status import read_status
from controller.postgres.migrations import REQUIRED, SchemaError, check
from tests.integration.world import World
from tests.model import HOUR, NOON


@pytest.fixture
def billed(world: World) -> World:
    """A world with billed hours, payments and a debt."""
    plan = world.plan("7.30")
    for balance in ("10.00", "0.01"):
        world.instance(world.organization(balance), plan, NOON - 5 * HOUR)
    world.bill(NOON)
    return world


def columns(world: World, table: str, of_type: str = "%") -> list[str]:
    rows = world.rows(
        "select attname as name from pg_attribute where attrelid = %s::regclass and attnum > 0 and not attisdropped"
        " and format_type(atttypid, atttypmod) like %s",
        table,
        of_type,
    )
    return [row["name"] for row in rows]


@pytest.mark.parametrize("table", REQUIRED)
def test_application_can_change_its_table(billed: World, table: str) -> None:
    needed = {*REQUIRED[table], "updated_at"}  # the application's own trigger sets it
    unneeded = [column for column in columns(billed, table) if column not in needed]
    for column in unneeded:
        billed.run(f"alter table {table} drop column {column}")
    for column in columns(billed, table, "numeric%"):
        billed.run(f"alter table {table} alter column {column} type numeric(12, 4)")
    for column in columns(billed, table, "character varying%"):
        billed.run(f"alter table {table} alter column {column} type text")
    billed.run(f"alter table {table} add column added text not null default 'x'")
    check(billed.conn)
    billed.top_up(billed.one("select organization_id from wallets where balance < 1"), "5.00")
    billed.bill(NOON + HOUR)
    hours = [
        hours
        for instance in billed.rows("select id from vps_instances")
        for _, hours, _ in billed.billed(instance["id"])
    ]
    assert sum(hours) == 12
    assert billed.violations() == {}
    assert read_status(billed.conn).owed == Decimal(0)


@pytest.mark.parametrize("table", REQUIRED)
def test_application_can_drop_a_column_that_billing_needs(billed: World, table: str) -> None:
    """Only the application's own foreign keys may refuse to drop a column. Billing then refuses the database."""
    for column in REQUIRED[table]:
        with billed.conn.transaction(force_rollback=True):
            try:
                with billed.conn.transaction():
                    billed.run(f"alter table {table} drop column {column}")
            except psycopg.errors.DependentObjectsStillExist as refused:
                detail = refused.diag.message_detail or ""
                assert all(line.startswith("constraint") for line in detail.splitlines()), detail
            else:
                with pytest.raises(SchemaError, match=rf"{table}\.{column} missing"):
                    check(billed.conn)
