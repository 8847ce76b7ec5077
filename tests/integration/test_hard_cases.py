"""Unusual rows, and rows that another session has locked, never stop billing for other organizations."""

import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import psycopg
import pytest

from controller.billing.heartbeat import Heartbeat
from controller.billing.values import Outcome, Totals
from tests.integration.touchy import TouchyLedger
from tests.integration.world import World
from tests.model import HOUR, NOON

D = Decimal
FOR_UPDATE = {
    "instance": "select from vps_instances where organization_id = %s for update",
    "organization": "select from organizations where id = %s for update",
    "open row": "select from vps_billing_cycles where organization_id = %s for update",
}


@pytest.mark.parametrize("created_at", [None, "-infinity", "0044-03-15 12:00:00+00 BC"])
def test_a_batch_that_ends_with_any_creation_time_is_charged(world: World, created_at: str | None) -> None:
    plan = world.plan("7.30")
    good = world.instance(world.organization(), plan, NOON - 5 * HOUR)
    odd = world.instance(world.organization(), plan, created_at, NOON - 5 * HOUR)
    result = world.cycle(NOON).run(world.lead())
    assert result.outcome is Outcome.COMPLETED, result.error
    assert len(world.billed(good)) == len(world.billed(odd)) == 1


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_large_organization_with_unknown_creation_times_is_charged_in_steps(world: World, batch_size: int) -> None:
    organization, plan = world.organization("0.12"), world.plan("7.30")
    for created_at in ("-infinity", NOON - 9 * HOUR, None, None, None):
        world.instance(organization, plan, created_at, NOON - 5 * HOUR)
    result = world.cycle(NOON, batch_size=batch_size).run(world.lead())
    assert (result.outcome, result.totals.amount, result.totals.debts) == (Outcome.COMPLETED, D("0.12"), 3)


def test_a_balance_that_became_null_is_a_violation(world: World) -> None:
    world.instance(world.organization(), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON)
    world.run("update wallets set balance = null")
    assert list(world.violations()) == ["wallet_state"]


@pytest.mark.parametrize("held", FOR_UPDATE)
def test_a_row_held_for_update_is_recorded_and_does_not_hold_up_the_others(world: World, held: str) -> None:
    plan, organizations = world.plan("7.30"), [world.organization("0.00") for _ in range(8)]
    for each in organizations:
        world.instance(each, plan, NOON - 5 * HOUR)
    if held == "open row":
        world.bill(NOON - HOUR)
    for each in organizations:
        world.top_up(each, "1.00")
    with psycopg.connect(world.url) as other:
        other.execute(FOR_UPDATE[held].encode(), (organizations[3],))
        result = world.bill(NOON)
        assert result.totals.instances == 7
        assert result.totals.failures == 1
        assert result.failures_by_reason == {"locked": 1}
        assert result.seconds < 3
        # The open row may be impossible to write, because its foreign keys need a row that the other transaction has
        # locked. The history must count the failure even then.
        assert world.one("select failures from billing_runs order by id desc limit 1") == 1


def test_an_instance_that_is_deleted_during_its_batch_spoils_nothing(database: str) -> None:
    class Own(TouchyLedger):
        pass

    with World(database, Own) as world:
        organization, plan = world.organization("1.00"), world.plan("7.30")
        gone, stays = (world.instance(organization, plan, NOON - 5 * HOUR) for _ in range(2))
        world.cycle(NOON).run(world.lead(), dry=True)
        threads: list[threading.Thread] = []

        def delete(ledger: TouchyLedger) -> None:
            other = psycopg.connect(world.url)
            other.execute("delete from vps_instances where id = %s", (gone,))
            pid = ledger.connection.info.backend_pid

            def commit() -> None:
                with World(world.url) as watching, other:
                    while not watching.rows(
                        "select from pg_stat_activity where pid = %s and wait_event_type = 'Lock'", pid
                    ):
                        pass

            threads.append(threading.Thread(target=commit))
            threads[0].start()

        Own.before, Own.counted = {Own.names.index("charge_covered"): delete}, 0
        result = world.bill(NOON)
        threads[0].join(10)
        assert result.totals == Totals(instances=1, hours=5, amount=D("0.05"))
        assert world.reason(stays) is None


@pytest.mark.parametrize("balance", ["0.02", None])
def test_a_step_that_is_tried_again_counts_no_debt_twice(database: str, balance: str | None) -> None:
    class Own(TouchyLedger):
        pass

    with World(database, Own) as world:
        organization, plan = world.organization(balance), world.plan("7.30")
        for number in range(6):
            world.instance(organization, plan, NOON - (50 - number) * HOUR, NOON - 5 * HOUR)
        world.cycle(NOON, batch_size=2).run(world.lead(), dry=True)
        third = [number for number, name in enumerate(Own.names) if name == "settle_periods"][2]
        Own.counted = 0
        Own.before = {
            third: lambda ledger: world.run("select pg_terminate_backend(%s, 2000)", ledger.connection.info.backend_pid)
        }
        figures = world.bill(NOON, batch_size=2).totals
        assert figures.debts + figures.failures == 6  # and not 10


def test_a_beat_that_was_fenced_says_that_it_was_not_written(world: World) -> None:
    old = world.lead("a-1")
    world.lead()
    heart = Heartbeat(
        connect=world.database.connect,
        instance_id="a-1",
        metadata={},
        interval_seconds=60,
        retention_days=30,
    )
    heart.start(old)
    assert heart.beat() is False
    heart.stop()
    heart.run()


def test_a_start_before_the_clock_begins_is_unknown(world: World) -> None:
    organization, plan = world.organization("0.05"), world.plan("5.00")
    start = datetime(1969, 6, 1, 0, 0, 0, 1, tzinfo=UTC)
    instance = world.instance(organization, plan, start)
    world.bill(start + 47 * HOUR + timedelta(minutes=1))
    assert world.reason(instance) == "start_unknown"


def test_an_organization_whose_rows_refuse_even_the_reason_stops_nobody(world: World) -> None:
    plan, good, bad = world.plan("7.30"), world.organization(), world.organization()
    for each in (good, bad):
        world.instance(each, plan, NOON - 5 * HOUR)
    world.run(
        "create function refuse() returns trigger language plpgsql as $$ begin"
        f" if new.organization_id = '{bad}' then raise 'refused'; end if; return new; end $$"
    )
    world.run("create trigger refuse before insert on vps_billing_cycles for each row execute function refuse()")
    result = world.bill(NOON)
    assert (result.outcome, result.totals.instances, result.totals.failures) == (Outcome.COMPLETED, 1, 1)
