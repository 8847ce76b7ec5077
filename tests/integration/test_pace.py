"""A paced cycle holds nothing while it pauses, calls the guard meanwhile, and runs at full speed once it is drained."""

from __future__ import annotations

import threading
from collections import Counter
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from controller.billing.control import Wish, give
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.sharing import SLOW_SECONDS
from controller.billing.values import Batch, BatchResult, Outcome, Run
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import FOREGROUND, WORKER
from tests.integration.world import World

ORGANIZATIONS = 6
OPEN = """
select count(*) from pg_stat_activity a
where a.datname = current_database() and a.pid <> pg_backend_pid() and a.application_name like 'billing%%'
    and (a.state <> 'idle' or exists (select from pg_locks l where l.pid = a.pid))
"""


class Stop(StopToken):
    """Doesn't pause. Records what is open at each pause, and drains at the nth one."""

    def __init__(self, world: World, drain_at: int | None = None) -> None:
        super().__init__()
        self._world, self._drain_at = world, drain_at
        self.open: list[int] = []
        self.seconds: list[float] = []

    def pause(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.open.append(self._world.one(OPEN))
        if len(self.seconds) == self._drain_at:
            self.stop_cycles()


@pytest.fixture
def due(world: World) -> World:
    """Organizations with an unbilled hour, and a cycle that is due now."""
    plan = world.plan("7.30")
    for _ in range(ORGANIZATIONS):
        world.instance(world.organization("1.00"), plan, world.one("select now() - interval '90 minutes'"))
    term = world.lead().term
    world.run("update billing_leadership set interval_minutes = 60")
    world.run(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome)"
        " select %s, holder, now() - interval '60 minutes', now() - interval '59 minutes', 'completed'"
        " from billing_leadership",
        term,
    )
    return world


def cycle(world: World, stop: StopToken, guard_seconds: float = 60.0, workers: int = 1, batch_size: int = 1) -> Cycle:
    return Cycle(
        lambda: world.ledger(FOREGROUND),
        lambda: world.ledger(WORKER),
        CycleSettings(workers=workers, batch_size=batch_size, pace=0.5, guard_seconds=guard_seconds),
        stop,
    )


def test_paced_cycle_holds_nothing_while_it_pauses(due: World) -> None:
    stop = Stop(due)
    result = cycle(due, stop).run(due.term())
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED, ORGANIZATIONS)
    assert stop.open == [0] * (ORGANIZATIONS - 1), "no pause follows the last transaction"
    assert all(seconds > 0 for seconds in stop.seconds)


@pytest.mark.parametrize("outcome", ["abandoned", "stopped", "failed"])
def test_cycle_that_continues_an_interrupted_one_runs_at_full_speed(due: World, outcome: str) -> None:
    due.run(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome)"
        " select term, holder, now() - interval '20 seconds', now(), %s from billing_leadership",
        outcome,
    )
    stop = Stop(due)
    assert cycle(due, stop).run(due.term()).totals.instances == ORGANIZATIONS
    assert stop.seconds == []


def test_drained_cycle_ends_at_full_speed(due: World) -> None:
    stop = Stop(due, drain_at=2)
    result = cycle(due, stop).run(due.term())
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED, ORGANIZATIONS)
    assert len(stop.seconds) == 2


def test_cycle_hurries_once_a_command_waits_for_its_end(due: World) -> None:
    stop = Stop(due)
    billing = cycle(due, stop)

    def give_trigger(result: BatchResult) -> None:
        if len(stop.seconds) == 1:  # before the second pause
            give(due.conn, Wish("trigger", "ann on desk"))
            billing.commands_waiting()

    assert billing.run(due.term(), on_result=give_trigger).totals.instances == ORGANIZATIONS
    assert len(stop.seconds) == 2, "the pause that had been decided is the last one"


@pytest.mark.parametrize(
    "change",
    [
        "update billing_runs set started_at = started_at - interval '2 minutes'",
        "update billing_runs set started_at = started_at + interval '2 minutes'",
        "delete from billing_runs",
    ],
    ids=["late", "triggered", "first"],
)
def test_cycle_that_does_not_begin_on_time_does_not_pause(due: World, change: str) -> None:
    due.run(change)
    stop = Stop(due)
    assert cycle(due, stop).run(due.term()).totals.instances == ORGANIZATIONS
    assert stop.seconds == []


def test_guard_is_called_during_a_paced_cycle_while_nothing_is_open(due: World) -> None:
    stop, charged, opened = Stop(due), list[int](), list[int]()

    def look() -> None:
        opened.append(due.one(OPEN))
        charged.append(due.one("select count(*) from payment_transactions where metadata ->> 'controller' is not null"))

    guarded = cycle(due, stop, guard_seconds=0.0001)
    assert guarded.run(due.term(), on_quiet=look).totals.instances == ORGANIZATIONS
    assert set(opened) == {0}
    assert charged == sorted(charged)
    assert 0 < charged[-1] < ORGANIZATIONS


@pytest.mark.parametrize("workers", [1, 2])
def test_guard_is_called_between_two_transactions_of_one_large_organization(due: World, workers: int) -> None:
    """The organization comes first, and has as many instances as all others together."""
    owner = due.organization("1.00")
    for _ in range(ORGANIZATIONS):
        due.instance(owner, due.plan("7.30"), due.one("select now() - interval '90 minutes'"))
    opened, charged = list[int](), list[int]()

    def look() -> None:
        opened.append(due.one(OPEN))
        charged.append(due.one("select count(*) from vps_billing_cycles where organization_id = %s", owner))

    guarded = cycle(due, Stop(due), guard_seconds=0.0001, workers=workers)
    result = guarded.run(due.term(), on_quiet=look)
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED, 2 * ORGANIZATIONS)
    assert due.balance(owner) == Decimal("0.94")
    assert set(opened) == {0}
    between = set(range(1, ORGANIZATIONS))
    if workers == 1:
        assert between <= set(charged), "after each of its transactions"
    else:  # a worker that opens its session late charges one more before the guard
        assert between & set(charged)


def organization_ids(world: World) -> list[UUID]:
    return [row["id"] for row in world.rows("select id from organizations order by id::text")]


def add_trigger(world: World, body: str, when: str) -> None:
    world.run(f"create function intervene() returns trigger language plpgsql as $$ begin {body}; return new; end $$")
    world.run(f"create trigger intervene {when} execute function intervene()")


def test_guard_is_called_between_organizations_of_a_batch_that_fails(due: World) -> None:
    """One organization fails in each half of the only batch, so all of them are charged one at a time."""
    made = organization_ids(due)
    bad = f"new.organization_id in ('{made[1]}', '{made[4]}')"
    add_trigger(
        due, f"if {bad} then raise exception 'no'; end if", "before insert on payment_transactions for each row"
    )
    charged = list[int]()
    guarded = cycle(due, Stop(due), guard_seconds=0.0001, batch_size=100)
    result = guarded.run(
        due.term(),
        on_quiet=lambda: charged.append(due.one("select count(*) from vps_billing_cycles where status = 'billed'")),
    )
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED_WITH_FAILURES, ORGANIZATIONS - 2)
    assert result.totals.failures == 2
    assert {1, 2, 3} <= set(charged)
    assert due.one("select planned - instances - failures from billing_runs order by id desc limit 1") == 0
    assert due.violations() == {}


def test_guard_is_called_between_the_parts_of_a_divided_batch(due: World) -> None:
    """The first batch is slow, so the second one is divided."""
    slow = f"if new.organization_id = '{organization_ids(due)[0]}' then perform pg_sleep({SLOW_SECONDS}); end if"
    add_trigger(due, slow, "before insert on payment_transactions for each row")
    charged = list[int]()
    guarded = cycle(due, Stop(due), guard_seconds=0.0001, batch_size=3)
    result = guarded.run(
        due.term(), on_quiet=lambda: charged.append(due.one("select count(*) from vps_billing_cycles"))
    )
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED, ORGANIZATIONS)
    assert charged == [3, 4, 5]


def test_large_organization_continues_after_the_guard_with_the_rows_that_its_statements_can_take(
    due: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any statement that writes several of its payments is cancelled, as by the statement timeout."""
    owner = due.organization("1.00")
    plan = due.plan("7.30")
    for _ in range(ORGANIZATIONS):
        due.instance(owner, plan, due.one("select now() - interval '90 minutes'"))
    add_trigger(
        due,
        "if (select count(*) from written) > 1 then raise sqlstate '57014'; end if",
        "after insert on payment_transactions referencing new table as written for each statement",
    )
    limits, charge = list[int | None](), due.ledger_class.charge

    def record(self: Ledger, run: Run, batch: Batch, *arguments: Any, **options: Any) -> BatchResult:  # noqa: ANN401
        if batch.first_organization == owner:
            limits.append(arguments[1])
        return charge(self, run, batch, *arguments, **options)

    monkeypatch.setattr(due.ledger_class, "charge", record)
    guarded = cycle(due, Stop(due), guard_seconds=0.0001, batch_size=ORGANIZATIONS - 1)
    assert guarded.run(due.term()).totals.instances == 2 * ORGANIZATIONS
    assert limits[0] == ORGANIZATIONS - 1
    assert set(limits[1:]) == {1}
    assert due.balance(owner) == Decimal("0.94")


def test_drain_is_not_interrupted_for_the_guard(due: World) -> None:
    stop, calls = Stop(due), list[int]()

    def look() -> None:
        calls.append(1)
        if len(calls) == 2:
            stop.stop_cycles()

    assert cycle(due, stop, guard_seconds=0.0001).run(due.term(), on_quiet=look).totals.instances == ORGANIZATIONS
    assert len(calls) == 2


def test_only_workers_charge_in_a_paced_cycle_that_the_guard_interrupts(
    due: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, charge = list[str](), due.ledger_class.charge

    def record(self: Ledger, *arguments: Any, **options: Any) -> BatchResult:  # noqa: ANN401
        threads.append(threading.current_thread().name)
        return charge(self, *arguments, **options)

    monkeypatch.setattr(due.ledger_class, "charge", record)
    cycle(due, Stop(due), guard_seconds=0.0001).run(due.term())
    assert len(threads) == ORGANIZATIONS
    assert {name.partition("_")[0] for name in threads} == {"worker"}


def test_worker_that_waited_for_its_turn_charges_nothing_once_batches_are_stopped(
    due: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks, checked, charged = Counter[str](), threading.Condition(), list[str]()
    charge = due.ledger_class.charge

    class Counting(StopToken):
        def may_start_batch(self) -> bool:
            with checked:
                checks[threading.current_thread().name] += 1
                checked.notify_all()
            return super().may_start_batch()

    def stop_during_the_first(self: Ledger, *arguments: Any, **options: Any) -> BatchResult:  # noqa: ANN401
        charged.append(threading.current_thread().name)
        with checked:
            assert checked.wait_for(lambda: len(checks) == 2, 10), "the other worker has started"
            checked.wait_for(lambda: min(checks.values()) > 1, 0.2)  # it may check again only in its turn
        stop.stop_batches()
        return charge(self, *arguments, **options)

    monkeypatch.setattr(due.ledger_class, "charge", stop_during_the_first)
    stop = Counting()
    assert cycle(due, stop, workers=2).run(due.term()).outcome is Outcome.STOPPED
    assert len(charged) == 1
