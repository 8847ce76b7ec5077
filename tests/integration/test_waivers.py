"""A waiver turns unpaid whole hours into billed periods of 0.00 that record the amount, and moves no money."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest

from controller import sql
from controller.billing import control
from controller.billing.control import Command, Wish
from controller.billing.errors import InconsistentError
from controller.billing.other_billers import look
from controller.billing.waiver import TRIES, carry_out_waivers
from tests.integration.test_other_billers import foreign_period
from tests.integration.world import LedgerAt, Term, World
from tests.model import HOUR, NOON

REASON = """50% "goodwill" for ann's outage; drop table --"""


@pytest.fixture
def indebted(world: World) -> World:
    """A world with one organization without money, whose two instances owe four recorded hours at two prices."""
    organization, plan = world.organization("0.00"), world.plan("7.30")
    for label in ("vps-1", "vps-2"):
        world.instance(organization, plan, NOON - 2 * HOUR, label=label)
    world.bill(NOON)
    world.run("update vps_plans set base_price = 14.60")  # counts from the next cycle
    world.bill(NOON + HOUR)
    world.bill(NOON + 2 * HOUR)
    return world


@pytest.fixture
def owing_now(world: World) -> World:
    """A world with one organization without money, whose three instances owe five hours now, recorded by a cycle."""
    owner, plan = world.organization("0.00"), world.plan("7.30")
    for _ in range(3):
        world.instance(owner, plan, world.one("select now() - interval '5.5 hours'"))
    world.bill()
    return world


def organization(world: World) -> UUID:
    found: UUID = world.one("select id from organizations")
    return found


def instances(world: World) -> list[UUID]:
    return [row["id"] for row in world.rows("select id from vps_instances order by label")]


def give(world: World, until: datetime | None, instance: UUID | None = None) -> Command:
    wish = Wish("waive", "ann on desk", REASON, until, organization_id=organization(world), instance_id=instance)
    return control.give(world.conn, wish)


def carry_out(world: World, batch_size: int = 1000, leader: Term | None = None) -> None:
    with (ledger := world.ledger()).connection:
        carry_out_waivers(ledger, leader or world.term(), batch_size)


def waive(world: World, until: datetime | None, instance: UUID | None = None, batch_size: int = 1000) -> Command:
    """Gives the command, and lets the leader carry it out."""
    given = give(world, until, instance)
    carry_out(world, batch_size)
    return control.read(world.conn, given.id)


def waived(world: World, instance: UUID) -> list[tuple[datetime, int, Decimal, Decimal]]:
    """Start, hours, amount charged and amount waived of each billed period."""
    rows = world.rows(
        "select billing_period_start as s, (metadata ->> 'hours')::int as h, total_amount as a,"
        " billing_waived(metadata) as w from vps_billing_cycles"
        " where vps_instance_id = %s and status = 'billed' order by 1",
        instance,
    )
    return [(row["s"], row["h"], row["a"], row["w"]) for row in rows]


def test_recorded_and_unrecorded_hours_are_waived_in_one_period_for_each_price(indebted: World) -> None:
    first, second = instances(indebted)
    given = waive(indebted, NOON + 4 * HOUR, batch_size=1)
    for instance in (first, second):
        assert waived(indebted, instance) == [
            (NOON - 2 * HOUR, 3, Decimal("0.00"), Decimal("0.03")),
            (NOON + HOUR, 3, Decimal("0.00"), Decimal("0.06")),
        ]
        assert indebted.open_segments(instance) == []
        assert indebted.last_billed_at(instance) == NOON + 4 * HOUR
    assert given.finished_at is not None
    assert (given.refusal, given.acknowledged_by) == (None, "test-1"), "although the leader had not read it before"
    assert control.read_waived(indebted.conn, given) == {"instances": 2, "hours": 12, "amount": Decimal("0.18")}
    (run,) = indebted.rows("select * from billing_runs where id = %s", given.run_id)
    assert (run["kind"], run["outcome"], run["instances"], run["amount"]) == ("waiver", "completed", 2, 0)
    (facts,) = indebted.rows("select distinct metadata -> 'waived' -> 'reason' as r from vps_billing_cycles")
    assert facts["r"] == REASON
    assert indebted.balance(organization(indebted)) == 0
    assert indebted.one("select count(*) from payment_transactions") == 0
    assert indebted.violations() == {}
    indebted.top_up(organization(indebted), "5.00")
    assert indebted.bill(NOON + 4 * HOUR).totals.instances == 0
    assert indebted.bill(NOON + 5 * HOUR).totals.amount == Decimal("0.04")
    lines = indebted.rows(
        "select kind, sum(hours) as hours from billing_statement(%s, '-infinity', 'infinity') group by 1 order by 1",
        organization(indebted),
    )
    assert [(line["kind"], line["hours"]) for line in lines] == [("charge", 2), ("top_up", None), ("waiver", 12)]
    assert indebted.violations() == {}


def test_open_row_that_reaches_beyond_the_end_keeps_its_price_and_the_rest(indebted: World) -> None:
    first, second = instances(indebted)
    waive(indebted, NOON + HOUR / 2, first)
    assert waived(indebted, first) == [(NOON - 2 * HOUR, 2, Decimal("0.00"), Decimal("0.02"))]
    assert indebted.open_segments(first) == [(NOON, 1, Decimal("7.30")), (NOON + HOUR, 1, Decimal("14.60"))]
    assert waived(indebted, second) == []
    assert indebted.one("select sum(owed) from billing_debts") == Decimal("0.03") + Decimal("0.05")
    assert indebted.violations() == {}
    indebted.top_up(organization(indebted), "5.00")
    assert indebted.bill(NOON + 2 * HOUR).totals.amount == Decimal("0.08")
    assert indebted.violations() == {}


def test_waiver_without_unpaid_hours_is_refused_and_takes_no_run(indebted: World) -> None:
    waive(indebted, NOON + 2 * HOUR)
    runs = indebted.one("select count(*) from billing_runs")
    again = waive(indebted, NOON + 2 * HOUR)
    assert again.refusal == "there are no unpaid whole hours with a price to waive"
    assert indebted.one("select count(*) from billing_runs") == runs


def test_hours_without_a_price_stay_open(world: World) -> None:
    owner = world.organization()
    world.instance(owner, world.plan("-1.00", None), NOON - 2 * HOUR)
    world.bill(NOON)
    assert "no unpaid whole hours" in (waive(world, NOON).refusal or "")
    assert world.reason(instances(world)[0]) == "price_negative"


def test_waiver_waits_for_the_end_of_a_takeover_and_for_locked_rows(indebted: World) -> None:
    indebted.run("update billing_leadership set bill_after = now() + interval '5 minutes'")
    given = waive(indebted, NOON + 2 * HOUR)
    assert (given.finished_at, given.run_id) == (None, None)
    indebted.run("update billing_leadership set bill_after = null")
    with World(indebted.url) as other, other.conn.transaction():
        other.run("select from vps_instances for update")
        carry_out(indebted)
        assert control.read(indebted.conn, given.id).finished_at is None
    carry_out(indebted)
    assert control.read(indebted.conn, given.id).finished_at is not None


def test_audit_finds_a_waiver_whose_amount_was_changed(indebted: World) -> None:
    waive(indebted, NOON + 2 * HOUR)
    indebted.run("update vps_billing_cycles set metadata = jsonb_set(metadata, '{waived,amount}', '9')")
    assert indebted.violations().keys() == {"price_clock"}


def fail_after_first_step(world: World, monkeypatch: pytest.MonkeyPatch, errors: list[Exception | None]) -> None:
    """From its second call on, `waive` takes the next entry: an error to raise, or None for a lost session."""
    real, calls = LedgerAt.waive, list[int]()

    def fail(self: LedgerAt, *arguments: Any) -> sql.Row:  # noqa: ANN401 - passed on
        calls.append(1)
        if len(calls) > 1 and errors:
            if (error := errors.pop(0)) is not None:
                raise error
            self.connection.close()
        return real(self, *arguments)

    monkeypatch.setattr(LedgerAt, "waive", fail)


@pytest.mark.parametrize("successor", [False, True])
@pytest.mark.parametrize("number", [2, 3])
def test_waiver_that_was_interrupted_is_completed(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, *, successor: bool
) -> None:
    """With two instances of two, nothing is left when it continues."""
    owner, plan = world.organization("0.00"), world.plan("7.30")
    for _ in range(number):
        world.instance(owner, plan, NOON - 2 * HOUR)
    world.bill(NOON)
    given = give(world, NOON)
    fail_after_first_step(world, monkeypatch, [None])
    with pytest.raises(psycopg.OperationalError):
        carry_out(world, batch_size=2)
    runs = "select kind, outcome from billing_runs where kind = 'waiver'"
    assert world.rows(runs) == [{"kind": "waiver", "outcome": "completed"}], "no run is left half finished"
    leader = world.lead() if successor else world.term()
    world.run("update billing_daemon_status set heartbeat_at = now()")
    carry_out(world, 2, leader)
    done = control.read(world.conn, given.id)
    assert (done.refusal, done.finished_at is not None) == (None, True)
    amount = number * Decimal("0.02")
    assert control.read_waived(world.conn, done) == {"instances": number, "hours": 2 * number, "amount": amount}
    assert {run["outcome"] for run in world.rows(runs)} == {"completed"}
    assert world.violations() == {}


def test_rows_that_change_during_a_waiver_are_tried_again(indebted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = give(indebted, NOON)
    fail_after_first_step(indebted, monkeypatch, [InconsistentError("changed")] * (TRIES - 1))
    carry_out(indebted, batch_size=1)
    done = control.read(indebted.conn, given.id)
    assert (done.refusal, control.read_waived(indebted.conn, done)["instances"]) == (None, 2)


def test_refusal_says_what_was_waived_before(indebted: World, monkeypatch: pytest.MonkeyPatch) -> None:
    given = give(indebted, NOON)
    fail_after_first_step(indebted, monkeypatch, [InconsistentError("a rule dropped a row")] * TRIES)
    carry_out(indebted, batch_size=1)
    done = control.read(indebted.conn, given.id)
    assert done.refusal == "waived 2 hours of 1 instances, and failed for the others: a rule dropped a row"
    assert control.read_waived(indebted.conn, done)["instances"] == 1
    assert indebted.violations() == {}


def test_waiver_after_the_application_moved_last_billed_at_forward_is_not_a_violation(world: World) -> None:
    owner = world.organization("1.00")
    instance = world.instance(owner, world.plan("7.30"), NOON - 2 * HOUR)
    world.bill(NOON)
    world.run("update vps_instances set last_billed_at = %s", NOON + 2 * HOUR)
    waive(world, NOON + 4 * HOUR)
    assert waived(world, instance)[-1] == (NOON + 2 * HOUR, 2, Decimal("0.00"), Decimal("0.02"))
    assert world.violations() == {}


def test_hours_that_have_not_passed_are_not_waived(owing_now: World) -> None:
    given = waive(owing_now, owing_now.one("select now() + interval '48 hours'"))
    assert control.read_waived(owing_now.conn, given) == {"instances": 3, "hours": 15, "amount": Decimal("0.15")}
    assert owing_now.violations() == {}


def test_waiver_waits_while_another_program_bills_and_not_during_a_pause(owing_now: World) -> None:
    for instance in instances(owing_now)[:2]:
        foreign_period(owing_now, instance)  # the other program is in the middle of its run: the third instance is next
    given = give(owing_now, None)
    control.give(owing_now.conn, Wish("pause", "ann", "x"))
    with (ledger := owing_now.ledger()).connection:
        notices = look(ledger, owing_now.term().term)
    assert [each.kind for each in notices if each.halts] == ["other_periods", "paused"]
    carry_out(owing_now)
    assert control.read(owing_now.conn, given.id).finished_at is None
    owing_now.run("delete from billing_foreign_periods")
    carry_out(owing_now)
    assert control.read_waived(owing_now.conn, control.read(owing_now.conn, given.id))["instances"] == 1
