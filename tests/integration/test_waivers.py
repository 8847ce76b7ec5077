"""A waiver turns unpaid whole hours into billed periods of 0.00 that record the amount, and moves no money."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from uuid import UUID

import pytest

from controller.billing import control
from controller.billing.control import Command, Wish
from controller.billing.waiver import carry_out_waivers
from tests.integration.world import Term, World
from tests.model import HOUR, NOON

REASON = """50% "goodwill" for ann's outage; drop table --"""


@pytest.fixture
def indebted(world: World) -> World:
    """A world with one organization without money, whose two instances owe four recorded hours at two prices."""
    organization, plan = world.organization("0.00"), world.plan("7.30")
    for label in ("vps-1", "vps-2"):
        world.instance(organization, plan, NOON - 2 * HOUR, label=label)
    world.bill(NOON)
    world.run("update vps_plans set base_price = 14.60")  # counts from the next cycle
    world.bill(NOON + HOUR)
    world.bill(NOON + 2 * HOUR)
    return world


def organization(world: World) -> UUID:
    found: UUID = world.one("select id from organizations")
    return found


def instances(world: World) -> list[UUID]:
    return [row["id"] for row in world.rows("select id from vps_instances order by label")]


def waive(world: World, until: datetime | None, instance: UUID | None = None, batch_size: int = 1000) -> Command:
    """Gives the command, and lets the leader carry it out."""
    leader: Term = world.term()
    wish = Wish("waive", "ann on desk", REASON, until, organization_id=organization(world), instance_id=instance)
    given = control.give(world.conn, wish)
    with (ledger := world.ledger()).connection:
        carry_out_waivers(ledger, leader, batch_size)
    return control.read(world.conn, given.id)


def waived(world: World, instance: UUID) -> list[tuple[datetime, int, Decimal, Decimal]]:
    """Start, hours, amount charged and amount waived of each billed period."""
    rows = world.rows(
        "select billing_period_start as s, (metadata ->> 'hours')::int as h, total_amount as a,"
        " billing_waived(metadata) as w from vps_billing_cycles"
        " where vps_instance_id = %s and status = 'billed' order by 1",
        instance,
    )
    return [(row["s"], row["h"], row["a"], row["w"]) for row in rows]


def test_recorded_and_unrecorded_hours_are_waived_in_one_period_for_each_price(indebted: World) -> None:
    first, second = instances(indebted)
    given = waive(indebted, NOON + 4 * HOUR, batch_size=1)
    for instance in (first, second):
        assert waived(indebted, instance) == [
            (NOON - 2 * HOUR, 3, Decimal("0.00"), Decimal("0.03")),
            (NOON + HOUR, 3, Decimal("0.00"), Decimal("0.06")),
        ]
        assert indebted.open_segments(instance) == []
        assert indebted.last_billed_at(instance) == NOON + 4 * HOUR
    assert given.finished_at is not None
    assert (given.refusal, given.acknowledged_by) == (None, "test-1"), "although the leader had not read it before"
    assert control.read_waived(indebted.conn, given) == {"instances": 2, "hours": 12, "amount": Decimal("0.18")}
    (run,) = indebted.rows("select * from billing_runs where id = %s", given.run_id)
    assert (run["kind"], run["outcome"], run["instances"], run["amount"]) == ("waiver", "completed", 2, 0)
    (facts,) = indebted.rows("select distinct metadata -> 'waived' -> 'reason' as r from vps_billing_cycles")
    assert facts["r"] == REASON
    assert indebted.balance(organization(indebted)) == 0
    assert indebted.one("select count(*) from payment_transactions") == 0
    assert indebted.violations() == {}
    indebted.top_up(organization(indebted), "5.00")
    assert indebted.bill(NOON + 4 * HOUR).totals.instances == 0
    assert indebted.bill(NOON + 5 * HOUR).totals.amount == Decimal("0.04")
    lines = indebted.rows(
        "select kind, sum(hours) as hours from billing_statement(%s, '-infinity', 'infinity') group by 1 order by 1",
        organization(indebted),
    )
    assert [(line["kind"], line["hours"]) for line in lines] == [("charge", 2), ("top_up", None), ("waiver", 12)]
    assert indebted.violations() == {}


def test_open_row_that_reaches_beyond_the_end_keeps_its_price_and_the_rest(indebted: World) -> None:
    first, second = instances(indebted)
    waive(indebted, NOON + HOUR / 2, first)
    assert waived(indebted, first) == [(NOON - 2 * HOUR, 2, Decimal("0.00"), Decimal("0.02"))]
    assert indebted.open_segments(first) == [(NOON, 1, Decimal("7.30")), (NOON + HOUR, 1, Decimal("14.60"))]
    assert waived(indebted, second) == []
    assert indebted.one("select sum(owed) from billing_debts") == Decimal("0.03") + Decimal("0.05")
    assert indebted.violations() == {}
    indebted.top_up(organization(indebted), "5.00")
    assert indebted.bill(NOON + 2 * HOUR).totals.amount == Decimal("0.08")
    assert indebted.violations() == {}


def test_waiver_without_unpaid_hours_is_refused_and_takes_no_run(indebted: World) -> None:
    waive(indebted, NOON + 2 * HOUR)
    runs = indebted.one("select count(*) from billing_runs")
    again = waive(indebted, NOON + 2 * HOUR)
    assert again.refusal == "there are no unpaid whole hours with a price to waive"
    assert indebted.one("select count(*) from billing_runs") == runs


def test_hours_without_a_price_stay_open(world: World) -> None:
    owner = world.organization()
    world.instance(owner, world.plan("-1.00", None), NOON - 2 * HOUR)
    world.bill(NOON)
    assert "no unpaid whole hours" in (waive(world, NOON).refusal or "")
    assert world.reason(instances(world)[0]) == "price_negative"


def test_waiver_waits_for_the_end_of_a_takeover_and_for_locked_rows(indebted: World) -> None:
    indebted.run("update billing_leadership set bill_after = now() + interval '5 minutes'")
    given = waive(indebted, NOON + 2 * HOUR)
    assert (given.finished_at, given.run_id) == (None, None)
    indebted.run("update billing_leadership set bill_after = null")
    with World(indebted.url) as other, other.conn.transaction():
        other.run("select from vps_instances for update")
        with (ledger := indebted.ledger()).connection:
            carry_out_waivers(ledger, indebted.term())
        assert control.read(indebted.conn, given.id).finished_at is None
    with (ledger := indebted.ledger()).connection:
        carry_out_waivers(ledger, indebted.term())
    assert control.read(indebted.conn, given.id).finished_at is not None


def test_audit_finds_a_waiver_whose_amount_was_changed(indebted: World) -> None:
    waive(indebted, NOON + 2 * HOUR)
    indebted.run("update vps_billing_cycles set metadata = jsonb_set(metadata, '{waived,amount}', '9')")
    assert indebted.violations().keys() == {"price_clock"}
