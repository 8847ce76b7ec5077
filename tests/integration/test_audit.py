"""The audit finds a planted violation of every invariant, and reports rows older than adoption apart."""

from decimal import Decimal
from uuid import UUID

import pytest

from controller.billing.audit import INVARIANTS, Finding, audit
from tests.integration.world import World
from tests.model import HOUR, NOON
from tests.support.statements import plan

D = Decimal


@pytest.fixture
def billed(world: World) -> World:
    """Two organizations that were charged twice, and a third with a debt."""
    plan = world.plan("7.30")
    for balance in ("10.00", "10.00", "0.02"):
        world.instance(world.organization(balance), plan, NOON - 9 * HOUR)
    world.bill(NOON - 5 * HOUR)
    world.bill(NOON)
    assert world.violations() == {}
    return world


def first(world: World, table: str = "vps_instances") -> UUID:
    order = "id" if table == "organizations" else "organization_id"
    found: UUID = world.rows(f"select id from {table} order by {order} limit 1")[0]["id"]  # noqa: S608 - ours
    return found


PLANTS: dict[str, tuple[str, str]] = {
    "a second wallet": (
        "wallet_state",
        "insert into wallets (organization_id, balance) select min(id::text)::uuid, 0 from organizations",
    ),
    "a wallet that is not a number": ("wallet_state", "update wallets set balance = 'NaN' where balance > 9"),
    "an hour billed twice": (
        "periods",
        (
            "update vps_billing_cycles set billing_period_start = billing_period_start - interval '1 hour',"
            " metadata = metadata || '{\"hours\": 6}' where status = 'billed' and (metadata ->> 'hours')::int = 5"
        ),
    ),
    "an hour left out": (
        "periods",
        (
            "update vps_billing_cycles set billing_period_start = billing_period_start + interval '1 hour',"
            " metadata = metadata || '{\"hours\": 4}' where status = 'billed' and (metadata ->> 'hours')::int = 5"
        ),
    ),
    "an hour that the application billed as well": (
        "periods",
        (
            "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
            " billing_period_end, hourly_rate, total_amount, status) select vps_instance_id, organization_id,"
            " billing_period_start, billing_period_end, 0.01, 0.05, 'billed' from vps_billing_cycles"
            " where (metadata ->> 'hours')::int = 5"
        ),
    ),
    "last_billed_at moved back": (
        "last_billed",
        "update vps_instances set last_billed_at = last_billed_at - interval '1 hour'",
    ),
    "last_billed_at removed": ("last_billed", "update vps_instances set last_billed_at = null"),
    "half an hour": (
        "whole_hours",
        (
            "update vps_billing_cycles set billing_period_end = billing_period_end + interval '30 minutes'"
            " where status = 'billed'"
        ),
    ),
    "hours in the future": (
        "whole_hours",
        "update vps_billing_cycles set billing_period_end = now() + interval '1 hour' where status = 'billed'",
    ),
    "hours to come": (
        "whole_hours",
        (
            "update vps_billing_cycles set billing_period_start = billing_period_start + interval '999 years',"
            " billing_period_end = billing_period_end + interval '999 years' where status = 'billed'"
        ),
    ),
    "a charge without its payment": (
        "transactions",
        "update vps_billing_cycles set payment_transaction_id = null where status = 'billed'",
    ),
    "a charge that another organization paid": (
        "transactions",
        (
            "update vps_billing_cycles set organization_id = (select min(id::text)::uuid from organizations)"
            " where status = 'billed'"
        ),
    ),
    "a payment of another amount": ("transactions", "update payment_transactions set amount = amount - 0.01"),
    "a payment without its charge": (
        "transactions",
        "delete from vps_billing_cycles where status = 'billed' and (metadata ->> 'hours')::int = 5",
    ),
    "an amount that is not the clock's": (
        "price_clock",
        "update vps_billing_cycles set total_amount = total_amount + 0.01 where status = 'billed'",
    ),
    "overlapping open rows": (
        "open_rows",
        (
            "insert into vps_billing_cycles (vps_instance_id,"
            " organization_id, billing_period_start, billing_period_end, hourly_rate, total_amount, status, metadata)"
            " select vps_instance_id, organization_id, billing_period_start + interval '1 minute', billing_period_end,"
            " 0, 0, status, metadata from vps_billing_cycles where status = 'failed'"
        ),
    ),
    "a missing debt": ("overdue", "delete from vps_billing_cycles where status = 'failed'"),
    "a batch written after its term": ("terms", "update billing_terms set minted_at = now() - interval '1 day'"),
    "a charge under a term of another run": (
        "terms",
        "update vps_billing_cycles set metadata = metadata || '{\"term\": 99}' where status = 'billed'",
    ),
    "a charge without a run": (
        "terms",
        "update vps_billing_cycles set metadata = metadata - 'run' where status = 'billed'",
    ),
}


@pytest.mark.parametrize(
    "statement",
    [
        "update wallets set balance = balance - 0.01 where balance > 9",
        (
            "insert into payment_transactions (organization_id, amount, status)"
            " select min(id::text)::uuid, 5, 'completed' from organizations"
        ),
    ],
    ids=["a wallet changed without a transaction", "a transaction without the wallet"],
)
def test_wallet_that_differs_is_exempt_and_named(billed: World, statement: str) -> None:
    """The application may change wallets, so a difference isn't a violation; see test_reconcile."""
    billed.run(statement)
    report = billed.audit()
    assert report.clean
    (found,) = [each for each in report.findings if each.exempt]
    assert (found.invariant, len(found.exempt_examples)) == ("wallet_balance", found.exempt)
    assert found.exempt_examples[0].startswith("wallet ")


@pytest.mark.parametrize("plant", PLANTS)
def test_planted_violation_is_found(billed: World, plant: str) -> None:
    invariant, statement = PLANTS[plant]
    billed.run(statement)
    report = billed.audit()
    assert not report.clean
    found = {each.invariant: each for each in report.findings if each.violations}
    assert invariant in found
    assert len(found[invariant].examples) == min(found[invariant].violations, 5)
    assert found[invariant].meaning == INVARIANTS[invariant]


def test_debt_of_one_instance_is_no_reason_for_another(world: World) -> None:
    plan = world.plan("7.30")
    owing, unrecorded = (world.instance(world.organization("0.00"), plan, NOON - 2 * HOUR) for _ in range(2))
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = created_at where id = %s", unrecorded)
    world.run("delete from vps_billing_cycles where vps_instance_id = %s", unrecorded)
    (example,) = world.violations()["overdue"]
    assert example.startswith(f"instance {unrecorded}: ")
    assert world.open_row(owing) is not None


@pytest.mark.parametrize(("earlier", "exempt"), [("1 hour", True), ("0 hours", False)])
def test_overlap_of_another_program_is_exempt_only_if_its_period_began_before_ours(
    world: World, earlier: str, *, exempt: bool
) -> None:
    world.instance(world.organization(), world.plan("7.30"), NOON - 2 * HOUR)
    world.bill(NOON)
    world.run(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status) select vps_instance_id, organization_id,"
        " billing_period_start - %s::interval, billing_period_end, 0, 0, 'billed' from vps_billing_cycles",
        earlier,
    )
    assert ("periods" not in world.violations()) is exempt


def test_every_invariant_has_a_planted_violation() -> None:
    assert {invariant for invariant, _ in PLANTS.values()} == set(INVARIANTS) - {"wallet_balance"}


def test_wallet_that_turned_negative_after_adoption_is_a_violation(billed: World) -> None:
    organization = first(billed, "organizations")
    billed.top_up(organization, "-20.00")
    assert list(billed.violations()) == ["wallet_state"]


def test_finding_has_five_examples_and_the_exact_number(world: World) -> None:
    plan = world.plan("7.30")
    for _ in range(8):
        world.instance(world.organization(), plan, NOON - 9 * HOUR)
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = last_billed_at - interval '30 minutes'")
    (finding,) = (each for each in world.audit().findings if each.violations)
    assert (finding.invariant, finding.violations, len(finding.examples)) == ("last_billed", 8, 5)


def test_unreadable_row_breaks_the_invariants_that_read_it_and_hides_no_other(billed: World) -> None:
    billed.run("update vps_billing_cycles set metadata = metadata || '{\"hours\": \"many\"}' where status = 'billed'")
    billed.run("update wallets set balance = balance + 1")
    found = billed.violations()
    assert list(found) == ["wallet_balance", "whole_hours", "price_clock"]
    assert found["whole_hours"] == ('a row can\'t be read: invalid input syntax for type bigint: "many"',)


def test_audit_of_one_organization_looks_its_rows_up_by_index(billed: World) -> None:
    organization = first(billed, "organizations")
    billed.run("set plan_cache_mode = force_custom_plan")
    for name in INVARIANTS:
        conditions = [
            line
            for line in plan(billed.conn, f"audit_{name}", {"organization": organization}).splitlines()
            if "Filter:" in line or "Cond:" in line
        ]
        # `in (select ...)` behind `or`: reads every row, and looks it up in a hash table
        assert not [line for line in conditions if "hashed SubPlan" in line], name


def test_audit_writes_nothing(billed: World) -> None:
    before = billed.dump()
    billed.audit()
    assert billed.dump() == before


def exempt(world: World) -> dict[str, int]:
    report = world.audit()
    assert report.clean, world.violations()
    return {each.invariant: each.exempt for each in report.findings if each.exempt}


def test_wallet_that_was_unusable_before_adoption_is_exempt(world: World) -> None:
    world.organization("-3.00")
    world.organization("NaN")
    world.wallet(world.organization("1.00"), "2.00")
    assert exempt(world) == {"wallet_state": 4}


def test_hours_that_the_application_billed_are_exempt(billed: World) -> None:
    """The application's built-in billing charged three hours."""
    instance = first(billed)
    billed.run(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status, metadata) select id, organization_id, last_billed_at,"
        " last_billed_at + interval '3 hours', 0.0068, 0.02, 'billed', '{}' from vps_instances where id = %s",
        instance,
    )
    billed.run("update vps_instances set last_billed_at = last_billed_at + interval '3 hours' where id = %s", instance)
    assert exempt(billed) == {"last_billed": 1}
    billed.bill(NOON + 6 * HOUR)
    assert exempt(billed) == {"periods": 1}
    assert billed.audit().older_rows == 1


@pytest.mark.parametrize("debts", [False, True])
def test_hours_that_last_billed_at_was_moved_over_are_exempt(world: World, *, debts: bool) -> None:
    organization = world.organization("0.03" if debts else "10.00")
    instance = world.instance(organization, world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON - 6 * HOUR)
    world.run("update vps_instances set last_billed_at = last_billed_at + interval '2 hours' where id = %s", instance)
    assert exempt(world) == {"last_billed": 1}
    world.bill(NOON - 2 * HOUR)
    world.top_up(organization, "1.00")
    world.bill(NOON)
    assert sum(hours for _, hours, _ in world.billed(instance)) == 7
    assert exempt(world) == {"periods": 1}


def test_top_ups_refunds_and_deletions_are_not_violations(billed: World) -> None:
    organization = first(billed, "organizations")
    billed.run(
        "insert into payment_transactions (organization_id, amount, status, metadata)"
        " values (%s, 5, 'completed', '{\"wallet_type\": \"other\"}')",
        organization,
    )
    billed.top_up(organization, "25.00")
    billed.top_up(organization, "-5.00")  # a refund to the card
    billed.top_up(organization, "0.05")  # a refund of an hour
    billed.run(
        "insert into payment_transactions (organization_id, amount, status)"
        " select %s, 99, s from unnest(array['pending', 'failed', 'refunded']) as s",
        organization,
    )
    assert billed.violations() == {}
    billed.run("delete from vps_instances where id = %s", first(billed))
    assert billed.violations() == {}
    billed.run("delete from organizations where id = (select max(id::text)::uuid from organizations)")
    assert billed.violations() == {}


def test_wallet_created_after_adoption_is_adopted_at_its_first_charge(billed: World) -> None:
    organization = billed.organization(None)
    billed.instance(organization, "p", NOON - 9 * HOUR)
    billed.bill(NOON)
    billed.wallet(organization, "5.00")
    billed.top_up(organization, "3.00")
    pending = "insert into payment_transactions (organization_id, amount, status) values (%s, 70, 'pending')"
    billed.run(pending, organization)
    assert billed.bill(NOON).totals.amount == D("0.09")
    (row,) = billed.rows(
        "select baseline, adopted_balance from billing_wallet_baselines where organization_id = %s", organization
    )
    assert (row["baseline"], row["adopted_balance"]) == (D("5.00"), D("8.00"))
    billed.top_up(organization, "1.00")
    assert billed.violations() == {}


def test_empty_database_is_clean(world: World) -> None:
    report = world.audit()
    assert report.clean
    assert report.older_rows == 0
    assert [each.invariant for each in report.findings] == list(INVARIANTS)
    assert all(each == Finding(each.invariant, each.meaning, 0, 0, ()) for each in report.findings)


def records_lost_periods(world: World) -> None:
    """Pretends that lost periods have been recorded since long before the simulated time."""
    world.run("update billing_schema_migrations set applied_at = '-infinity'")


def test_instance_that_moved_through_deleted_organizations_is_exempt(world: World) -> None:
    records_lost_periods(world)
    first, second, third, last = (world.organization() for _ in range(4))
    instance = world.instance(first, world.plan("7.30"), NOON - 12 * HOUR)
    for hours, organization in ((9, second), (6, third), (3, last)):
        world.bill(NOON - hours * HOUR)
        world.run("update vps_instances set organization_id = %s where id = %s", organization, instance)
    world.bill(NOON)
    for organization in (second, third):
        world.run("delete from organizations where id = %s", organization)
    assert exempt(world) == {"periods": 1}


def test_gap_is_a_violation_although_another_organization_was_deleted(world: World) -> None:
    records_lost_periods(world)
    instances = [world.instance(world.organization(), world.plan("7.30"), NOON - 9 * HOUR) for _ in range(2)]
    for hours in (6, 3, 0):
        world.bill(NOON - hours * HOUR)
    world.run(
        "delete from organizations o using vps_instances i where o.id = i.organization_id and i.id = %s", instances[0]
    )
    world.run(
        "delete from vps_billing_cycles where vps_instance_id = %s and billing_period_end = %s",
        instances[1],
        NOON - 3 * HOUR,
    )
    assert "periods" in world.violations()


def test_instance_that_moved_away_and_back_is_clean_for_each_organization(world: World) -> None:
    home, away = world.organization(), world.organization()
    instance = world.instance(home, world.plan("7.30"), NOON - 9 * HOUR)
    for hours, organization in ((6, away), (3, home)):
        world.bill(NOON - hours * HOUR)
        world.run("update vps_instances set organization_id = %s where id = %s", organization, instance)
    for organization in (home, away):
        with world.database.connect() as connection:
            assert audit(connection, organization).clean
    world.bill(NOON)
    assert world.violations() == {}
    world.run("delete from organizations where id = %s", away)
    assert exempt(world) == {"periods": 1}


def test_instance_that_was_deleted_with_its_periods_is_not_a_violation(world: World) -> None:
    instance = world.instance(world.organization(), world.plan("7.30"), NOON - 9 * HOUR)
    world.bill(NOON)
    world.run("delete from vps_instances where id = %s", instance)
    assert world.violations() == {}


def test_instance_that_no_cycle_has_seen_is_exempt_from_overdue(world: World) -> None:
    world.bill()
    world.instance(world.organization(), world.plan("7.30"), NOON - 9 * HOUR)
    assert exempt(world) == {"overdue": 1}
    world.run("update billing_runs set failures_by_reason = '{\"missed\": 1}'")
    assert list(world.violations()) == ["overdue"]
