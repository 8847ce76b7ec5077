"""What a short wallet pays, in which order, and the open rows that record the rest as debt."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.billing.status import read_status
from controller.billing.values import Totals
from tests.integration.world import World
from tests.model import HOUR, NOON, Owed, charge_of, settle

D = Decimal


@dataclass(frozen=True)
class Tenant:
    """An organization with two instances at a cent an hour ($7.30 a month) and a free one."""

    organization: UUID
    first: UUID
    second: UUID
    free: UUID


def tenant(world: World, balance: str) -> Tenant:
    """Creates a tenant whose first instance owes ten hours, the second five, the free one three."""
    organization, plan, free = world.organization(balance), world.plan("7.30"), world.plan("0.00")
    second = world.instance(organization, plan, NOON - 8 * HOUR, last_billed_at=NOON - 5 * HOUR)
    return Tenant(
        organization,
        world.instance(organization, plan, NOON - 10 * HOUR),
        second,
        world.instance(organization, free, NOON - 3 * HOUR),
    )


def debts(world: World, *instances: UUID) -> list[tuple[int, Decimal] | None]:
    """Returns the hours and the amount that each instance still owes; None for no debt."""
    rows = [world.open_row(instance) for instance in instances]
    return [(row["hours"], row["owed"]) if row else None for row in rows]


def test_free_hours_after_a_debt_wait_for_it(world: World) -> None:
    instance = world.instance(organization := world.organization("0.00"), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update vps_plans set base_price = 0")
    world.bill(NOON + HOUR)  # first sees the new price, which counts from here
    world.top_up(organization, "0.02")
    world.bill(NOON + 2 * HOUR)
    assert world.billed(instance) == [(NOON - 5 * HOUR, 2, D("0.02"))]
    assert world.open_segments(instance) == [(NOON - 3 * HOUR, 4, D("7.30")), (NOON + HOUR, 1, D(0))]


def test_hours_that_another_program_has_billed_are_cut_off_the_debt(world: World) -> None:
    instance = world.instance(world.organization("0.00"), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = %s", NOON - 2 * HOUR)
    world.bill(NOON)
    assert world.open_segments(instance) == [(NOON - 2 * HOUR, 2, D("7.30"))]


@pytest.mark.parametrize(
    ("balance", "first", "second"),
    [
        ("0.00", 0, 0),
        ("0.01", 1, 0),
        ("0.09", 9, 0),
        ("0.10", 10, 0),
        ("0.13", 10, 3),
        ("0.14", 10, 4),
        ("0.15", 10, 5),
    ],
)
def test_short_wallet_pays_the_oldest_hours_of_the_oldest_instance_first(
    world: World, balance: str, first: int, second: int
) -> None:
    t = tenant(world, balance)
    world.bill(NOON)
    assert world.billed(t.first) == [(NOON - 10 * HOUR, first, D(first).scaleb(-2))][: bool(first)]
    assert world.billed(t.second) == [(NOON - 5 * HOUR, second, D(second).scaleb(-2))][: bool(second)]
    assert world.billed(t.free) == [(NOON - 3 * HOUR, 3, D(0))]
    assert world.balance(t.organization) == 0
    assert debts(world, t.first, t.second) == [
        (10 - first, D(10 - first).scaleb(-2)) if first < 10 else None,
        (5 - second, D(5 - second).scaleb(-2)) if second < 5 else None,
    ]
    assert world.violations() == {}


def test_balance_too_small_for_one_instance_pays_the_next(world: World) -> None:
    organization = world.organization("0.15")
    dear = world.instance(organization, world.plan("73.00"), NOON - 9 * HOUR)
    cheap = world.instance(organization, world.plan("7.30"), NOON - 8 * HOUR)
    world.bill(NOON)
    assert world.billed(dear) == [(NOON - 9 * HOUR, 1, D("0.10"))]
    assert world.billed(cheap) == [(NOON - 8 * HOUR, 5, D("0.05"))]
    assert world.violations() == {}


def test_instances_created_together_pay_in_order_of_id(world: World) -> None:
    organization, plan = world.organization("0.02"), world.plan("7.30")
    instances = sorted(world.instance(organization, plan, NOON - HOUR) for _ in range(5))
    world.bill(NOON)
    assert [bool(world.billed(instance)) for instance in instances] == [True, True, False, False, False]


def test_instance_without_a_creation_time_pays_last(world: World) -> None:
    organization, plan = world.organization("0.06"), world.plan("7.30")
    unknown = world.instance(organization, plan, None, last_billed_at=NOON - 5 * HOUR)
    known = world.instance(organization, plan, NOON - 5 * HOUR)
    world.instance(world.organization(), plan, NOON - 5 * HOUR)  # the batch ends with another instance
    world.bill(NOON)
    assert [hours for _, hours, _ in world.billed(known)] == [5]
    assert [hours for _, hours, _ in world.billed(unknown)] == [1]


def test_growing_debt_updates_its_row_in_place(world: World) -> None:
    t = tenant(world, "0.04")
    world.bill(NOON)
    opened = world.open_row(t.first)
    assert opened is not None
    for hours in range(1, 5):
        world.bill(NOON + hours * HOUR)
    row = world.open_row(t.first)
    assert row is not None
    assert (row["id"], row["hours"], row["owed"]) == (opened["id"], 10, D("0.10"))
    assert row["billing_period_start"] == NOON - 6 * HOUR
    assert row["billing_period_end"] == NOON + 4 * HOUR
    assert row["metadata"]["since"] == opened["metadata"]["since"], "the start of the debt does not move"
    assert row["payment_transaction_id"] is None
    assert world.one("select count(*) from vps_billing_cycles where status = 'failed'") == 2
    assert world.violations() == {}


def test_status_counts_a_debt_with_unreadable_metadata(world: World) -> None:
    t = tenant(world, "0.00")
    world.bill(NOON)
    world.run(
        """update vps_billing_cycles set metadata = metadata || '{"owed": "much"}' where vps_instance_id = %s""",
        t.first,
    )
    shown = read_status(world.conn)
    assert (shown.debts, shown.owed) == (2, D("0.15"))


def test_paid_debt_becomes_the_billed_row(world: World) -> None:
    t = tenant(world, "0.00")
    world.bill(NOON)
    opened = world.open_row(t.first)
    world.top_up(t.organization, "5.00")
    world.bill(NOON + HOUR)
    (row,) = world.rows("select * from vps_billing_cycles where vps_instance_id = %s", t.first)
    assert opened is not None
    assert (row["id"], row["status"], row["total_amount"]) == (opened["id"], "billed", D("0.11"))
    assert row["metadata"]["owed_since"] == opened["metadata"]["since"]
    assert not {"reason", "owed", "since"} & row["metadata"].keys()
    assert row["payment_transaction_id"] is not None
    assert world.balance(t.organization) == D("5.00") - D("0.17")
    assert world.one("select count(*) from vps_billing_cycles where status = 'failed'") == 0
    assert world.violations() == {}


def test_debt_is_paid_in_parts(world: World) -> None:
    t = tenant(world, "0.00")
    world.bill(NOON)
    paid = 0
    for part in (3, 4, 2):
        world.top_up(t.organization, f"0.0{part}")
        world.bill(NOON)
        paid += part
        assert debts(world, t.first, t.second) == [(10 - paid, D(10 - paid).scaleb(-2)), (5, D("0.05"))]
    world.top_up(t.organization, "0.06")
    assert world.bill(NOON).totals == Totals(instances=2, hours=6, amount=D("0.06"))
    assert [hours for _, hours, _ in world.billed(t.first)] == [3, 4, 2, 1]
    assert debts(world, t.first, t.second) == [None, None]
    assert world.balance(t.organization) == 0
    assert world.violations() == {}


def test_totals_count_debts_apart_from_failures(world: World) -> None:
    tenant(world, "0.12")
    world.instance(world.organization(None), "p", NOON - 5 * HOUR)
    result = world.bill(NOON)
    assert result.totals == Totals(instances=3, hours=15, amount=D("0.12"), debts=1, failures=1)
    (run,) = world.rows("select instances, hours, amount, debts, failures, suspended from billing_runs")
    assert Totals.from_row(run) == result.totals


def test_negative_wallet_pays_nothing_and_keeps_its_balance(world: World) -> None:
    t = tenant(world, "-3.00")
    world.bill(NOON)
    assert world.balance(t.organization) == D("-3.00")
    assert debts(world, t.first, t.second, t.free) == [(10, D("0.10")), (5, D("0.05")), None]
    assert world.violations() == {}, "it was negative before adoption"


def test_deleted_instance_no_longer_owes(world: World) -> None:
    t = tenant(world, "0.00")
    world.bill(NOON)
    world.run("delete from vps_instances where id = %s", t.first)
    world.top_up(t.organization, "1.00")
    assert world.bill(NOON).totals.amount == D("0.05")
    assert world.violations() == {}


def test_overlapping_open_rows_are_paid_once(world: World) -> None:
    """Another program has copied an open row of five hours, two hours later and one hour longer."""
    organization = world.organization("0.00")
    instance = world.instance(organization, world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON - 4 * HOUR)
    world.run(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status, metadata) select vps_instance_id, organization_id,"
        " billing_period_start + interval '2 hours', billing_period_end + interval '1 hour', hourly_rate, 0.04, status,"
        " metadata || '{\"hours\": 4}' from vps_billing_cycles"
    )
    world.top_up(organization, "5.00")
    assert world.bill(NOON).totals.hours == 9
    assert [(start, hours) for start, hours, _ in world.billed(instance)] == [
        (NOON - 9 * HOUR, 2), (NOON - 7 * HOUR, 7)
    ]  # fmt: skip
    assert world.violations() == {}


def test_debt_follows_its_instance_to_another_organization(world: World) -> None:
    t, other = tenant(world, "0.00"), world.organization("9.00")
    world.bill(NOON)
    world.run("update vps_instances set organization_id = %s where id = %s", other, t.first)
    world.bill(NOON)
    assert world.balance(other) == D("8.90")
    assert debts(world, t.first, t.second) == [None, (5, D("0.05"))]
    assert world.violations() == {}


def test_recorded_debt_keeps_its_price_and_a_new_price_adds_a_row(world: World) -> None:
    organization, plan = world.organization("0.04"), world.plan("7.30")
    instance = world.instance(organization, plan, NOON - 10 * HOUR)
    world.bill(NOON)
    world.run("update vps_plans set base_price = 73.00")
    world.bill(NOON + HOUR)  # first sees the new price; this hour began before it
    world.bill(NOON + 3 * HOUR)
    rows = world.rows(
        "select (metadata ->> 'hours')::int as hours, (metadata ->> 'owed')::numeric as owed from vps_billing_cycles"
        " where status = 'failed' order by billing_period_start"
    )
    assert [(row["hours"], row["owed"]) for row in rows] == [(7, D("0.07")), (2, D("0.20"))]
    world.top_up(organization, "0.17")
    world.bill(NOON + 3 * HOUR)
    assert [(hours, amount) for _, hours, amount in world.billed(instance)] == [
        (4, D("0.04")), (7, D("0.07")), (1, D("0.10")),
    ]  # fmt: skip
    assert world.open_row(instance)["owed"] == D("0.10")  # type: ignore[index]
    assert world.violations() == {}


def test_debt_of_a_moved_instance_keeps_the_price_of_the_old_plan(world: World) -> None:
    organization, cheap, dear = world.organization("0.00"), world.plan("5.00"), world.plan("80.00")
    instance = world.instance(organization, cheap, NOON - 500 * HOUR)
    world.bill(NOON)
    world.run("update vps_instances set plan_id = %s", str(dear))
    world.top_up(organization, "100.00")
    world.bill(NOON)
    assert sum(hours for _, hours, _ in world.billed(instance)) == 500
    assert sum(amount for *_, amount in world.billed(instance)) == charge_of(D("5.00"), NOON - 500 * HOUR, 500)
    assert world.violations() == {}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("balance", ["0.00", "0.17", "0.35", "2.00"])
def test_large_organization_pays_in_steps_as_in_one(world: World, batch_size: int, balance: str) -> None:
    organization, plan = world.organization(balance), world.plan("7.30")
    instances = [world.instance(organization, plan, NOON - (20 - n) * HOUR, NOON - 5 * HOUR) for n in range(7)]
    neighbours = [world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR) for _ in range(2)]
    world.bill(NOON, batch_size=batch_size)
    expected = settle(D(balance), [Owed(D("7.30"), NOON - 5 * HOUR, 5)] * 7)
    assert [sum(hours for _, hours, _ in world.billed(instance)) for instance in instances] == expected
    assert all(world.billed(each) for each in neighbours)
    assert world.violations() == {}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    balance=st.decimals("0", "12", places=2),
    owed=st.lists(
        st.tuples(st.decimals("0", "900", places=2), st.integers(1, 99), st.integers(0, 3_599_999_999)),
        min_size=1,
        max_size=8,
    ),
    batch_size=st.sampled_from([1, 3, 100]),
)
def test_payments_equal_the_model(
    world: World, balance: Decimal, owed: list[tuple[Decimal, int, int]], batch_size: int
) -> None:
    organization = world.organization(str(balance))
    instances, model = [], []
    for number, (price, hours, microseconds) in enumerate(owed):
        start = NOON - hours * HOUR - timedelta(microseconds=microseconds)
        instances.append(world.instance(organization, world.plan(str(price)), NOON - (999 - number) * HOUR, start))
        model.append(Owed(price, start, hours))
    world.bill(NOON, batch_size=batch_size)
    paid = settle(balance, model)
    assert [sum(hours for _, hours, _ in world.billed(instance)) for instance in instances] == paid
    spent = sum((each.cost(hours) for each, hours in zip(model, paid, strict=True)), D(0))
    assert world.balance(organization) == balance - spent
    assert [row and row[0] for row in debts(world, *instances)] == [
        each.hours - hours or None for each, hours in zip(model, paid, strict=True)
    ]
    assert world.violations() == {}


def test_backlog_paid_in_two_parts_costs_the_same(world: World) -> None:
    """A partial payment splits a period in two. Together they cost as much as one."""
    organization, start = world.organization("1.00"), NOON - 700 * HOUR - timedelta(microseconds=1)
    instance = world.instance(organization, world.plan("9.99"), start)
    world.bill(NOON)
    world.top_up(organization, "50.00")
    world.bill(NOON)
    assert sum(amount for _, _, amount in world.billed(instance)) == charge_of(D("9.99"), start, 700)
    assert world.violations() == {}
