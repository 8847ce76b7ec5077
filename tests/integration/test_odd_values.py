"""Unusual numbers and times fail only their own row or organization, and the reason is recorded."""

from decimal import Decimal

import pytest

from controller.billing.status import read_status
from controller.billing.values import Totals
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal


@pytest.fixture
def neighbor(world: World) -> World:
    """A world with one ordinary instance that owes five cents."""
    world.instance(world.organization(), world.plan("7.30"), NOON - 5 * HOUR)
    return world


@pytest.mark.parametrize("balance", ["0.0150", "0.0199", "0.0101", "0.0299"])
def test_fraction_of_a_cent_in_a_wallet_pays_no_hour(world: World, balance: str) -> None:
    world.run("alter table wallets alter column balance type numeric(12,4)")
    organization = world.organization(balance)
    instance = world.instance(organization, world.plan("7.30"), NOON - 5 * HOUR)
    result = world.bill(NOON)
    whole = int(D(balance) * 100)
    assert [hours for _, hours, _ in world.billed(instance)] == [whole]
    assert world.balance(organization) == D(balance) - D(whole) / 100
    assert (result.totals.debts, result.totals.failures) == (1, 0)
    assert world.violations() == {}


@pytest.mark.parametrize("created_at", ["-infinity", "infinity", "1969-12-31", "0044-03-15 BC"])
def test_instance_without_a_usable_start_fails_alone(neighbor: World, created_at: str) -> None:
    organization = neighbor.organization()
    odd = neighbor.instance(organization, neighbor.plan("7.30"), NOON - 5 * HOUR)
    sound = neighbor.instance(organization, neighbor.plan("7.30"), NOON - 4 * HOUR)
    neighbor.run("update vps_instances set created_at = %s::timestamptz where id = %s", created_at, odd)
    assert neighbor.bill(NOON).totals == Totals(instances=2, hours=9, amount=D("0.09"), failures=1)
    assert neighbor.reason(odd) == "start_unknown"
    assert [hours for _, hours, _ in neighbor.billed(sound)] == [4]
    assert neighbor.bill(NOON).totals.failures == 1
    assert neighbor.violations() == {}


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
def test_infinite_last_billed_at_fails_alone(neighbor: World, moment: str) -> None:
    odd = neighbor.instance(neighbor.organization(), neighbor.plan("7.30"), NOON - 5 * HOUR)
    neighbor.run("update vps_instances set last_billed_at = %s::timestamptz where id = %s", moment, odd)
    assert neighbor.bill(NOON).totals == Totals(instances=1, hours=5, amount=D("0.05"), failures=1)
    assert neighbor.reason(odd) == "start_unknown"


@pytest.mark.parametrize(
    ("reason", "balance"), [("balance_nan", "NaN"), ("balance_infinite", "infinity"), ("balance_infinite", "-infinity")]
)
def test_balance_that_is_not_an_amount_fails_its_organization_alone(neighbor: World, reason: str, balance: str) -> None:
    neighbor.run("alter table wallets alter column balance type numeric")
    organization = neighbor.organization()
    odd = neighbor.instance(organization, neighbor.plan("7.30"), NOON - 5 * HOUR)
    neighbor.run("update wallets set balance = %s::numeric where organization_id = %s", balance, organization)
    assert neighbor.bill(NOON).totals == Totals(instances=1, hours=5, amount=D("0.05"), failures=1)
    assert neighbor.reason(odd) == reason
    neighbor.run("update wallets set balance = 10 where organization_id = %s", organization)
    assert neighbor.bill(NOON).totals.instances == 1
    assert neighbor.violations() == {}


def test_infinite_price_fails_its_instances_alone(neighbor: World) -> None:
    neighbor.run("alter table vps_plans alter column base_price type numeric")
    odd = neighbor.instance(neighbor.organization(), neighbor.plan("infinity"), NOON - 5 * HOUR)
    assert neighbor.bill(NOON).totals == Totals(instances=1, hours=5, amount=D("0.05"), failures=1)
    assert neighbor.reason(odd) == "price_infinite"


def test_not_a_number_in_old_payments_spoils_no_baseline(neighbor: World) -> None:
    organization = neighbor.organization("1.00")
    instance = neighbor.instance(organization, neighbor.plan("7.30"), NOON - 5 * HOUR)
    neighbor.run(
        "insert into payment_transactions (organization_id, amount, status, created_at)"
        " values (%s, 'NaN', 'completed', now() - interval '1 year')",
        organization,
    )
    neighbor.bill(NOON)
    assert [hours for _, hours, _ in neighbor.billed(instance)] == [5]
    assert neighbor.violations() == {}


def test_infinite_heartbeat_breaks_no_status(world: World) -> None:
    world.lead()
    world.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
        " values ('a-1', 'running', 'infinity'), ('b-1', 'running', now() - interval '3 minutes')"
    )
    age = read_status(world.conn).heartbeat_age_seconds
    assert age is not None
    assert 170 < age < 200
