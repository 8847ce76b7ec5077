"""A cycle's outcome matches what happened, its totals add up, and the next cycle is due at the right time."""

from decimal import Decimal
from typing import Any

from controller.billing.values import Cause, CycleResult, Outcome, Totals
from tests.integration.scripted_ledger import ScriptedLedger, script_of
from tests.integration.world import World, got_through
from tests.model import HOUR, NOON

D = Decimal


def customers(world: World, number: int, balance: str | None = "10.00", hours: int = 5) -> list[Any]:
    """Creates organizations with one instance each, at a cent an hour. Returns the instances."""
    plan = world.plan("7.30")
    return [world.instance(world.organization(balance), plan, NOON - hours * HOUR) for _ in range(number)]


def last_run(world: World) -> dict[str, Any]:
    (run,) = world.rows("select * from billing_history limit 1")
    return run


def seconds_until_due(world: World) -> float:
    """The time until the next cycle if the last one had begun now."""
    world.run("update billing_runs set started_at = now()")
    ledger = world.ledger()
    with ledger.connection:
        return ledger.seconds_until_due()


def expect(world: World, result: CycleResult, outcome: Outcome, cause: Cause | None = None) -> dict[str, Any]:
    """Checks that the result and the history agree and that the totals add up. Returns the run's row."""
    run = last_run(world)
    assert (result.outcome, result.cause) == (outcome, cause)
    assert (run["outcome"], run["cause"], run["error"]) == (outcome, cause, result.error)
    assert run["failures_by_reason"] == result.failures_by_reason
    assert sum(run["failures_by_reason"].values()) == run["failures"]
    assert Totals.from_row(run) == result.totals
    if got_through(result):
        seen = run["instances"] + run["debts"] - run["charged_in_part"] + run["failures"] + run["suspended"]
        assert run["planned"] == seen + run["vanished"]
    return run


def test_cycle_with_nothing_due_is_completed(world: World) -> None:
    run = expect(world, world.bill(NOON), Outcome.COMPLETED)
    assert (run["planned"], run["vanished"]) == (0, 0)


def test_charges_and_debts_are_a_completed_cycle(world: World) -> None:
    customers(world, 2)
    customers(world, 1, balance="0.02")
    customers(world, 1, balance="0.00")
    run = expect(world, world.bill(NOON), Outcome.COMPLETED)
    assert (run["planned"], run["instances"], run["debts"], run["charged_in_part"]) == (4, 3, 2, 1)
    assert 3500 < seconds_until_due(world) <= 3600


def test_suspended_organization_is_neither_debt_nor_failure(world: World) -> None:
    customers(world, 1)
    world.run(
        "insert into billing_suspensions (organization_id, reason, detail)"
        " select organization_id, 'transactions', 'x' from vps_instances"
    )
    run = expect(world, world.bill(NOON), Outcome.COMPLETED)
    assert (run["suspended"], run["debts"], run["failures"]) == (1, 0, 0)
    assert world.rows("select * from billing_failures") == []


def test_failures_beside_a_charge_are_completed_with_failures(world: World) -> None:
    customers(world, 2)
    customers(world, 3, balance=None)
    run = expect(world, world.bill(NOON), Outcome.COMPLETED_WITH_FAILURES)
    assert run["failures_by_reason"] == {"wallet_missing": 3}
    assert 3500 < seconds_until_due(world) <= 3600


def test_failures_beside_a_debt_are_completed_with_failures(world: World) -> None:
    customers(world, 1, balance="0.00")
    customers(world, 1, balance=None)
    expect(world, world.bill(NOON), Outcome.COMPLETED_WITH_FAILURES)


def test_failures_alone_are_a_failed_cycle_that_is_not_tried_again_at_once(world: World) -> None:
    customers(world, 3, balance=None)
    result = world.cycle(NOON).run(world.lead())
    expect(world, result, Outcome.FAILED, Cause.ORGANIZATIONS)
    assert result.error == "no organization could be charged: wallet_missing 3"
    assert 3500 < seconds_until_due(world) <= 3600


def test_constraint_that_refuses_every_debit_is_the_controllers_failure_and_retried_at_once(world: World) -> None:
    customers(world, 9)
    world.run("alter table payment_transactions add constraint refuse check (amount >= 0)")
    result = world.cycle(NOON).run(world.lead())
    run = expect(world, result, Outcome.FAILED, Cause.CONTROLLER)
    assert (run["planned"], run["vanished"]) == (9, None)
    assert "refuse" in run["error"]
    assert seconds_until_due(world) < 0


def test_instance_that_a_cycle_did_not_see_is_missed(world: World) -> None:
    customers(world, 1)

    def appear(_planned: int) -> None:
        customers(world, 2)

    result = world.cycle(NOON).run(world.lead(), on_planned=appear)
    expect(world, result, Outcome.COMPLETED_WITH_FAILURES)
    assert result.failures_by_reason == {"missed": 2}
    assert world.bill(NOON).outcome is Outcome.COMPLETED


def test_instance_deleted_during_a_cycle_has_vanished(world: World) -> None:
    (gone, *_) = customers(world, 3)
    result = world.cycle(NOON).run(
        world.lead(), on_planned=lambda _: world.run("delete from vps_instances where id = %s", gone)
    )
    run = expect(world, result, Outcome.COMPLETED)
    assert (run["planned"], run["instances"], run["vanished"]) == (3, 2, 1)


def test_instance_whose_hours_were_charged_already_is_not_charged_in_part(world: World) -> None:
    (instance,) = customers(world, 1)
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = %s where id = %s", NOON - 3 * HOUR, instance)
    run = expect(world, world.bill(NOON), Outcome.COMPLETED)
    assert (run["planned"], run["charged_in_part"], run["vanished"]) == (1, 0, 1)


def test_cycle_that_fails_before_its_plan_has_none(scripted_world: World) -> None:
    world = scripted_world

    def fail(ledger: ScriptedLedger) -> None:
        ledger.connection.execute(b"select 1 / 0")

    script_of(world).act_before("plan_cycle", fail)
    run = expect(world, world.cycle(NOON).run(world.lead()), Outcome.FAILED, Cause.CONTROLLER)
    assert run["planned"] is None


def test_failure_that_cannot_be_recorded_is_not_missed_as_well(world: World) -> None:
    customers(world, 3)
    (refused,) = customers(world, 1)
    world.run(f"alter table vps_billing_cycles add constraint refuse check (vps_instance_id <> '{refused}')")
    result = world.bill(NOON)
    run = expect(world, result, Outcome.COMPLETED_WITH_FAILURES)
    assert run["failures_by_reason"] == {"error": 1}


def test_run_numbers_are_consecutive_and_dry_runs_take_none(world: World) -> None:
    customers(world, 1)
    for dry in (True, False, True, True, False):
        world.cycle(NOON).run(world.lead(), dry=dry)
    assert [row["id"] for row in world.rows("select id from billing_history")] == [2, 1]


def test_batches_of_a_run_hold_its_failures_by_reason(world: World) -> None:
    customers(world, 2)
    customers(world, 3, balance=None)
    world.bill(NOON, batch_size=1)
    (held,) = world.rows("select sum((failures_by_reason ->> 'wallet_missing')::int) as n from billing_batches")
    assert held["n"] == 3
