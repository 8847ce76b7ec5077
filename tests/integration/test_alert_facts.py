"""What alerts ask about cycles comes from the database, so it outlives the leader that it is about."""

from __future__ import annotations

from datetime import timedelta

import pytest

from controller.billing.status import read_status
from controller.billing.values import Cause, Outcome
from tests.integration.world import World
from tests.model import HOUR, NOON


def add_run(world: World, hours_ago: float, outcome: str, *, instances: int = 0, cause: str | None = None) -> None:
    world.conn.execute(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome, cause, instances)"
        " values (1, 'host-1', now() - %(age)s, now() - %(age)s, %(outcome)s, %(cause)s, %(instances)s)",
        {"age": timedelta(hours=hours_ago), "outcome": outcome, "cause": cause, "instances": instances},
    )


def facts(world: World) -> tuple[int | None, int, int]:
    status = read_status(world.conn)
    return status.charged_instances, status.failing_cycles, status.cut_short_cycles


def test_database_that_was_never_billed_has_no_charged_instances(world: World) -> None:
    world.lead()
    assert facts(world) == (None, 0, 0)


def test_charged_instances_are_those_of_the_hour_before_the_newest_successful_cycle(world: World) -> None:
    world.lead()
    for hours_ago, instances in ((2.6, 100), (1.4, 60), (1.1, 1), (0.5, 40)):
        add_run(world, hours_ago, "completed", instances=instances)
    add_run(world, 0.1, "failed", cause="controller")
    assert facts(world) == (101, 1, 0)


def test_failing_cycles_are_counted_until_one_succeeds(world: World) -> None:
    world.lead()
    for hours_ago in (3, 2, 1):
        add_run(world, hours_ago, "failed", cause="organizations")
    assert facts(world)[1] == 3
    add_run(world, 0.5, "completed_with_failures", instances=1)
    assert facts(world)[1] == 0


@pytest.mark.parametrize(("hours_ago", "cause", "counted"), [(0.5, "drain", 1), (0.5, "halt", 0), (1.5, "drain", 0)])
def test_cycle_that_a_drain_stopped_counts_for_an_hour_and_a_pause_does_not(
    world: World, hours_ago: float, cause: str, counted: int
) -> None:
    world.lead()
    add_run(world, hours_ago, "stopped", cause=cause)
    assert facts(world)[2] == counted


def test_stopped_cycle_records_that_a_drain_stopped_it(world: World) -> None:
    for _ in range(2):
        world.instance(world.organization("5.00"), world.plan("7.30"), NOON - 3 * HOUR)
    result = world.cycle(NOON, batch_size=1, may_start_batch=iter([True, False, False, False]).__next__).run(
        world.lead()
    )
    assert (result.outcome, result.cause) == (Outcome.STOPPED, Cause.DRAIN)
    assert world.one("select cause from billing_runs") == "drain"
