"""When a cycle is due, and what the history records. Batch sizes and workers make no difference to the money."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from controller import foreground
from controller.billing.biller import Biller
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.values import Outcome, Run, Totals
from controller.lifecycle.stop import StopToken
from tests.integration.scripted_ledger import ScriptedLedger
from tests.integration.world import ScriptedStop, Term, World
from tests.model import HOUR, NOON, Owed, settle
from tests.support.console import Console

D = Decimal


class CrashError(BaseException):
    """Stands for the death of the process: no handler catches it."""


def seconds_until_due(world: World) -> float:
    ledger = world.ledger()
    with ledger.connection:
        return ledger.seconds_until_due()


def begin_term(world: World, leadership: Term, delay_seconds: float = 300, interval_minutes: float = 60) -> bool:
    ledger = world.ledger()
    with ledger.connection, ledger.fenced(leadership.term):
        silent = ledger.begin_term(interval_minutes).silent
        if silent:
            ledger.begin_takeover(delay_seconds)
        return silent


def create_debtors(world: World, organizations: int = 4) -> None:
    """Creates organizations that each owe five cents."""
    plan = world.plan("7.30")
    for _ in range(organizations):
        world.instance(world.organization("1.00"), plan, NOON - 5 * HOUR)


def test_database_that_was_never_billed_is_overdue(world: World) -> None:
    assert seconds_until_due(world) < 0


def test_cycle_is_due_an_interval_after_the_last_good_start(world: World) -> None:
    world.bill()
    assert 3590 < seconds_until_due(world) <= 3600
    begin_term(world, world.lead(), 0, interval_minutes=10)
    assert 590 < seconds_until_due(world) <= 600, "the leader's interval counts"
    begin_term(world, world.lead(), 0)
    world.run("update billing_runs set started_at = started_at - interval '59 minutes'")
    assert 50 < seconds_until_due(world) <= 60
    world.run("update billing_runs set started_at = started_at - interval '3 days'")
    assert seconds_until_due(world) < 0
    world.bill()
    world.run("update billing_runs set finished_at = finished_at + interval '20 minutes'")
    assert 3590 < seconds_until_due(world) <= 3600, "the interval runs from the cycle's start, not from its end"


@pytest.mark.parametrize("outcome", ["failed", "stopped", "abandoned", "running"])
def test_cycle_that_did_not_complete_is_followed_at_once(world: World, outcome: str) -> None:
    world.bill()
    world.run("update billing_runs set started_at = started_at - interval '61 minutes'")
    world.run("insert into billing_runs (term, holder, started_at, outcome) values (1, 'test-1', now(), %s)", outcome)
    assert seconds_until_due(world) < 0


def test_takeover_delay_applies_without_a_heartbeat(world: World) -> None:
    assert begin_term(world, world.lead()) is True
    assert 290 < seconds_until_due(world) <= 300


def test_takeover_delay_outlives_the_leader_that_began_it(world: World) -> None:
    begin_term(world, world.lead())
    world.run("insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at) values ('a-1', 'x', now())")
    ledger, leadership = world.ledger(), world.lead()
    with ledger.connection, ledger.fenced(leadership.term):
        start = ledger.begin_term(60)
    assert not start.silent, "the successor finds a heartbeat that is seconds old"
    assert start.waits_until == world.one("select bill_after from billing_leadership"), "and knows until when it waits"
    assert 290 < seconds_until_due(world) <= 300, "but the delay continues"


@pytest.mark.parametrize(("minutes", "waits"), [(89, False), (91, True)])
def test_takeover_delay_applies_if_the_newest_heartbeat_is_older_than_90_minutes(
    world: World,
    minutes: int,
    waits: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    world.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
        " values ('a-1', 'stopped', now() - %s * interval '1 minute'), ('b-2', 'stopped', now() - interval '9 days'),"
        " ('c-3', 'stopped', null)",
        minutes,
    )
    assert begin_term(world, world.lead()) is waits


def test_takeover_delay_of_zero_bills_at_once(world: World) -> None:
    begin_term(world, world.lead(), 0)
    assert seconds_until_due(world) <= 0


def test_leader_steps_down_only_after_failures_in_a_row(world: World) -> None:
    """The first session starts the term; the others read the schedule."""
    world.bill()
    works = [True, False, False, True, False, False, True]
    stepped_down: list[float] = []

    class Leader(Term):
        def step_down(self, back_off_seconds: float) -> None:
            stepped_down.append(back_off_seconds)

    class Unwaiting(Biller):
        def _wait(self, seconds: float) -> None:
            pass

    def connect() -> Ledger:
        if not works.pop(0):
            raise psycopg.OperationalError("the database is away")
        return world.ledger()

    stop = ScriptedStop(may_start_cycle=lambda: bool(works) and not stepped_down)
    heartbeat = Heartbeat(
        connect=world.database.connect, instance_id="test-1", metadata={}, interval_seconds=60, retention_days=30
    )
    biller = Unwaiting(
        connect=connect,
        cycle=world.cycle(),
        guard=Guard(world.ledger, stop),
        heartbeat=heartbeat,
        stop=stop,
        interval_minutes=60,
        takeover_delay_seconds=0,
        other_billers="stop",
        on_cycle_ended=lambda _result: None,
    )
    biller.elected(Leader(world.lead().term))
    biller.run()
    assert stepped_down == []


def test_run_records_its_leader_times_and_totals(world: World) -> None:
    create_debtors(world)
    leadership = world.lead()
    result = world.bill(None, leadership)
    (run,) = world.rows("select * from billing_runs")
    assert (run["term"], run["holder"], run["outcome"], run["error"]) == (leadership.term, "test-1", "completed", None)
    assert run["started_at"] <= run["finished_at"] <= world.one("select clock_timestamp()")
    assert Totals.from_row(run) == result.totals
    assert result.run is not None
    assert result.run.id == run["id"]


class Crashing(ScriptedLedger):
    """A ledger that dies before a chosen statement."""


@pytest.fixture
def crashing(world: World) -> World:
    class Own(Crashing):
        pass

    world.ledger_class = Own
    create_debtors(world)
    return world


def crash_before(world: World, statement: str, nth: int, **settings: Any) -> None:  # noqa: ANN401
    """A cycle that ends, as after `kill -9`, before the nth statement with a name."""
    kind = world.ledger_class
    assert issubclass(kind, Crashing)

    def crash(ledger: ScriptedLedger) -> None:
        ledger.connection.close()
        raise CrashError

    kind.act_before(statement, crash, occurrence=nth)
    with pytest.raises(CrashError):
        world.cycle(NOON, **settings).run(world.lead())


def test_abandoned_run_is_closed_with_what_its_batches_committed(crashing: World) -> None:
    crash_before(crashing, "charge_covered", 3, batch_size=1)
    (run,) = crashing.rows("select * from billing_runs")
    assert (run["outcome"], run["finished_at"]) == ("running", None)
    assert crashing.bill(NOON, batch_size=1).totals == Totals(instances=2, hours=10, amount=D("0.10"))
    old, new = crashing.rows("select * from billing_runs order by id")
    assert (old["outcome"], Totals.from_row(old)) == ("abandoned", Totals(instances=2, hours=10, amount=D("0.10")))
    assert (old["planned"], old["vanished"]) == (4, None)
    assert f"term {old['term']}" in old["error"]
    assert new["outcome"] == "completed"
    assert crashing.violations() == {}


def test_next_leader_leaves_ended_runs_as_they_are(world: World) -> None:
    organization = world.organization("0.02")
    world.instance(organization, world.plan("7.30"), NOON - 3 * HOUR)
    world.bill(NOON)
    before = world.rows("select * from billing_runs")
    world.bill(NOON)
    assert world.rows("select * from billing_runs order by id")[:1] == before


def test_stopped_cycle_keeps_its_batches_and_is_followed_at_once(world: World) -> None:
    create_debtors(world)
    batches = [True, True]
    result = world.cycle(NOON, batch_size=1, may_start_batch=lambda: bool(batches and batches.pop())).run(world.lead())
    assert result.outcome is Outcome.STOPPED
    (run,) = world.rows("select * from billing_runs")
    assert (run["outcome"], run["instances"]) == ("stopped", result.totals.instances)
    assert 0 < result.totals.instances < 4
    assert seconds_until_due(world) < 0
    assert world.bill(NOON).totals.instances == 4 - result.totals.instances
    assert world.violations() == {}


def test_leader_past_its_deadline_starts_no_further_batch(world: World) -> None:
    create_debtors(world)
    leadership, believes = world.lead(), [True, True]
    leadership.leads = lambda: bool(believes and believes.pop())
    result = world.cycle(NOON, batch_size=1).run(leadership)
    assert result.outcome is Outcome.DEPOSED
    assert world.one("select count(*) from billing_batches") < 4
    assert world.one("select outcome from billing_runs") == "running", "its successor closes it"
    world.bill(NOON)
    assert world.violations() == {}


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 15, 2000])
def test_results_do_not_depend_on_batches_and_workers(world: World, workers: int, batch_size: int) -> None:
    prices = [D("0.00"), D("7.30"), D("19.99")]
    plans = [world.plan(str(price)) for price in prices]
    expected = Totals()
    model: dict[UUID, tuple[Owed, int]] = {}
    for number in range(20):
        balance = {0: None, 1: "0.11", 2: "0.00"}.get(number % 7, "80.00")
        organization, start = world.organization(balance), NOON - (2 + number) * HOUR - timedelta(minutes=number)
        turns = [(number + each) % 3 for each in range(1 + number % 6)]
        instances = [
            world.instance(organization, plans[turn], NOON - (500 - place) * HOUR, start)
            for place, turn in enumerate(turns)
        ]
        if balance is None:
            expected += Totals(failures=len(turns))
            continue
        owed = [Owed(prices[turn], start, 2 + number) for turn in turns]
        model |= dict(zip(instances, zip(owed, settle(D(balance), owed), strict=True), strict=True))
    for each, hours in model.values():
        expected += Totals(int(hours > 0), hours, each.cost(hours), int(hours < each.hours), 0)
    assert world.bill(NOON, workers=workers, batch_size=batch_size).totals == expected
    for instance, (each, hours) in model.items():
        assert world.billed(instance) == ([(each.start, hours, each.cost(hours))] if hours else [])
    assert world.violations() == {}


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
def test_plan_covers_every_organization_once_in_bounded_batches(world: World, batch_size: int) -> None:
    plan, sizes = world.plan(), (9, 1, 2, 4, 1, 1, 7, 3, 5, 2, 2, 8, 1)
    organizations = [world.organization() for _ in sizes]
    for organization, size in zip(organizations, sizes, strict=True):
        for _ in range(size):
            world.instance(organization, plan, NOON - HOUR)
    ledger = world.ledger()
    with ledger.connection:
        batches = ledger.plan(Run(1, 1, NOON), batch_size)
    covered = []
    for batch in batches:
        mine = [
            n for n, each in enumerate(organizations) if batch.first_organization <= each <= batch.last_organization
        ]
        assert batch.instances == sum(sizes[number] for number in mine)
        assert batch.large is (max(sizes[number] for number in mine) > batch_size)
        assert len(mine) == 1 if batch.large else batch.instances < 2 * batch_size
        covered += mine
    large = [number for number, size in enumerate(sizes) if size > batch_size]
    assert covered == large + [n for n in range(len(sizes)) if n not in large], (
        "each once: large ones first, the others in order"
    )


def test_first_batch_is_small_so_that_the_first_charge_comes_soon(world: World) -> None:
    plan = world.plan()
    for _ in range(150):
        world.instance(world.organization(), plan, NOON - HOUR)
    with (ledger := world.ledger()).connection:
        assert [batch.instances for batch in ledger.plan(Run(1, 1, NOON), 120)] == [100, 20, 30]


def test_old_batches_are_pruned_and_runs_are_kept(world: World) -> None:
    create_debtors(world)
    world.bill(NOON)
    world.run("update billing_batches set written_at = now() - interval '31 days'")
    world.instance(world.organization(), "p", NOON - 5 * HOUR)
    world.bill(NOON)
    assert world.one("select count(*) from billing_batches") == 1
    assert world.one("select sum(instances) from billing_runs") == 5
    assert world.violations() == {}


def bill_in_foreground(
    world: World, monkeypatch: pytest.MonkeyPatch, during_wait: Callable[[StopToken], None]
) -> tuple[int, str]:
    """Runs `bill`, and calls the test in place of each wait. Returns the exit status and what `bill` said."""

    class Stop(StopToken):
        def wait(self, _seconds: float) -> None:
            during_wait(self)

    monkeypatch.setattr(foreground, "StopToken", Stop)
    monkeypatch.setenv("DATABASE_URL", world.url)
    status, _, said = Console(monkeypatch).run("bill")
    return status, said


@pytest.fixture
def taken_over(owing: World) -> World:
    """A database with due hours, whose leader has begun a takeover of five minutes and is gone."""
    leader = owing.lead()
    with (ledger := owing.ledger()).connection, ledger.fenced(leader.term):
        ledger.begin_term(60)
        ledger.begin_takeover(300)
    return owing


def test_bill_waits_for_the_end_of_a_takeover_that_a_leader_has_begun(
    taken_over: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    def end_wait(_stop: StopToken) -> None:
        waits.append(taken_over.one("select count(*) from billing_runs"))
        if len(waits) == 2:
            taken_over.run("update billing_leadership set bill_after = now()")

    status, said = bill_in_foreground(taken_over, monkeypatch, end_wait)
    assert (status, waits, taken_over.one("select count(*) from billing_runs")) == (0, [0, 0], 1), said
    assert said.count("takeover.awaited") == 1


def test_signal_ends_the_wait_of_bill_without_a_charge(taken_over: World, monkeypatch: pytest.MonkeyPatch) -> None:
    status, said = bill_in_foreground(taken_over, monkeypatch, StopToken.stop_batches)
    assert (status, taken_over.one("select count(*) from billing_runs")) == (1, 0)
    assert "stopped before the takeover delay had passed" in said


def test_bill_on_a_database_without_a_heartbeat_charges_at_once_and_warns(
    owing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[StopToken] = []
    status, said = bill_in_foreground(owing, monkeypatch, waits.append)
    assert (status, waits, owing.one("select count(*) from billing_runs")) == (0, [], 1), said
    assert "takeover.undelayed" in said
