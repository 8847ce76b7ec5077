"""An operator's pause: the leader charges nothing, says why, and continues by the database's clock or after `resume`.

Time passes by moving the stored times back, so no test waits for it.
"""

from __future__ import annotations

import pytest

from controller.billing.control import Command, Wish, give, read
from controller.billing.heartbeat import Heartbeat
from controller.billing.other_billers import Notice, look
from controller.billing.status import read_status
from controller.billing.values import Outcome
from tests.integration.test_collections import made_biller
from tests.integration.test_other_billers import cycle_that_always_looks
from tests.integration.world import MONEY, Term, World

REASON = """checking "50% off" at ann's; drop table --"""


@pytest.fixture
def owing(world: World) -> World:
    """A world with four organizations that owe five hours each."""
    plan = world.plan("7.30")
    for _ in range(4):
        world.instance(world.organization("100.00"), plan, world.one("select now() - interval '5.5 hours'"))
    return world


def pause(world: World, seconds: float | None = None, reason: str = REASON) -> Command:
    return give(world.conn, Wish("pause", "ann on desk", reason, for_seconds=seconds))


def look_once(world: World, leadership: Term, *, between_cycles: bool) -> list[Notice]:
    with (ledger := world.ledger()).connection:
        return list(look(ledger, leadership.term, between_cycles=between_cycles))


def pass_time(world: World, minutes: float) -> None:
    """Moves every command into the past."""
    world.run(
        "update billing_commands set given_at = given_at - %s * interval '1 minute',"
        " until = until - %s * interval '1 minute'",
        minutes,
        minutes,
    )


def test_pause_stops_a_cycle_after_the_batch_in_hand_and_is_finished_when_no_batch_is_left(owing: World) -> None:
    leadership, given = owing.lead(), list[Command]()

    def may_start_batch() -> bool:
        if owing.one("select count(*) from payment_transactions") == 2 and not given:
            given.append(pause(owing))
        return True

    result = cycle_that_always_looks(owing, may_start_batch).run(leadership)
    assert (result.outcome, result.totals.instances) == (Outcome.STOPPED, 2)
    assert "paused until `containerstacks-billing resume` by ann on desk (role " in (result.error or "")
    assert (result.error or "").endswith(REASON)
    command = read(owing.conn, given[0].id)
    assert (command.acknowledged_by, command.finished_at) == ("test-1", None)
    assert [notice.kind for notice in look_once(owing, leadership, between_cycles=True)] == ["paused"]
    assert read(owing.conn, command.id).finished_at is not None
    before = owing.dump(*MONEY)
    assert owing.cycle().run(leadership).run is None
    assert owing.dump(*MONEY) == before
    give(owing.conn, Wish("resume", "ann on desk"))
    assert owing.cycle().run(leadership).totals.instances == 2


def test_leader_that_learns_of_a_command_looks_before_its_next_batch(owing: World) -> None:
    def may_start_batch() -> bool:
        if owing.one("select count(*) from payment_transactions") == 1:
            pause(owing)
            cycle.commands_waiting()
        return True

    cycle = owing.cycle(batch_size=1, may_start_batch=may_start_batch)
    assert cycle.run(owing.lead()).totals.instances == 1


def test_pause_ends_by_the_database_clock(owing: World) -> None:
    leadership = owing.lead()
    pause(owing, 3600)
    assert owing.cycle().run(leadership).outcome is Outcome.STOPPED
    pass_time(owing, 59)
    assert look_once(owing, leadership, between_cycles=True)[0].halts
    pass_time(owing, 2)
    assert look_once(owing, leadership, between_cycles=True) == []
    assert owing.cycle().run(leadership).totals.instances == 4


def test_next_leader_carries_out_a_pause(owing: World) -> None:
    pause(owing)
    assert owing.cycle().run(owing.lead()).outcome is Outcome.STOPPED


def test_dry_run_reports_a_pause_and_charges_what_a_cycle_would(owing: World) -> None:
    pause(owing)
    assert owing.cycle().run(owing.lead(), dry=True).totals.instances == 4


def test_second_pause_replaces_the_first_and_keeps_its_start(world: World) -> None:
    first = pause(world, 7200, "first")
    pass_time(world, 60)
    pause(world, 60, "second")
    (notice,) = read_status(world.conn).notices
    assert notice.message.endswith(": second")
    assert notice.since == read(world.conn, first.id).given_at
    pass_time(world, 2)
    assert read_status(world.conn).notices == (), "the second pause is over, and the first does not come back"
    third = pause(world)
    assert read_status(world.conn).notices[0].since == third.given_at


def test_pause_after_resume_has_a_new_start(world: World) -> None:
    pause(world)
    give(world.conn, Wish("resume", "ann on desk"))
    assert read_status(world.conn).notices == ()
    again = pause(world)
    assert read_status(world.conn).notices[0].since == again.given_at


def test_paused_leader_beats_with_the_reason_and_for_90_minutes_after_the_end(world: World) -> None:
    heartbeat = Heartbeat(
        connect=world.database.connect, instance_id="test-1", metadata={}, interval_seconds=60, retention_days=1
    )
    leadership = world.lead()
    world.run("update billing_terms set minted_at = now() - interval '9 days'")
    pause(world, 600)
    pass_time(world, 5)
    heartbeat.start(leadership)
    assert heartbeat.beat()
    (row,) = world.rows("select status, error_message from billing_daemon_status")
    assert row["status"] == "error"
    assert row["error_message"].endswith(REASON)
    pass_time(world, 5 + 89)
    assert heartbeat.beat()
    assert world.one("select status from billing_daemon_status") == "running"
    pass_time(world, 2)
    assert not heartbeat.beat()
    heartbeat.stop()
    heartbeat.run()


# --- trigger and step-down


def due_seconds(world: World) -> float:
    with (ledger := world.ledger()).connection:
        return ledger.seconds_until_due()


def test_trigger_makes_one_cycle_due_and_names_its_run(owing: World) -> None:
    leadership = owing.lead()
    owing.bill(leadership=leadership)
    assert due_seconds(owing) > 3500
    given = [give(owing.conn, Wish("trigger", "ann on desk")) for _ in range(2)]
    look_once(owing, leadership, between_cycles=False)
    assert read(owing.conn, given[0].id).finished_at is None
    assert due_seconds(owing) <= 0
    result = owing.bill(leadership=leadership)
    assert {read(owing.conn, each.id).run_id for each in given} == {result.run and result.run.id}
    assert read(owing.conn, given[0].id).outcome == "completed"
    unread = give(owing.conn, Wish("trigger", "ann on desk"))
    owing.bill(leadership=leadership)
    assert read(owing.conn, unread.id).acknowledged_by == "test-1"
    assert due_seconds(owing) > 3500


def test_trigger_is_refused_during_a_pause_and_does_not_run_after_it(owing: World) -> None:
    leadership = owing.lead()
    owing.bill(leadership=leadership)
    given = give(owing.conn, Wish("trigger", "ann on desk"))
    look_once(owing, leadership, between_cycles=False)
    pause(owing)
    look_once(owing, leadership, between_cycles=True)
    assert "billing is halted: paused until" in (read(owing.conn, given.id).refusal or "")
    give(owing.conn, Wish("resume", "ann on desk"))
    assert due_seconds(owing) > 3500


def test_trigger_does_not_shorten_a_takeover(owing: World) -> None:
    leadership = owing.lead()
    owing.run("update billing_leadership set bill_after = now() + interval '5 minutes'")
    given = give(owing.conn, Wish("trigger", "ann on desk"))
    assert due_seconds(owing) > 290
    look_once(owing, leadership, between_cycles=True)
    assert "a takeover waits until 20" in (read(owing.conn, given.id).refusal or "")


def test_step_down_is_meant_for_the_leader_of_its_term(world: World) -> None:
    world.lead()
    given = give(world.conn, Wish("step-down", "ann on desk"))
    successor = world.lead("test-1")
    look_once(world, successor, between_cycles=False)
    assert read(world.conn, given.id).finished_at is None, "the leader decides after the cycle in hand"
    look_once(world, successor, between_cycles=True)
    assert read(world.conn, given.id).refusal == "test-1 has taken over already"


def test_trigger_whose_run_was_lost_is_obeyed_by_another_cycle(owing: World) -> None:
    leadership = owing.lead()
    owing.bill(leadership=leadership)
    given = give(owing.conn, Wish("trigger", "ann on desk"))
    with (ledger := owing.ledger()).connection, ledger.fenced(leadership.term):
        lost = ledger.begin_run(leadership.term)  # the leader learns nothing of this COMMIT
    assert read(owing.conn, given.id).run_id == lost.id
    assert due_seconds(owing) > 3500
    look_once(owing, leadership, between_cycles=False)
    assert read(owing.conn, given.id).outcome == "running", "it may be the cycle in hand"
    look_once(owing, leadership, between_cycles=True)
    assert owing.one("select outcome from billing_runs where id = %s", lost.id) == "abandoned"
    assert due_seconds(owing) <= 0
    result = owing.bill(leadership=leadership)
    again = read(owing.conn, given.id)
    assert (again.run_id, again.outcome) == (result.run and result.run.id, "completed")


def test_step_down_whose_commit_was_not_answered_is_obeyed(world: World) -> None:
    leadership, biller = world.lead(), made_biller(world, [])
    refused, obeyed = (give(world.conn, Wish("step-down", "ann on desk")) for _ in range(2))
    finished = "update billing_commands set acknowledged_at = now(), finished_at = now(), refusal = %s where id = %s"
    world.run(finished, "no standby is connected", refused.id)
    assert biller._prepare(leadership, started=True)[1] is not None
    world.run(finished, None, obeyed.id)
    assert biller._prepare(leadership, started=True) == (True, None)
    assert read(world.conn, obeyed.id).finished_at is not None
    successor = world.lead("test-1")
    assert biller._prepare(successor, started=True)[1] is not None, "the command was meant for the former term"
