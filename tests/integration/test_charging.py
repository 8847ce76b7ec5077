"""What a cycle charges a wallet that can pay, and the rows that it writes."""

from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from controller.billing.ledger import MARKER
from controller.billing.values import Totals
from tests.integration.world import World
from tests.model import HOUR, NOON, charge_of

D = Decimal


def test_charge_moves_wallet_payment_period_and_instance_together(world: World) -> None:
    organization, plan = world.organization("10.00"), world.plan("4.00", "1.00")
    instance = world.instance(organization, plan, NOON - 100 * HOUR - timedelta(minutes=59), label="web")
    cost = charge_of(D("5.00"), NOON - 100 * HOUR - timedelta(minutes=59), 100)

    result = world.bill(NOON)

    assert result.totals == Totals(instances=1, hours=100, amount=cost)
    assert world.balance(organization) == D("10.00") - cost
    assert world.last_billed_at(instance) == NOON - timedelta(minutes=59)
    (period,) = world.rows("select * from vps_billing_cycles")
    (payment,) = world.rows("select * from payment_transactions")
    assert (period["status"], period["total_amount"], period["hourly_rate"]) == ("billed", cost, D("0.0068"))
    assert period["organization_id"] == payment["organization_id"] == organization
    assert period["billing_period_start"] == NOON - 100 * HOUR - timedelta(minutes=59)
    assert period["billing_period_end"] == NOON - timedelta(minutes=59)
    assert period["payment_transaction_id"] == payment["id"]
    assert period["metadata"] == {
        "controller": MARKER,
        "hours": 100,
        "monthly_price": 5.0,
        "price_source": "plan",
        "hours_charged": 100,
        "base_hourly_rate": 0.0068,
        "vps_label": "web",
        "term": 1,
        "run": result.run.id if result.run else None,
    }
    assert (payment["amount"], payment["status"], payment["currency"]) == (-cost, "completed", "USD")
    assert (payment["payment_method"], payment["payment_provider"]) == ("wallet_debit", "internal")
    assert "web" in payment["description"]
    assert world.violations() == {}


def test_cycle_with_nothing_due_writes_nothing(world: World) -> None:
    organization, plan = world.organization(), world.plan()
    world.instance(organization, plan, NOON - HOUR + timedelta(microseconds=1))
    world.instance(organization, plan, NOON - 99 * HOUR, last_billed_at=NOON - timedelta(minutes=59))
    money = ("wallets", "vps_instances", "payment_transactions", "vps_billing_cycles", "billing_wallet_baselines")
    before = world.dump(*money)
    assert world.bill(NOON).totals == Totals()
    assert world.dump(*money) == before


def test_hour_is_due_when_exactly_an_hour_has_passed(world: World) -> None:
    organization, plan = world.organization("1.00"), world.plan("7.30")
    world.instance(organization, plan, NOON - HOUR)
    world.instance(organization, plan, NOON - 99 * HOUR, last_billed_at=NOON - HOUR)
    assert world.bill(NOON).totals == Totals(instances=2, hours=2, amount=D("0.02"))


def test_second_cycle_at_the_same_moment_charges_nothing(world: World) -> None:
    organization = world.organization()
    world.instance(organization, world.plan(), NOON - 9 * HOUR)
    world.bill(NOON)
    balance = world.balance(organization)
    assert world.bill(NOON).totals == Totals()
    assert world.bill(NOON + timedelta(minutes=59)).totals == Totals()
    assert world.balance(organization) == balance


@pytest.mark.parametrize(
    ("cadence", "hours"), [(5, 50), (24, 730), (100, 730), (730, 730)], ids=lambda number: f"{number} h"
)
@pytest.mark.parametrize("start", [NOON - 730 * HOUR, NOON - 730 * HOUR + timedelta(microseconds=-123457)])
def test_month_costs_its_price_at_every_cadence(world: World, cadence: int, hours: int, start: datetime) -> None:
    plans = {price: world.plan(price) for price in ("0.01", "3.00", "5.00", "19.99")}
    organization = world.organization("100.00")
    instances = {price: world.instance(organization, plan, start) for price, plan in plans.items()}
    leadership = world.lead()
    for elapsed in [*range(cadence, hours, cadence), hours]:
        world.bill(start + elapsed * HOUR, leadership)
    for price, instance in instances.items():
        periods = world.billed(instance)
        assert sum(hours for _, hours, _ in periods) == hours
        assert sum(amount for _, _, amount in periods) == charge_of(D(price), start, hours)
        if hours == 730:
            assert sum(amount for _, _, amount in periods) == D(price)
    assert world.violations() == {}


def test_free_hour_is_billed_without_a_payment(world: World) -> None:
    organization, plan = world.organization("0.00"), world.plan("0.00", "0.00")
    instance = world.instance(organization, plan, NOON - 5 * HOUR)
    updated_at = world.one("select updated_at from wallets")
    assert world.bill(NOON).totals == Totals(instances=1, hours=5, amount=D(0))
    assert world.billed(instance) == [(NOON - 5 * HOUR, 5, D("0.00"))]
    assert world.one("select payment_transaction_id from vps_billing_cycles") is None
    assert world.one("select count(*) from payment_transactions") == 0
    assert world.one("select updated_at from wallets") == updated_at
    assert world.violations() == {}


def test_hour_costs_what_it_cost_when_it_began(world: World) -> None:
    organization, plan = world.organization("500.00"), world.plan("5.00")
    instance = world.instance(organization, plan, NOON - 30 * HOUR)
    world.bill(NOON - 10 * HOUR)
    world.run("update vps_plans set base_price = 73.00")
    world.bill(NOON)  # first sees the new price, which counts from here
    world.bill(NOON + 10 * HOUR)
    assert world.billed(instance) == [
        (NOON - 30 * HOUR, 20, charge_of(D("5.00"), NOON - 30 * HOUR, 20)),
        (NOON - 10 * HOUR, 10, charge_of(D("5.00"), NOON - 10 * HOUR, 10)),
        (NOON, 10, D("1.00")),
    ]
    assert world.violations() == {}


def test_refunded_hours_are_not_charged_again(world: World) -> None:
    instance = world.instance(world.organization("5.00"), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update vps_billing_cycles set status = 'refunded'")
    world.run("update vps_instances set last_billed_at = null")
    assert world.bill(NOON + HOUR).totals.hours == 1
    assert world.billed(instance) == [(NOON, 1, D("0.01"))]


def test_price_change_counts_from_the_plan_update_that_made_it(world: World) -> None:
    plan = world.plan("7.30")
    world.instance(world.organization("5.00"), plan, NOON)
    world.bill()
    world.run("update vps_plans set base_price = 14.60, updated_at = clock_timestamp()")
    changed_at = world.one("select updated_at from vps_plans")
    assert world.rows("select valid_from, monthly_price from billing_price_changes() where key = %s", str(plan)) == [
        {"valid_from": changed_at, "monthly_price": D("14.60")}
    ]


def test_price_change_during_a_look_counts_from_its_own_time(world: World) -> None:
    """The look's transaction has begun, but its statement hasn't run yet, so it sees the change."""
    plan = world.plan("7.30")
    world.instance(world.organization("5.00"), plan, NOON)
    world.bill()
    ledger, term = world.ledger(), world.lead().term
    with ledger.connection, ledger.fenced(term):
        world.run("update vps_plans set base_price = 14.60, updated_at = clock_timestamp()")
        ledger.begin_run(term)
    recorded = "select valid_from from billing_prices where key = %s and monthly_price = 14.60"
    assert world.one(recorded, str(plan)) == world.one("select updated_at from vps_plans")
    assert world.rows("select key from billing_price_changes()") == []


@pytest.mark.parametrize("updated_at", ["2999-01-01 00:00Z", None, "infinity", "-infinity"])
def test_price_change_with_an_impossible_time_counts_from_the_look(world: World, updated_at: str | None) -> None:
    plan = world.plan("7.30")
    world.instance(world.organization("5.00"), plan, NOON)
    world.bill()
    world.run("alter table vps_plans disable trigger user")
    world.run("update vps_plans set base_price = 14.60, updated_at = %s::timestamptz", updated_at)
    world.bill()
    assert world.one(
        "select p.valid_from = p.recorded_at and p.valid_from <= r.started_at from billing_prices p, billing_runs r"
        " where p.key = %s and p.monthly_price = 14.60 order by r.id desc limit 1",
        str(plan),
    )


def test_charge_never_spans_a_price_change(world: World) -> None:
    """Hours begin at half past. The hour in which a cycle first sees the change began before it."""
    start = NOON - 30 * HOUR - HOUR / 2
    organization, plan = world.organization("500.00"), world.plan("5.00")
    instance = world.instance(organization, plan, start)
    world.bill(NOON - 40 * HOUR)  # nothing is due; the price is recorded
    world.run("update vps_plans set base_price = 73.00")
    world.bill(NOON - 20 * HOUR, workers=2)
    world.run("update vps_instances set last_billed_at = null where id = %s", instance)
    world.run("delete from vps_billing_cycles")
    world.run("delete from payment_transactions")
    world.run("update wallets set balance = 500.00")
    world.bill(NOON)
    assert world.billed(instance) == [
        (start, 11, charge_of(D("5.00"), start, 11)),
        (start + 11 * HOUR, 19, D("1.90")),
    ]


def test_instance_is_billed_in_every_power_state(world: World) -> None:
    organization, plan = world.organization(), world.plan()
    for status in ("running", "stopped", "suspended", "deleting", "error"):
        instance = world.instance(organization, plan, NOON - 9 * HOUR)
        world.run("update vps_instances set status = %s where id = %s", status, instance)
    assert world.bill(NOON).totals.instances == 5


@pytest.mark.parametrize("label", [None, "", "x" * 255, "'; drop table wallets; --", '100% {"a"} \\ ümläut 🧾'])
def test_instance_with_any_label_is_billed(world: World, label: str | None) -> None:
    organization = world.organization()
    instance = world.instance(organization, world.plan(), NOON - 9 * HOUR, label=label)
    world.bill(NOON)
    assert len(world.billed(instance)) == 1
    assert (label or str(instance)) in world.one("select description from payment_transactions") or label == ""


def test_lowercase_currency_is_the_same_currency(world: World) -> None:
    organization = world.organization("10.00", "usd")
    world.instance(organization, world.plan(), NOON - 9 * HOUR)
    assert world.bill(NOON).totals.instances == 1
    assert world.violations() == {}


def plan_of(world: World, organization: UUID, plan: UUID | str | None) -> tuple[Decimal, str]:
    """Bills an instance of this plan. Returns the monthly price charged and its source."""
    instance = world.instance(organization, plan, NOON - 9 * HOUR)
    world.bill(NOON)
    (row,) = world.rows(
        "select (metadata ->> 'monthly_price')::numeric as p, metadata ->> 'price_source' as s"
        " from vps_billing_cycles where vps_instance_id = %s and status = 'billed'",
        instance,
    )
    return row["p"], row["s"]


def test_inactive_plan_is_found_by_its_id(world: World) -> None:
    organization = world.organization()
    assert plan_of(world, organization, world.plan("8.00", "2.00", active=False)) == (D("10.00"), "plan")


def test_plan_without_markup_costs_its_base_price(world: World) -> None:
    organization = world.organization()
    assert plan_of(world, organization, world.plan("8.00", None)) == (D("8.00"), "plan")


def test_provider_plan_id_finds_the_active_plan_then_the_oldest(world: World) -> None:
    organization = world.organization()
    world.plan("1.00", provider="small", active=False)
    world.plan("1.50", provider="small", active=None)
    world.plan("2.00", provider="small", active=True)
    world.plan("3.00", provider="small", active=True)
    world.plan("4.00", provider="retired", active=False)
    world.plan("5.00", provider="retired", active=False)
    assert plan_of(world, organization, "small") == (D("2.00"), "provider_plan")
    assert plan_of(world, organization, "retired") == (D("4.00"), "provider_plan")


def test_plan_id_takes_precedence_over_an_equal_provider_plan_id(world: World) -> None:
    organization = world.organization()
    mine = world.plan("7.00")
    world.plan("1.00", provider=str(mine))
    assert plan_of(world, organization, mine) == (D("7.00"), "plan")


@pytest.mark.parametrize("kind", ["gone", "null", "free text", "no base price"])
def test_instance_without_a_priced_plan_costs_the_default_rate(world: World, kind: str) -> None:
    organization = world.organization()
    plan: UUID | str | None = {
        "gone": "0e0e0e0e-0000-4000-8000-000000000000",
        "null": None,
        "free text": "no such plan",
        "no base price": world.plan(None, "3.00"),
    }[kind]
    assert plan_of(world, organization, plan) == (D("19.71"), "default")
    assert world.violations() == {}


def test_cycle_reports_instances_charged_at_the_default_rate(world: World) -> None:
    reported: list[dict[str, str]] = []
    instance = world.instance(world.organization(), "gone", NOON - 9 * HOUR, label="web")
    world.cycle(NOON).run(world.lead(), on_result=lambda result: reported.extend(result.priced_by_default))
    assert reported == [{"vps_instance_id": str(instance), "label": "web", "plan_id": "gone"}]


def test_years_of_hours_are_charged_in_one_period(world: World) -> None:
    organization, plan = world.organization("99999999.99"), world.plan("99999.00", "999.99")
    start = NOON - 200_000 * HOUR
    instance = world.instance(organization, plan, start)
    cost = charge_of(D("100998.99"), start, 200_000)
    assert world.bill(NOON).totals == Totals(instances=1, hours=200_000, amount=cost)
    assert world.balance(organization) == D("99999999.99") - cost
    assert world.billed(instance) == [(start, 200_000, cost)]
    assert world.violations() == {}


def test_debt_larger_than_its_column_is_exact_in_the_metadata(world: World) -> None:
    organization, plan = world.organization("0.00"), world.plan("99999999.00", "99999999.00")
    instance = world.instance(organization, plan, NOON - 99_999 * HOUR)
    world.bill(NOON)
    row = world.open_row(instance)
    assert row is not None
    assert row["owed"] == charge_of(D("199999998.00"), NOON - 99_999 * HOUR, 99_999)
    assert row["total_amount"] == D("99999999.99")
    assert world.violations() == {}


@pytest.mark.parametrize("moved_to", ["-30 minutes", "-3 hours", "-5 hours", "-9 days"])
def test_last_billed_at_moved_back_charges_no_hour_twice(world: World, moved_to: str) -> None:
    instance = world.instance(world.organization(), world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON - 4 * HOUR)
    world.run("update vps_instances set last_billed_at = last_billed_at + %s::interval", moved_to)
    with capture_logs() as logs:
        world.bill(NOON)
        world.bill(NOON)
    assert [hours for _, hours, _ in world.billed(instance)] == [5, 4]
    assert world.last_billed_at(instance) == NOON
    assert sum(line.get("rewound", 0) for line in logs) == 1
    assert world.violations() == {}


def test_removed_last_billed_at_charges_no_hour_twice(world: World) -> None:
    instance = world.instance(world.organization(), world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = null")
    world.bill(NOON)
    assert [hours for _, hours, _ in world.billed(instance)] == [9]
    assert world.last_billed_at(instance) == NOON


def test_open_row_that_cannot_be_deleted_fails_its_organization(world: World) -> None:
    """Another program has billed the hours of the open row, and a trigger keeps it."""
    organization = world.organization("0.00")
    instance = world.instance(organization, world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON - 4 * HOUR)
    world.run("create function keep() returns trigger language plpgsql as $$ begin return null; end $$")
    world.run("create trigger keep before delete on vps_billing_cycles for each row execute function keep()")
    world.run("update vps_instances set last_billed_at = %s where id = %s", NOON - 2 * HOUR, instance)
    world.top_up(organization, "5.00")
    assert world.bill(NOON).totals == Totals(failures=1)
    assert world.balance(organization) == D("5.00")


@pytest.mark.parametrize("table", ["payment_transactions", "vps_billing_cycles"])
@pytest.mark.parametrize("balance", ["100.00", "0.03"])
def test_row_that_the_database_drops_fails_its_organization_alone(world: World, table: str, balance: str) -> None:
    plan = world.plan("7.30")
    bad, good = world.organization(balance), world.organization()
    dropped = world.instance(bad, plan, NOON - 5 * HOUR)
    charged = world.instance(good, plan, NOON - 5 * HOUR)
    world.run(
        f"""create function drop_row() returns trigger language plpgsql as
        $$ begin return case when new.organization_id <> '{bad}' or new.status = 'failed' then new end; end $$"""
    )
    world.run(f"create trigger drop_row before insert on {table} for each row execute function drop_row()")
    result = world.bill(NOON)
    assert (result.totals.instances, result.totals.failures) == (1, 1)
    assert world.balance(bad) == D(balance)
    assert world.reason(dropped) == "error"
    assert [hours for _, hours, _ in world.billed(charged)] == [5]
    assert world.violations() == {}
