"""A dry run reports what a real cycle would do, because it executes the same SQL, and leaves no trace."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from controller.billing.values import CycleResult, Totals
from controller.demo.sample import Size, create_data
from tests.integration.touchy import TouchyLedger, touchy_kind
from tests.integration.world import World
from tests.model import HOUR, NOON


def dry(world: World, as_of: datetime | None, **settings: Any) -> CycleResult:  # noqa: ANN401
    """Runs a dry cycle under the newest term, whichever replica holds it."""
    leadership = world.term()
    result = world.cycle(as_of, **settings).run(leadership, dry=True)
    assert result.got_through, result.error
    return result


@pytest.mark.parametrize("batch_size", [1, 2, 5, 2000])
@pytest.mark.parametrize("workers", [1, 3])
def test_figures_equal_the_real_runs_and_nothing_changes(world: World, batch_size: int, workers: int) -> None:
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


def test_it_counts_a_debts_second_step_with_what_the_first_has_left(world: World) -> None:
    """Each step of a large organization sees the earlier ones, although all are rolled back."""
    organization, plan = world.organization("0.25"), world.plan("7.30")
    for number in range(10):
        world.instance(organization, plan, NOON - (100 - number) * HOUR, NOON - 5 * HOUR)
    world.lead()
    assert dry(world, NOON, batch_size=3).totals == Totals(5, 25, Decimal("0.25"), 5, 0)
    assert world.bill(NOON, batch_size=3).totals == Totals(5, 25, Decimal("0.25"), 5, 0)


def test_it_tells_the_same_of_the_sample_database(world: World) -> None:
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


def test_it_works_while_a_leader_is_in_the_middle_of_a_cycle(database: str) -> None:
    class Own(TouchyLedger):
        pass

    with World(database, Own) as world:
        plan = world.plan("7.30")
        for _ in range(4):
            world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)
        world.lead()
        found: list[CycleResult] = []
        with World(database) as other:
            dry(world, NOON, batch_size=2)
            second = [number for number, name in enumerate(Own.names) if name == "fence"][2]
            Own.counted = 0
            Own.before[second] = lambda _ledger: found.append(dry(other, NOON))
            result = world.bill(NOON, batch_size=2)
        assert result.totals.instances == 4
        assert [each.totals.instances for each in found] == [2]
        assert world.violations() == {}


def test_a_trigger_that_refuses_is_found_by_a_dry_run_too(world: World) -> None:
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


def test_an_election_in_the_middle_of_it_does_not_end_it(touchy: World) -> None:
    kind = touchy_kind(touchy)
    dry(touchy, NOON)
    terms: list[int] = []
    kind.before = {kind.names.index("plan_cycle"): lambda _ledger: terms.append(touchy.lead().term)}
    kind.counted = 0
    assert dry(touchy, NOON).totals.instances == 4
    assert terms == [touchy.term().term]


def test_dry_run_meets_the_constraints_that_a_real_run_meets_at_its_commit(world: World) -> None:
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
