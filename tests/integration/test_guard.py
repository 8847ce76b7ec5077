"""The guard of payments: an organization whose charges are wrong is not charged until an audit of them is clean."""

import itertools
from collections.abc import Callable
from decimal import Decimal
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from controller import sql
from controller.billing import guard as guards
from controller.billing.audit import audit
from controller.billing.guard import Guard
from controller.billing.values import Totals
from controller.postgres.connections import GUARD
from tests.integration.world import LedgerAt, ScriptedStop, World
from tests.model import HOUR, NOON

D = Decimal
THEN = NOON - 2 * HOUR
#: Tables that grow with every cycle.
GROWING_TABLES = ("payment_transactions", "vps_billing_cycles", "vps_instances")

#: Statements that break the named invariant for an instance that has been charged.
DAMAGE = {
    "transactions": "update vps_billing_cycles set total_amount = 0.06, metadata = metadata where vps_instance_id = %s",
    "whole_hours": "update vps_billing_cycles set billing_period_end = billing_period_end + interval '1 minute'"
    " where vps_instance_id = %s",
    "price_clock": "with period as (update vps_billing_cycles set total_amount = 0.06 where vps_instance_id = %s"
    " returning payment_transaction_id as id)"
    " update payment_transactions t set amount = -0.06 from period where t.id = period.id",
    "last_billed": "update vps_instances set last_billed_at = last_billed_at - interval '1 hour' where id = %s",
    "terms": "update vps_billing_cycles set metadata = metadata || '{\"term\": 0}' where vps_instance_id = %s",
    "wallet_state": "update wallets set balance = -1"
    " where organization_id = (select organization_id from vps_instances where id = %s)",
}


#: More statements that break an invariant.
MORE_DAMAGE = {
    "payment not completed": "update payment_transactions set status = 'pending'"
    " where organization_id = (select organization_id from vps_instances where id = %s)",
    "payment of two periods": "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
    " billing_period_end, hourly_rate, total_amount, status, payment_transaction_id, metadata)"
    " select vps_instance_id, organization_id, billing_period_start - interval '5 hours', billing_period_start,"
    " hourly_rate, total_amount, status, payment_transaction_id, metadata"
    " from vps_billing_cycles where vps_instance_id = %s",
    "hours to come": "with moved as (update vps_billing_cycles set"
    " billing_period_start = billing_period_start + interval '999 years',"
    " billing_period_end = billing_period_end + interval '999 years' where vps_instance_id = %s"
    " returning vps_instance_id as id, billing_period_end as period_end)"
    " update vps_instances i set last_billed_at = period_end from moved where i.id = moved.id",
    "second wallet": "insert into wallets (organization_id, balance)"
    " select organization_id, 5 from vps_instances where id = %s",
}
#: The invariants that they break.
BROKEN = {
    "payment not completed": "transactions",
    "payment of two periods": "transactions",
    "hours to come": "whole_hours",
    "second wallet": "wallet_state",
}


HOURS = 'update vps_billing_cycles set metadata = metadata || \'{{"hours": "{}"}}\' where vps_instance_id = %s'


def guard(world: World, may_continue: Callable[[], bool] = lambda: True) -> Guard:
    return Guard(world.ledger, ScriptedStop(may_start_cycle=may_continue))


def three_charged(world: World) -> list[UUID]:
    """Charges three organizations five cents each, until THEN. Returns their instances."""
    plan = world.plan("7.30")
    instances = [world.instance(world.organization(), plan, THEN - 5 * HOUR) for _ in range(3)]
    world.bill(THEN)
    return instances


def suspended(world: World) -> dict[UUID, str]:
    return {row["organization_id"]: row["reason"] for row in world.rows("select * from billing_suspensions")}


def organization_of(world: World, instance: UUID) -> UUID:
    found: UUID = world.one("select organization_id from vps_instances where id = %s", instance)
    return found


def test_sound_charges_are_checked_once_and_suspend_no_organization(world: World) -> None:
    three_charged(world)
    with capture_logs() as logs:
        guard(world).check(world.term())
        guard(world).check(world.term())
    assert [(line["event"], line["payments"]) for line in logs] == [("guard.passed", 3), ("guard.passed", 0)]
    assert suspended(world) == {}


@pytest.mark.parametrize("damage", [*DAMAGE, *MORE_DAMAGE])
def test_charge_that_breaks_an_invariant_suspends_its_organization_alone(world: World, damage: str) -> None:
    broken, *_ = three_charged(world)
    world.run((DAMAGE | MORE_DAMAGE)[damage], broken)
    with capture_logs() as logs:
        guard(world).check(world.term())
    assert suspended(world) == {organization_of(world, broken): BROKEN.get(damage, damage)}
    assert [line["event"] for line in logs] == ["organization.suspended", "guard.passed"]


def test_end_of_an_older_check_does_not_move_the_guard_back(world: World) -> None:
    checked_until = world.one("select checked_until from billing_guard")
    sql.run(world.conn, "guard_end", checked_until=NOON)
    assert world.one("select checked_until from billing_guard") == checked_until > NOON


def test_organization_that_paid_for_the_hours_of_another_one_is_suspended(world: World) -> None:
    charged, payer, _ = (organization_of(world, each) for each in three_charged(world))
    world.run("update payment_transactions set organization_id = %s where organization_id = %s", payer, charged)
    guard(world).check(world.term())
    assert suspended(world) == {payer: "transactions"}


def test_hour_that_two_periods_cover_suspends_the_organization(world: World) -> None:
    broken, *_ = three_charged(world)
    guard(world).check(world.term())
    world.bill(NOON)
    world.run(
        "update vps_billing_cycles set billing_period_end = billing_period_end + interval '30 minutes'"
        " where vps_instance_id = %s and billing_period_end = %s",
        broken,
        THEN,
    )
    guard(world).check(world.term())
    assert suspended(world) == {organization_of(world, broken): "periods"}


def test_gap_is_a_violation_unless_last_billed_at_was_moved_over_it(world: World) -> None:
    moved, shortened, _ = three_charged(world)
    guard(world).check(world.term())
    world.run("update vps_instances set last_billed_at = %s where id = %s", THEN + HOUR, moved)
    world.bill(NOON)
    world.run(
        "update vps_billing_cycles set billing_period_end = %s where vps_instance_id = %s and billing_period_end = %s",
        THEN - HOUR,
        shortened,
        THEN,
    )
    guard(world).check(world.term())
    assert suspended(world) == {organization_of(world, shortened): "periods"}


def test_gap_that_another_program_has_billed_is_not_a_violation(world: World) -> None:
    filled, empty, _ = three_charged(world)
    guard(world).check(world.term())
    world.run(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status) select id, organization_id, %s, %s, 0.01, 0.01, 'billed'"
        " from vps_instances where id = %s",
        THEN,
        THEN + HOUR,
        filled,
    )
    world.run("update vps_instances set last_billed_at = %s where id = any (%s)", THEN + HOUR, [filled, empty])
    world.bill(NOON)
    world.run("update vps_billing_cycles set metadata = metadata - 'moved_forward' where metadata ? 'moved_forward'")
    guard(world).check(world.term())
    assert suspended(world) == {organization_of(world, empty): "periods"}


def test_instance_that_moved_through_a_deleted_organization_is_not_a_violation(world: World) -> None:
    first, middle, last = (world.organization() for _ in range(3))
    instance = world.instance(first, world.plan("7.30"), NOON - 9 * HOUR)
    for hours, organization in ((6, middle), (3, last)):
        world.bill(NOON - hours * HOUR)
        guard(world).check(world.term())
        world.run("update vps_instances set organization_id = %s where id = %s", organization, instance)
    world.bill(NOON)
    world.run("delete from organizations where id = %s", middle)
    guard(world).check(world.term())
    assert suspended(world) == {}


def test_payment_that_is_missing_after_its_commit_suspends_its_organization(world: World) -> None:
    """A deferred trigger deletes it after the charge has counted what it wrote."""
    world.run("alter table vps_billing_cycles drop constraint vps_billing_cycles_payment_transaction_id_fkey")
    organization = world.organization()
    world.instance(organization, world.plan("7.30"), NOON - 9 * HOUR)
    world.run(
        "create function take_back() returns trigger language plpgsql as $$ begin"
        " delete from payment_transactions where id = new.id; return null; end $$"
    )
    world.run(
        "create constraint trigger take_back after insert on payment_transactions deferrable initially deferred"
        f" for each row when (new.organization_id = '{organization}') execute function take_back()"
    )
    three_charged(world)
    with capture_logs() as logs:
        guard(world).check(world.term())
        guard(world).check(world.term())
    assert suspended(world) == {organization: "transactions"}
    assert [line["amount"] for line in logs if line["event"] == "payments.missed"] == ["0.07"]


def test_deleted_organization_is_not_a_violation(world: World) -> None:
    deleted, *_ = three_charged(world)
    world.run("delete from organizations where id = %s", organization_of(world, deleted))
    guard(world).check(world.term())
    assert suspended(world) == {}


def test_suspended_organization_is_not_charged_until_its_audit_is_clean(world: World) -> None:
    broken, *others = three_charged(world)
    organization = organization_of(world, broken)
    world.run(DAMAGE["last_billed"], broken)
    guard(world).check(world.term())
    guard(world).unsuspend(world.term())
    assert suspended(world) == {organization: "last_billed"}, "nothing has been repaired yet"
    world.bill(NOON - HOUR)
    assert world.reason(broken) == "audit_violation"
    assert [hours for _, hours, _ in world.billed(broken)] == [5]
    assert [hours for _, hours, _ in world.billed(others[0])] == [5, 1]
    world.run("update vps_instances set last_billed_at = last_billed_at + interval '1 hour' where id = %s", broken)
    with capture_logs() as logs:
        guard(world).unsuspend(world.term())
    assert [line["event"] for line in logs] == ["organization.unsuspended"]
    assert world.bill(NOON).totals == Totals(instances=3, hours=4, amount=D("0.04"))
    assert suspended(world) == {}
    assert world.reason(broken) is None
    assert world.violations() == {}


def test_guard_of_the_next_leader_checks_the_charges_of_a_lost_one(world: World) -> None:
    broken, *_ = three_charged(world)
    world.run(DAMAGE["terms"], broken)
    world.bill(NOON, world.lead())
    guard(world).check(world.term())
    assert list(suspended(world).values()) == ["terms"]


def test_interrupted_guard_starts_again_next_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "BATCH_SIZE", 2)
    three_charged(world)
    last = "select vps_instance_id from vps_billing_cycles order by payment_transaction_id desc limit 1"
    world.run(DAMAGE["terms"], world.one(last))
    asked = iter((True, False))
    with capture_logs() as logs:
        guard(world, lambda: next(asked)).check(world.term())
        guard(world).check(world.term())
    assert [line["event"] for line in logs] == ["guard.interrupted", "organization.suspended", "guard.passed"]


def test_deleted_instance_is_not_a_violation(world: World) -> None:
    deleted, *_ = three_charged(world)
    world.run("delete from vps_instances where id = %s", deleted)
    with capture_logs() as logs:
        guard(world).check(world.term())
    assert [line["event"] for line in logs] == ["guard.passed"]


def test_refund_is_not_a_violation(world: World) -> None:
    """Neither is the charge after it, which begins where the refunded period ends."""
    refunded, *_ = three_charged(world)
    world.bill(THEN + HOUR)
    world.run(
        "with period as (update vps_billing_cycles set status = 'refunded' where vps_instance_id = %s"
        " and billing_period_start = %s returning payment_transaction_id as id)"
        " update payment_transactions t set status = 'refunded' from period where t.id = period.id",
        refunded,
        THEN,
    )
    with capture_logs() as logs:
        guard(world).check(world.term())
        world.bill(NOON)
        guard(world).check(world.term())
    assert [line["event"] for line in logs if line.get("part") == "guard"] == ["guard.passed"] * 2


def test_payments_of_the_application_are_not_checked(world: World) -> None:
    instance, *_ = three_charged(world)
    world.run(
        "insert into payment_transactions (id, organization_id, amount, status)"
        " values (billing_time_ordered_uuid(clock_timestamp()), %s, -7, 'completed')",
        organization_of(world, instance),
    )
    with capture_logs() as logs:
        guard(world).check(world.term())
    assert [(line["event"], line["payments"]) for line in logs] == [("guard.passed", 3)]


@pytest.mark.parametrize("payments", [1, 2, 3, 5000])
def test_unreadable_charge_suspends_its_organization_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, payments: int
) -> None:
    monkeypatch.setattr(guards, "BATCH_SIZE", payments)
    unreadable, broken, _ = three_charged(world)
    world.run(HOURS.format("many"), unreadable)
    world.run(DAMAGE["last_billed"], broken)
    with capture_logs() as logs:
        guard(world).check(world.term())
        guard(world).check(world.term())
    assert suspended(world) == {
        organization_of(world, unreadable): "unreadable",
        organization_of(world, broken): "last_billed",
    }
    assert "many" in next(line["detail"] for line in logs if line.get("invariant") == "unreadable")
    assert [line["payments"] for line in logs if line["event"] == "guard.passed"] == [3, 0]
    world.run(HOURS.format(5), unreadable)
    guard(world).unsuspend(world.term())
    assert suspended(world) == {organization_of(world, broken): "last_billed"}


def test_failing_audit_keeps_its_organization_alone_suspended(world: World) -> None:
    broken = three_charged(world)[:2]
    for instance in broken:
        world.run(DAMAGE["last_billed"], instance)
    guard(world).check(world.term())
    assert list(suspended(world)) == [organization_of(world, each) for each in broken]
    world.run(
        "update vps_instances set last_billed_at = last_billed_at + interval '1 hour' where id = any (%s)", broken
    )
    opened = itertools.count()

    def connect() -> LedgerAt:
        ledger = world.ledger()
        if next(opened) == 1:  # the first session is the guard's, the second audits
            ledger.connection.close()
        return ledger

    with capture_logs() as logs:
        Guard(connect, ScriptedStop()).unsuspend(world.term())
    assert [(line["event"], line["organization"]) for line in logs] == [
        ("guard.failed", str(organization_of(world, broken[0]))),
        ("organization.unsuspended", str(organization_of(world, broken[1]))),
    ]
    assert list(suspended(world)) == [organization_of(world, broken[0])]


def test_guard_of_a_deposed_leader_changes_no_suspension(world: World) -> None:
    broken, *_ = three_charged(world)
    world.run(DAMAGE["terms"], broken)
    old = world.term()
    other = world.one("select max(id::text)::uuid from organizations")
    world.run("insert into billing_suspensions (organization_id, reason, detail) values (%s, 'periods', 'test')", other)
    world.lead("test-2")
    guard(world).check(old)
    guard(world).unsuspend(old)
    assert suspended(world) == {other: "periods"}


def test_audit_of_one_organization_reads_no_whole_table(world: World) -> None:
    broken, *_ = three_charged(world)
    organization = organization_of(world, broken)
    world.run(
        "insert into billing_suspensions (organization_id, reason, detail) values (%s, 'periods', 'a test')",
        organization,
    )

    def scans() -> dict[str, int]:
        world.run("select pg_stat_force_next_flush()")
        rows = world.rows(
            "select relname, seq_scan from pg_stat_user_tables where relname = any (%s)", list(GROWING_TABLES)
        )
        return {row["relname"]: row["seq_scan"] for row in rows}

    before = scans()
    with World(world.url) as other, other.database.connect(GUARD) as connection:
        assert audit(connection, organization).clean
    assert scans() == before
