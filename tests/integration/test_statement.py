"""A statement adds up, or says by how much it doesn't. Each line can be recomputed."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from controller.billing.answers import Subject, find
from controller.billing.statement import PeriodError, Statement, read_statement
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal


def read(world: World, start: str = "2020-01-01", end: str | None = None) -> Statement:
    slug = world.one("select slug from organizations")
    return read_statement(world.conn, find(world.conn, slug), start, end)


@pytest.fixture
def billed(world: World) -> World:
    """Two instances: hourly charges, a price change, free hours, a top-up and another program's debit."""
    organization = world.organization("10.00")
    plan = world.plan("73.00")
    world.instance(organization, plan, NOON - 2 * HOUR, label="vps-1")
    world.instance(organization, world.plan("0.00"), NOON - HOUR, label="vps-free")
    world.bill(NOON - HOUR)
    world.bill(NOON)
    world.top_up(organization, "5.00")
    world.run("update vps_plans set base_price = 146 where id = %s", plan)
    world.bill(NOON + HOUR)
    world.bill(NOON + 2 * HOUR)
    with world.conn.transaction():
        world.run("update wallets set balance = balance - 1")
        world.run(
            "insert into payment_transactions (organization_id, amount, status, payment_method, description)"
            " values (%s, -1, 'completed', 'wallet_debit', 'egress')",
            organization,
        )
    return world


def test_statement_adds_up_and_each_charge_can_be_recomputed(billed: World) -> None:
    shown = read(billed)
    assert (shown.balance["opening"], shown.balance["closing"], shown.difference) == (D(10), D("13.50"), D(0))
    assert shown.balance["derived"] is True, "the balance before adoption is calculated, not recorded"
    lines = [
        (line["kind"], line["label"], line["hours"], line["monthly_price"], line["amount"]) for line in shown.lines
    ]
    assert lines == [
        ("top_up", None, None, None, D(5)),
        ("charge", "vps-1", 3, D(73), D("-0.30")),
        ("charge", "vps-1", 1, D(146), D("-0.20")),
        ("charge", "vps-free", 3, D(0), D(0)),
        ("debit", None, None, None, D(-1)),
    ]
    for line in shown.lines:
        if line["kind"] == "charge":
            again = billed.one(
                "select billing_charge(%s, %s, %s)", line["monthly_price"], line["starts_at"], line["hours"]
            )
            assert again == -line["amount"]
    assert billed.one("select balance from wallets") == shown.balance["closing"]


def test_period_is_half_open_by_the_payments_created_at(billed: World) -> None:
    at = billed.one("select created_at from payment_transactions where amount = 5")
    later = (at + timedelta(microseconds=1)).isoformat()
    assert [line["amount"] for line in read(billed, at.isoformat(), later).lines] == [D(5)]
    assert read(billed, (at - timedelta(microseconds=1)).isoformat(), at.isoformat()).lines == ()
    before, after = read(billed, "2020-01-01", at.isoformat()), read(billed, at.isoformat())
    assert before.balance["closing"] == after.balance["opening"]
    assert (after.balance["derived"], after.difference) == (False, D(0))


def test_statement_says_by_how_much_it_does_not_add_up(billed: World) -> None:
    billed.run("update wallets set balance = balance + 0.07")
    assert read(billed).difference == D("0.07")
    billed.run("update wallets set balance = 'NaN'")
    assert read(billed).difference is None


def test_charges_of_a_deleted_instance_keep_their_amounts_and_hours(billed: World) -> None:
    billed.run("delete from vps_instances where label = 'vps-1'")
    shown = read(billed)
    (charge,) = [line for line in shown.lines if line["kind"] == "charge" and line["amount"]]
    assert (charge["hours"], charge["amount"], charge["monthly_price"]) == (4, D("-0.50"), None)
    assert shown.difference == 0


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("soon", None, "--from soon is not a date"),
        ("2026-02-30", None, "--from 2026-02-30 is not a date"),
        ("today", "01/02/2026", "--to 01/02/2026 is not a date"),
        ("today", "today", "--from today is not before --to today"),
        ("2999-01-01", None, "--from 2999-01-01 is not before --to now"),
    ],
)
def test_period_that_can_not_be_read_is_refused(world: World, start: str, end: str | None, message: str) -> None:
    subject = Subject(world.organization(), "Org", "org")
    with pytest.raises(PeriodError, match=message):
        read_statement(world.conn, subject, start, end)
