"""A dry run returns what a real run would, because it executes the same statements, and leaves no trace."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from controller.billing.values import CycleResult, Totals
from controller.demo.sample import Size, create_data
from tests.integration.scripted_ledger import ScriptedLedger, script_of
from tests.integration.world import World, got_through
from tests.model import HOUR, NOON


def dry(world: World, as_of: datetime | None, **settings: Any) -> CycleResult:  # noqa: ANN401
    """A dry run under the newest term. It has to complete."""
    leadership = world.term()
    result = world.cycle(as_of, **settings).run(leadership, dry=True)
    assert got_through(result), result.error
    return result


@pytest.mark.parametrize("batch_size", [1, 2, 5, 2000])
@pytest.mark.parametrize("workers", [1, 3])
def test_dry_run_equals_the_real_run_and_changes_nothing(world: World, batch_size: int, workers: int) -> None:
    plans = [world.plan(price) for price in ("0.00", "7.30", "73.00")]
    for number in range(12):
        balance = {0: None, 1: "0.00", 2: "0.37", 3: "-1.00"}.get(number % 6, "90.00")
        organization = world.organization(balance)
        for each in range(1 + 5 * (number % 4 == 2)):
            start = NOON - (number + each + 1) * HOUR - timedelta(microseconds=number)
            world.instance(organization, plans[(number + each) % 3] if number < 11 else "gone", start)
    world.lead()
    before = world.dump()
    tried = dry(world, NOON, batch_size=batch_size, workers=workers)
    assert world.dump() == before
    real = world.bill(NOON, batch_size=batch_size, workers=workers)
    assert tried.totals == real.totals
    assert tried.failures_by_reason == real.failures_by_reason
    assert real.totals.debts > 0
    assert real.totals.failures > 0
    assert world.violations() == {}


def test_steps_of_a_dry_run_see_each_other(world: World) -> None:
    """The second step of a large organization finds the balance that the first has left, although both roll back."""
    organization, plan = world.organization("0.25"), world.plan("7.30")
    for number in range(10):
        world.instance(organization, plan, NOON - (100 - number) * HOUR, NOON - 5 * HOUR)
    world.lead()
    assert dry(world, NOON, batch_size=3).totals == Totals(5, 25, Decimal("0.25"), 5, 0)
    assert world.bill(NOON, batch_size=3).totals == Totals(5, 25, Decimal("0.25"), 5, 0)


def test_dry_run_of_the_sample_database_equals_the_real_run(world: World) -> None:
    with psycopg.connect(world.url, autocommit=True) as connection:
        create_data(connection, Size(organizations=30, instances=300))
    moment: datetime = world.one("select now()")
    world.lead()
    before = world.dump()
    tried = dry(world, moment, workers=2, batch_size=20)
    assert world.dump() == before
    real = world.bill(moment, workers=2, batch_size=20)
    assert (tried.totals, tried.failures_by_reason) == (real.totals, real.failures_by_reason)
    assert world.violations() == {}


def test_dry_run_works_during_a_cycle_of_the_leader(database: str) -> None:
    class Script(ScriptedLedger):
        pass

    with World(database, Script) as world:
        plan = world.plan("7.30")
        for _ in range(4):
            world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)
        world.lead()
        found: list[CycleResult] = []
        with World(database) as other:
            Script.act_before("charge_covered", lambda _ledger: found.append(dry(other, NOON)), occurrence=2)
            result = world.bill(NOON, batch_size=2)
        assert result.totals.instances == 4
        assert [each.totals.instances for each in found] == [2]
        assert world.violations() == {}


def test_dry_run_finds_an_organization_that_a_constraint_refuses(world: World) -> None:
    plan, organizations = world.plan("7.30"), [world.organization("1.00") for _ in range(5)]
    for each in organizations:
        world.instance(each, plan, NOON - 5 * HOUR)
    world.run(f"alter table wallets add check (balance = 1 or organization_id <> '{organizations[2]}')")
    world.lead()
    before = world.dump()
    tried = dry(world, NOON)
    assert world.dump() == before
    assert tried.totals == world.bill(NOON).totals
    assert (tried.totals.instances, tried.totals.failures) == (4, 1)


def test_election_during_a_dry_run_does_not_end_it(scripted_world: World) -> None:
    world = scripted_world
    world.lead()
    terms: list[int] = []
    script_of(world).act_before("plan_cycle", lambda _ledger: terms.append(world.lead().term))
    assert dry(world, NOON).totals.instances == 4
    assert terms == [world.term().term]


def test_dry_run_checks_deferred_constraints(world: World) -> None:
    plan, organizations = world.plan("7.30"), [world.organization() for _ in range(4)]
    for organization in organizations:
        world.instance(organization, plan, NOON - 5 * HOUR)
    world.run(
        f"""create function refuse() returns trigger language plpgsql as
        $$ begin if new.organization_id = '{organizations[1]}' then raise 'not this one'; end if; return null; end $$"""
    )
    world.run(
        "create constraint trigger refuse after insert on payment_transactions deferrable initially deferred"
        " for each row execute function refuse()"
    )
    world.lead()
    before = world.dump()
    tried = world.cycle(NOON).run(world.term(), dry=True)
    assert world.dump() == before
    real = world.cycle(NOON).run(world.lead())
    assert tried.totals == real.totals
    assert (real.totals.instances, real.totals.failures) == (3, 1)


def test_batch_of_a_dry_run_delays_no_election(scripted_world: World) -> None:
    world, terms = scripted_world, []

    def elect(_ledger: ScriptedLedger) -> None:
        with World(world.url) as successor:
            successor.run("set lock_timeout = '1ms'")
            terms.append(successor.lead().term)

    script_of(world).act_before("settle_wallets", elect)
    world.lead()
    assert dry(world, NOON).totals.instances == 4
    assert terms == [2]


def test_dry_run_does_not_delay_the_start_of_a_cycle(scripted_world: World) -> None:
    world, began = scripted_world, []

    def begin(_ledger: ScriptedLedger) -> None:
        with World(world.url) as leader:
            leader.run("set lock_timeout = '1ms'")
            result = leader.bill(NOON - HOUR)
            assert result.run is not None
            began.append(result.run.id)

    world.lead()
    for name in ("begin_heartbeat", "charge_covered"):
        script_of(world).act_before(name, begin)
    dry(world, NOON)
    assert began == [1, 2]
