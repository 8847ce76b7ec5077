"""An operator's suspension records hours at their prices and charges them afterwards. The guard's is separate."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import pytest

from controller.billing import control
from controller.billing.control import Wish
from controller.billing.guard import Guard
from controller.billing.status import read_status
from controller.billing.values import Outcome
from tests.integration.world import ScriptedStop, World
from tests.model import HOUR, NOON

REASON = """50% "off" at ann's"""


def suspend(world: World, organization: UUID, seconds: float | None = None) -> None:
    wish = Wish("suspend", "ann on desk", REASON, for_seconds=seconds, organization_id=organization)
    control.suspend(world.conn, wish)


def unsuspend(world: World, organization: UUID) -> str | None:
    """Returns the reason of the suspension that it ended."""
    ended = control.unsuspend(world.conn, Wish("unsuspend", "ann on desk", organization_id=organization))
    return ended and ended[1]["reason"]


def test_hours_of_a_suspended_organization_are_recorded_at_their_prices_and_charged_afterwards(world: World) -> None:
    organization, plan = world.organization(), world.plan("7.30")
    instance = world.instance(organization, plan, NOON - 2 * HOUR)
    suspend(world, organization)
    first = world.bill(NOON)
    assert (first.outcome, first.totals.suspended, first.totals.debts) == (Outcome.COMPLETED, 1, 0)
    world.run("update vps_plans set base_price = 14.60")  # counts from the next cycle
    world.bill(NOON + HOUR)
    world.bill(NOON + 2 * HOUR)
    reasons = world.rows("select metadata ->> 'reason' as r from vps_billing_cycles where status = 'failed'")
    assert {row["r"] for row in reasons} == {"suspended"}
    assert [(hours, price) for _, hours, price in world.open_segments(instance)] == [
        (3, Decimal("7.30")), (1, Decimal("14.60"))
    ]  # fmt: skip
    assert (world.billed(instance), world.balance(organization)) == ([], Decimal(1000))
    status = read_status(world.conn)
    assert (status.suspended, status.suspended_by_operators, status.debts, status.failures) == (0, 1, 0, 0)
    assert world.violations() == {}
    assert unsuspend(world, organization) == REASON
    world.run("update vps_plans set base_price = 73")
    assert world.bill(NOON + 2 * HOUR).totals.amount == Decimal("0.05")
    assert world.open_segments(instance) == []
    assert world.violations() == {}


def test_suspension_during_a_cycle_counts_from_the_next_batch(world: World) -> None:
    plan = world.plan("7.30")
    organizations = [world.organization() for _ in range(3)]
    for organization in organizations:
        world.instance(organization, plan, NOON - 2 * HOUR)

    def may_start_batch() -> bool:
        if world.one("select count(*) from payment_transactions") == 1:
            suspend(world, organizations[2])
        return True

    result = world.bill(NOON, batch_size=1, may_start_batch=may_start_batch)
    assert (result.totals.instances, result.totals.suspended) == (2, 1)


def test_debt_of_a_suspended_organization_keeps_its_price_and_is_no_debt(world: World) -> None:
    organization, plan = world.organization("0.00"), world.plan("7.30")
    instance = world.instance(organization, plan, NOON - 2 * HOUR)
    world.bill(NOON)
    suspend(world, organization)
    world.run("update vps_plans set base_price = 14.60")  # counts from the next cycle
    assert world.bill(NOON + HOUR).totals.debts == 0
    world.bill(NOON + 2 * HOUR)
    assert world.one("select count(*) from billing_debts") == 0
    assert [price for *_, price in world.open_segments(instance)] == [Decimal("7.30"), Decimal("14.60")]


def test_suspension_ends_by_the_database_clock(world: World) -> None:
    organization = world.organization()
    world.instance(organization, world.plan("7.30"), NOON - 2 * HOUR)
    suspend(world, organization, 3600)
    assert world.bill(NOON).totals.suspended == 1
    world.run("update billing_suspensions set until = now()")
    assert world.bill(NOON).totals.instances == 1
    assert read_status(world.conn).suspended_by_operators == 0


@pytest.mark.parametrize("lifted_by", ["guard", "operator"])
def test_guard_and_operator_end_only_their_own_suspension(world: World, lifted_by: str) -> None:
    organization = world.organization()
    instance = world.instance(organization, world.plan("7.30"), NOON - 2 * HOUR)
    world.run(
        "insert into billing_suspensions (organization_id, reason, detail) values (%s, 'periods', 'x')", organization
    )
    suspend(world, organization)
    suspend(world, organization)
    world.bill(NOON)
    assert world.reason(instance) == "audit_violation"
    status = read_status(world.conn)
    assert (status.suspended, status.suspended_by_operators) == (1, 1)
    if lifted_by == "guard":
        Guard(world.ledger, ScriptedStop()).unsuspend(world.term())
    else:
        assert unsuspend(world, organization) == REASON
    assert world.bill(NOON).totals.suspended == 1
    assert world.reason(instance) == ("suspended" if lifted_by == "guard" else "audit_violation")


def test_unsuspend_does_not_end_a_suspension_by_the_guard(world: World) -> None:
    organization = world.organization()
    world.run(
        "insert into billing_suspensions (organization_id, reason, detail) values (%s, 'periods', 'x')", organization
    )
    assert unsuspend(world, organization) is None
    assert world.one("select count(*) from billing_suspensions") == 1
    assert world.one("select count(*) from billing_commands") == 0
