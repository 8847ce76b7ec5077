"""Odd rows, locked rows and rows that refuse to change fail their organization and never stop the others."""

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from controller.billing.heartbeat import Heartbeat
from controller.billing.values import Outcome, Totals
from tests.integration.scripted_ledger import ScriptedLedger, concurrently, script_of
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal
FOR_UPDATE = {
    "instance": "select from vps_instances where organization_id = %s for update",
    "organization": "select from organizations where id = %s for update",
    "open row": "select from vps_billing_cycles where organization_id = %s for update",
}


@pytest.mark.parametrize("created_at", [None, "-infinity", "0044-03-15 12:00:00+00 BC"])
def test_batch_that_ends_with_any_creation_time_is_charged(world: World, created_at: str | None) -> None:
    plan = world.plan("7.30")
    good = world.instance(world.organization(), plan, NOON - 5 * HOUR)
    odd = world.instance(world.organization(), plan, created_at, NOON - 5 * HOUR)
    result = world.cycle(NOON).run(world.lead())
    assert result.outcome is Outcome.COMPLETED, result.error
    assert len(world.billed(good)) == len(world.billed(odd)) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_large_organization_with_unknown_creation_times_is_charged_in_steps(world: World, batch_size: int) -> None:
    organization, plan = world.organization("0.12"), world.plan("7.30")
    for created_at in ("-infinity", NOON - 9 * HOUR, None, None, None):
        world.instance(organization, plan, created_at, NOON - 5 * HOUR)
    result = world.cycle(NOON, batch_size=batch_size).run(world.lead())
    assert (result.outcome, result.totals.amount, result.totals.debts) == (Outcome.COMPLETED, D("0.12"), 3)


def test_large_organization_with_a_locked_wallet_is_charged_in_order(world: World) -> None:
    """The wallet is locked before the second of two steps, and free again before a third could begin."""
    organization, plan = world.organization("0.25"), world.plan("7.30")
    instances = [world.instance(organization, plan, NOON - 10 * HOUR + n * HOUR / 60) for n in range(6)]
    calls = itertools.count(1)
    with psycopg.connect(world.url) as other:

        def lock_and_unlock() -> bool:
            call = next(calls)
            if call == 2:
                other.execute("select from wallets for update")
            elif call > 2:
                other.rollback()
            return True

        world.bill(NOON, batch_size=3, may_start_batch=lock_and_unlock)
    assert [sum(hours for _, hours, _ in world.billed(each)) for each in instances] == [10, 9, 6, 0, 0, 0]


def test_large_organization_that_is_locked_after_a_step_counts_each_debt_once(world: World) -> None:
    organization, plan = world.organization("0.00"), world.plan("7.30")
    for _ in range(6):
        world.instance(organization, plan, NOON - 5 * HOUR)
    calls = itertools.count(1)
    with psycopg.connect(world.url) as other:

        def lock() -> bool:
            if next(calls) == 2:
                other.execute("select from wallets for update")
            return True

        result = world.bill(NOON, batch_size=3, may_start_batch=lock, pause=lambda _: other.rollback())
    assert result.totals == Totals(debts=6)


def test_large_organization_that_fails_after_a_step_counts_each_instance_once(world: World) -> None:
    """The dry run also fails only what the steps before it have not charged."""
    organization, plan = world.organization("0.35"), world.plan("7.30")
    instances = [world.instance(organization, plan, NOON - 20 * HOUR + n * HOUR) for n in range(6)]
    for _ in range(3):
        world.instance(world.organization(), plan, NOON - 5 * HOUR)
    world.run(f"alter table vps_billing_cycles add check (vps_instance_id <> '{instances[4]}' or metadata ? 'error')")
    dry = world.cycle(NOON, batch_size=3).run(world.lead(), dry=True)
    result = world.bill(NOON, batch_size=3)
    assert result.totals == Totals(instances=5, hours=15 + 35, amount=D("0.50"), debts=2, failures=3)
    assert (dry.outcome, dry.totals) == (result.outcome, result.totals)
    assert world.violations() == {}


def test_balance_that_became_null_is_a_violation(world: World) -> None:
    world.instance(world.organization(), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update wallets set balance = null")
    assert list(world.violations()) == ["wallet_state"]


@pytest.mark.parametrize("locked", FOR_UPDATE)
def test_locked_row_fails_its_organization_and_delays_no_other(world: World, locked: str) -> None:
    plan, organizations = world.plan("7.30"), [world.organization("0.00") for _ in range(8)]
    for each in organizations:
        world.instance(each, plan, NOON - 5 * HOUR)
    if locked == "open row":
        world.bill(NOON - HOUR)
    for each in organizations:
        world.top_up(each, "1.00")
    with psycopg.connect(world.url) as other:
        other.execute(FOR_UPDATE[locked].encode(), (organizations[3],))
        result = world.bill(NOON)
        assert result.totals.instances == 7
        assert result.totals.failures == 1
        assert result.failures_by_reason == {"locked": 1}
        assert result.seconds < 3
        # The open row may be impossible to write, because its foreign keys need the locked rows. The run counts the
        # failure all the same.
        assert world.one("select failures from billing_runs order by id desc limit 1") == 1


def test_instance_deleted_during_its_batch_leaves_the_others_charged(scripted_world: World) -> None:
    world = scripted_world
    organization = world.one("select min(id::text)::uuid from organizations")
    deleted = world.instance(organization, world.one("select id from vps_plans"), NOON - 5 * HOUR)
    delete = concurrently(world, "delete from vps_instances where id = %s", deleted)
    script_of(world).act_before("charge_covered", delete)
    assert world.bill(NOON).totals == Totals(instances=4, hours=20, amount=D("0.20"))
    assert world.one("select count(*) from vps_instances") == 4
    assert world.violations() == {}


@pytest.mark.parametrize("balance", ["0.02", None])
def test_repeated_step_counts_no_debt_twice(database: str, balance: str | None) -> None:
    class Script(ScriptedLedger):
        pass

    def terminate(ledger: ScriptedLedger) -> None:
        world.run("select pg_terminate_backend(%s, 2000)", ledger.connection.info.backend_pid)

    with World(database, Script) as world:
        organization, plan = world.organization(balance), world.plan("7.30")
        for number in range(6):
            world.instance(organization, plan, NOON - (50 - number) * HOUR, NOON - 5 * HOUR)
        Script.act_before("settle_periods", terminate, occurrence=3)
        totals = world.bill(NOON, batch_size=2).totals
        assert totals.debts + totals.failures == 6


def test_fenced_heartbeat_reports_that_it_was_not_written(world: World) -> None:
    old = world.lead("a-1")
    world.lead()
    heartbeat = Heartbeat(
        connect=world.database.connect,
        instance_id="a-1",
        metadata={},
        interval_seconds=60,
        retention_days=30,
    )
    heartbeat.start(old)
    assert heartbeat.beat() is False
    heartbeat.stop()
    heartbeat.run()


def test_start_before_the_epoch_is_unknown(world: World) -> None:
    organization, plan = world.organization("0.05"), world.plan("5.00")
    start = datetime(1969, 6, 1, 0, 0, 0, 1, tzinfo=UTC)
    instance = world.instance(organization, plan, start)
    world.bill(start + 47 * HOUR + timedelta(minutes=1))
    assert world.reason(instance) == "start_unknown"


def test_organization_that_refuses_even_the_reason_fails_alone(world: World) -> None:
    plan, good, bad = world.plan("7.30"), world.organization(), world.organization()
    for each in (good, bad):
        world.instance(each, plan, NOON - 5 * HOUR)
    world.run(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        f" if new.organization_id = '{bad}' then raise 'refused'; end if; return new; end $$"
    )
    world.run("create trigger refuse before insert on vps_billing_cycles for each row execute function refuse()")
    result = world.bill(NOON)
    assert (result.outcome, result.totals.instances, result.totals.failures) == (Outcome.COMPLETED_WITH_FAILURES, 1, 1)
