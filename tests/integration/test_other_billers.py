"""The leader doesn't charge while another biller works: a live daemon, or a program that bills periods.

Time passes by moving the stored times back, so no test waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import pytest

from controller.app import Application
from controller.billing.control import Wish, give
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import MARKER
from controller.billing.other_billers import Notice, Watch, look, read_notices
from controller.billing.status import read_status
from controller.billing.values import Outcome
from controller.demo.process import run_command
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import FOREGROUND, WORKER
from controller.settings import Settings
from tests.integration.world import MONEY, LedgerAt, Term, World
from tests.support.processes import StartReplica
from tests.support.waiting import eventually

OTHER: Final = "web1-4711"
#: The marker of rows from before migration 017.
OLD_MARKER: Final = "containerstacks-billing"


def looks(world: World, leadership: Term) -> list[Notice]:
    """Makes the leader check for other billers once."""
    with (ledger := world.ledger()).connection:
        return list(look(ledger, leadership.term))


def kinds(world: World, leadership: Term) -> list[str]:
    """Returns the kinds of the notices that halt billing after one check."""
    return [notice.kind for notice in looks(world, leadership) if notice.halts]


# --- a live daemon


def daemon(world: World, heartbeat: str = "now()", status: str = "running", name: str = OTHER) -> None:
    """Writes another daemon's row. Later calls change only heartbeat_at, as its heartbeat does."""
    world.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
        " values (%s, %s, [moment]) on conflict (daemon_instance_id) do update"
        " set heartbeat_at = excluded.heartbeat_at".replace("[moment]", heartbeat),
        name,
        status,
    )


def pass_time(world: World, seconds: float) -> None:
    """Moves what the leader has seen, and the times that the database's clock wrote, into the past."""
    world.run("update billing_daemon_sightings set since = since - %s * interval '1 second'", seconds)
    world.run("update billing_daemon_status set heartbeat_at = heartbeat_at - %s * interval '1 second'", seconds)
    world.run("update billing_daemon_sightings set heartbeat_at = heartbeat_at - %s * interval '1 second'", seconds)


def test_killed_daemon_costs_three_minutes_from_the_first_reading(world: World) -> None:
    leadership = world.lead()
    daemon(world, "now() - interval '170 seconds'")
    assert kinds(world, leadership) == ["other_daemon"]
    pass_time(world, 179)
    assert kinds(world, leadership) == ["other_daemon"]
    pass_time(world, 2)
    assert kinds(world, leadership) == []


def test_daemon_that_stopped_gracefully_costs_nothing(world: World) -> None:
    daemon(world, "now()", status="stopped")
    assert kinds(world, world.lead()) == []


def test_daemon_whose_row_says_stopped_is_live_if_it_beats(world: World) -> None:
    """An older controller closed the row of a daemon that was alive. Its beat writes heartbeat_at alone."""
    leadership = world.lead()
    daemon(world, "now() - interval '30 seconds'", status="stopped")
    assert kinds(world, leadership) == []
    daemon(world)
    assert kinds(world, leadership) == ["other_daemon"]
    pass_time(world, 181)
    assert kinds(world, leadership) == []


@pytest.mark.parametrize("seconds", [170, 600])
def test_frozen_daemon_is_silent_after_180_seconds_and_live_again_when_it_beats(world: World, seconds: int) -> None:
    leadership = world.lead()
    daemon(world)
    assert kinds(world, leadership) == ["other_daemon"]
    daemon(world)
    assert kinds(world, leadership) == ["other_daemon"]
    pass_time(world, seconds)
    assert kinds(world, leadership) == (["other_daemon"] if seconds < 180 else [])
    daemon(world)
    assert kinds(world, leadership) == ["other_daemon"]


@pytest.mark.parametrize(
    "moment", ["now() + interval '2 hours'", "now() - interval '2 hours'", "'infinity'", "'-infinity'", "null"]
)
def test_heartbeat_of_a_wrong_clock_counts_only_if_it_changes(world: World, moment: str) -> None:
    leadership = world.lead()
    daemon(world, moment)
    assert kinds(world, leadership) == []
    assert kinds(world, leadership) == []
    daemon(world, "now() + interval '2 hours 1 minute'")
    assert kinds(world, leadership) == ["other_daemon"]
    pass_time(world, 181)
    assert kinds(world, leadership) == []


def test_host_clock_some_seconds_ahead_is_live_at_the_first_reading(world: World) -> None:
    daemon(world, "now() + interval '40 seconds'")
    assert kinds(world, world.lead()) == ["other_daemon"]


def test_sighting_survives_a_database_clock_that_is_set_back(world: World) -> None:
    leadership = world.lead()
    daemon(world)
    looks(world, leadership)
    pass_time(world, -7200)
    looks(world, leadership)
    pass_time(world, 181)
    assert kinds(world, leadership) == []


def test_next_leader_continues_the_observation(world: World) -> None:
    daemon(world)
    looks(world, world.lead())
    pass_time(world, 100)
    successor = world.lead()
    assert kinds(world, successor) == ["other_daemon"]
    pass_time(world, 81)
    assert kinds(world, successor) == []


def test_deleted_row_is_forgotten(world: World) -> None:
    leadership = world.lead()
    daemon(world)
    looks(world, leadership)
    world.run("delete from billing_daemon_status")
    assert kinds(world, leadership) == []
    assert world.rows("select from billing_daemon_sightings") == []


@pytest.mark.parametrize(
    "metadata", ['{"term": 7}', f'{{"controller": "{MARKER}"}}', f'{{"controller": "{OLD_MARKER}"}}']
)
def test_replicas_of_every_version_are_not_other_billers(world: World, metadata: str) -> None:
    leadership = world.lead()
    daemon(world)
    world.run("update billing_daemon_status set metadata = %s", metadata)
    assert kinds(world, leadership) == []
    daemon(world)
    assert kinds(world, leadership) == []


@pytest.mark.parametrize(
    "metadata", ["null", "'{}'", "'[]'", "'5'", "'null'", """'{"term": "7"}'""", """'{"pid": 7}'"""]
)
def test_row_without_a_term_is_another_daemon_regardless_of_its_name(world: World, metadata: str) -> None:
    daemon(world, name="test-2")
    world.run(f"update billing_daemon_status set metadata = {metadata}")  # noqa: S608 - ours
    assert kinds(world, world.lead()) == ["other_daemon"]


@pytest.fixture
def heartbeat(world: World) -> Iterator[Heartbeat]:
    """The heartbeat of test-1."""
    made = Heartbeat(
        connect=world.database.connect,
        instance_id="test-1",
        metadata={"version": "1"},
        interval_seconds=60,
        retention_days=1,
    )
    yield made
    made.stop()
    made.run()


def test_rows_of_other_daemons_are_never_written_closed_or_pruned(world: World, heartbeat: Heartbeat) -> None:
    leadership = world.lead()
    daemon(world, "now() - interval '9 days'")
    daemon(world, "now() - interval '2 days'", name="test-1")  # the name of this replica
    before = world.dump("billing_daemon_status")
    heartbeat.start(leadership)
    assert heartbeat.beat() is False
    heartbeat.mark_stopped()
    assert world.dump("billing_daemon_status") == before
    result = world.cycle().run(leadership)
    assert result.outcome is Outcome.FAILED
    assert "another daemon wrote under the name test-1" in (result.error or "")
    assert world.dump("billing_daemon_status") == before


def test_leader_does_not_beat_beside_a_live_daemon(world: World, heartbeat: Heartbeat) -> None:
    leadership = world.lead()
    heartbeat.start(leadership)
    assert heartbeat.beat()
    daemon(world)
    looks(world, leadership)
    assert heartbeat.beat() is False
    pass_time(world, 181)
    assert heartbeat.beat()


def test_cycle_beside_a_live_daemon_charges_nothing_and_is_tried_again_at_once(owing: World) -> None:
    leadership = owing.lead()
    before = owing.dump(*MONEY)
    daemon(owing)
    result = owing.cycle().run(leadership)
    assert (result.outcome, result.run) == (Outcome.STOPPED, None)
    assert f"another billing daemon is alive: {OTHER}; stop it" in (result.error or "")
    assert owing.dump(*MONEY) == before
    pass_time(owing, 181)
    assert owing.cycle().run(leadership).totals.instances == 4


def cycle_that_always_looks(world: World, may_start_batch: Callable[[], bool]) -> Cycle:
    class Stop(StopToken):
        def may_start_batch(self) -> bool:
            return may_start_batch()

    settings = CycleSettings(workers=1, batch_size=1, look_seconds=0)
    return Cycle(lambda: world.ledger(FOREGROUND), lambda: world.ledger(WORKER), settings, Stop())


def test_daemon_that_starts_during_a_cycle_ends_it_before_the_next_batch(owing: World) -> None:
    def may_start_batch() -> bool:
        if owing.one("select count(*) from payment_transactions") == 2:
            daemon(owing)
        return True

    result = cycle_that_always_looks(owing, may_start_batch).run(owing.lead())
    assert (result.outcome, result.totals.instances) == (Outcome.STOPPED, 2)
    assert owing.one("select outcome from billing_runs") == "stopped"


def test_watch_looks_once_an_interval_and_outlives_a_lost_session(world: World) -> None:
    leadership, now, sessions = world.lead(), 100.0, 0
    daemon(world)

    def connect() -> LedgerAt:
        nonlocal sessions
        sessions += 1
        ledger = world.ledger()
        if sessions == 1:
            ledger.connection.close()
        return ledger

    watch = Watch(connect, leadership.term, look_seconds=30, clock=lambda: now)
    now = 129.9
    watch.check()
    assert sessions == 0
    now = 130.0
    watch.check()
    watch.check()
    assert sessions == 1, "the look has failed, and is tried again after 5 seconds"
    now = 135.0
    with pytest.raises(Exception, match="another billing daemon is alive"):
        watch.check()


# --- foreign periods


def foreign_period(
    world: World,
    instance: UUID,
    *,
    status: str = "billed",
    moves: bool = True,
    created: str = "clock_timestamp()",
    metadata: str = "{}",
) -> None:
    """Bills the instance up to a minute ago, as another program does.

    Args:
        world: the database.
        instance: to bill.
        status: of the period.
        moves: True moves last_billed_at to its end.
        created: SQL for created_at.
        metadata: of the period.
    """
    end: datetime = world.one("select date_trunc('minute', now()) - interval '1 minute'")
    world.run(
        "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,"
        " hourly_rate, total_amount, status, created_at, metadata)"
        " select id, organization_id, %s - interval '1 hour', %s, 0.01, 0.01, %s, [created], %s"
        " from vps_instances where id = %s".replace("[created]", created),
        end,
        end,
        status,
        metadata,
        instance,
    )
    if moves:
        world.run("update vps_instances set last_billed_at = %s where id = %s", end, instance)


def instances(world: World) -> list[UUID]:
    return [row["id"] for row in world.rows("select id from vps_instances order by id")]


def takeover_ended(world: World) -> Term:
    """A leader whose takeover ended an hour ago."""
    leadership = world.lead()
    world.run("update billing_terms set minted_at = now() - interval '2 days'")
    world.run("update billing_leadership set bill_after = now() - interval '1 hour', interval_minutes = 60")
    return leadership


def test_one_foreign_period_is_a_warning_and_the_second_instance_stops_billing(
    owing: World, heartbeat: Heartbeat
) -> None:
    leadership = takeover_ended(owing)
    first, second, *_ = instances(owing)
    foreign_period(owing, first)
    (warning,) = looks(owing, leadership)
    assert not warning.halts
    assert "has billed 1 instance since" in warning.message
    assert "billing stops if that happens again" in warning.message
    foreign_period(owing, second)
    before = owing.dump("wallets", "payment_transactions", "vps_billing_cycles")
    result = owing.cycle().run(leadership)
    assert result.outcome is Outcome.STOPPED
    assert "has billed 2 instances since" in (result.error or "")
    assert "stop that program, then run `containerstacks-billing resume`" in (result.error or "")
    assert owing.dump("wallets", "payment_transactions", "vps_billing_cycles") == before
    owing.run("update billing_terms set minted_at = now() - interval '9 days'")
    owing.run("update billing_leadership set bill_after = null")
    heartbeat.start(leadership)
    row = owing.rows("select * from billing_daemon_status")[0]
    assert (row["status"], row["error_message"]) == ("error", result.error), "it beats, and says why"
    status = read_status(owing.conn)
    assert [notice.message for notice in status.notices] == [result.error]


def test_one_period_in_each_of_two_intervals_stops_billing(owing: World) -> None:
    leadership = takeover_ended(owing)
    instance = instances(owing)[0]
    owing.run("update billing_leadership set bill_after = now() - interval '3 hours'")
    foreign_period(owing, instance, created="now() - interval '65 minutes'")
    assert kinds(owing, leadership) == []
    owing.run("update vps_billing_cycles set billing_period_start = billing_period_start - interval '1 hour'")
    foreign_period(owing, instance)
    assert kinds(owing, leadership) == ["other_periods"]


def test_evidence_outlives_the_next_charge_and_a_new_takeover(owing: World) -> None:
    leadership = takeover_ended(owing)
    for instance in instances(owing)[:2]:
        foreign_period(owing, instance)
    assert kinds(owing, leadership) == ["other_periods"]
    owing.run("update vps_instances set last_billed_at = now()")
    with (ledger := owing.ledger()).connection, ledger.fenced(leadership.term):
        ledger.begin_takeover(300)
    assert kinds(owing, leadership) == ["other_periods"]


def test_resume_accepts_the_periods_up_to_now_and_new_ones_stop_billing_again(owing: World) -> None:
    leadership = takeover_ended(owing)
    first, second, third, fourth = instances(owing)
    for instance in (first, second):
        foreign_period(owing, instance)
    assert kinds(owing, leadership) == ["other_periods"]
    give(owing.conn, Wish("resume", "ada", "stopped the old daemon"))
    assert read_notices(owing.conn) == ()
    command = owing.rows("select * from billing_commands")[0]
    assert (command["command"], command["reason"]) == ("resume", "stopped the old daemon")
    assert command["given_by"].startswith("ada (role ")
    assert looks(owing, leadership) == []
    for instance in (third, fourth):
        foreign_period(owing, instance)
    assert kinds(owing, leadership) == ["other_periods"]


def test_leader_keeps_billing_with_the_setting_warn(owing: World) -> None:
    leadership = takeover_ended(owing)
    with (ledger := owing.ledger()).connection, ledger.fenced(leadership.term):
        ledger.begin_term(60, "warn")
    for instance in instances(owing)[:2]:
        foreign_period(owing, instance)
    (notice,) = looks(owing, leadership)
    assert not notice.halts
    assert "BILLING_OTHER_BILLERS=warn" in notice.message
    assert owing.cycle().run(leadership).outcome is Outcome.COMPLETED
    daemon(owing)
    assert kinds(owing, leadership) == ["other_daemon"], "a live daemon always stops billing"


def test_what_the_application_may_do_is_not_evidence(owing: World) -> None:
    """Debits of every kind, refunded rows, corrections by hand, imports, and the fallback's last run."""
    leadership = takeover_ended(owing)
    for description in ("VPS creation, 1 hour", "Deduction", "Refund", "Egress", "Hosting"):
        owing.run(
            "insert into payment_transactions (organization_id, amount, payment_method, payment_provider, status,"
            " description) select id, -1, 'wallet_debit', 'internal', 'completed', %s from organizations",
            description,
        )
    for instance in instances(owing):
        foreign_period(owing, instance, status="refunded")
        foreign_period(owing, instance, status="failed")
        foreign_period(owing, instance, created="now() - interval '2 hours'")  # before the takeover ended
        foreign_period(owing, instance, created="now() + interval '2 hours'")  # not by the database's clock
        owing.run("update vps_instances set last_billed_at = now() - interval '5.5 hours'")
        foreign_period(owing, instance, moves=False)  # a correction by hand, or an import
    assert looks(owing, leadership) == []
    owing.bill(None, leadership)
    assert looks(owing, leadership) == []


@pytest.mark.parametrize("marker", [MARKER, OLD_MARKER])
def test_leader_of_an_older_version_is_not_another_biller(owing: World, marker: str) -> None:
    leadership = takeover_ended(owing)
    for instance in instances(owing):
        foreign_period(owing, instance, metadata=f'{{"controller": "{marker}"}}')
    assert looks(owing, leadership) == []


def test_import_of_old_rows_of_an_indebted_instance_is_not_evidence(owing: World) -> None:
    """last_billed_at equals the end of the last old period, because billing has not moved since."""
    leadership = takeover_ended(owing)
    owing.run("update wallets set balance = 0")
    owing.run("update vps_instances set last_billed_at = date_trunc('minute', now()) - interval '3 hours'")
    owing.bill(None, leadership)
    for instance in instances(owing):
        owing.run(
            "insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start,"
            " billing_period_end, hourly_rate, total_amount, status)"
            " select id, organization_id, last_billed_at - interval '1 hour',"
            " last_billed_at, 0.01, 0.01, 'billed' from vps_instances where id = %s",
            instance,
        )
    assert looks(owing, leadership) == []


def test_many_foreign_periods_are_counted_up_to_a_hundred(world: World) -> None:
    leadership, plan = takeover_ended(world), world.plan()
    organization = world.organization()
    world.run(
        "insert into vps_instances (organization_id, plan_id, created_at) select %s, %s, now() - interval '9 hours'"
        " from generate_series(1, 150)",
        organization,
        str(plan),
    )
    for instance in instances(world):
        foreign_period(world, instance)
    (notice,) = looks(world, leadership)
    assert "at least 100 instances" in notice.message
    looks(world, leadership)
    assert world.one("select count(*) from billing_foreign_periods") == 100


# --- the takeover


def bill_after(world: World) -> datetime:
    moment: datetime = world.one("select bill_after from billing_leadership")
    return moment


def begin_takeover(world: World, leadership: Term, delay_seconds: float) -> None:
    with (ledger := world.ledger()).connection, ledger.fenced(leadership.term):
        assert ledger.begin_term(60).silent
        ledger.begin_takeover(delay_seconds)


def test_takeover_waits_until_the_fallback_has_billed_nothing_for_the_whole_delay(owing: World) -> None:
    leadership = owing.lead()
    begin_takeover(owing, leadership, 300)
    looks(owing, leadership)
    first, second, *_ = instances(owing)
    foreign_period(owing, first)
    looks(owing, leadership)
    newest: datetime = owing.one("select max(created_at) from vps_billing_cycles")
    assert (bill_after(owing) - newest).total_seconds() == 300
    assert owing.one("select waiting_for from billing_next_cycle()") in {"takeover", "leader"}
    # the delay has passed since the first beat, but the fallback has billed another instance a minute ago
    owing.run("update billing_leadership set bill_after = now() - interval '1 second'")
    owing.run("update vps_billing_cycles set created_at = now() - interval '6 minutes'")
    foreign_period(owing, second, created="now() - interval '1 minute'")
    successor = owing.lead("test-1")
    assert looks(owing, successor) == [], "the fallback's last run isn't evidence"
    assert 235 < (bill_after(owing) - owing.one("select now()")).total_seconds() < 241
    # it bills nothing more
    owing.run("update vps_billing_cycles set created_at = now() - interval '301 seconds'")
    owing.run("update billing_leadership set bill_after = now() - interval '1 second'")
    looks(owing, successor)
    assert bill_after(owing) < owing.one("select now()")
    assert owing.one("select takeover_delay_seconds from billing_leadership") is None
    foreign_period(owing, first)
    assert [notice.kind for notice in looks(owing, successor)] == ["other_periods"]


def test_second_takeover_does_not_shorten_a_wait(world: World) -> None:
    leadership = world.lead()
    begin_takeover(world, leadership, 300)
    with (ledger := world.ledger()).connection, ledger.fenced(leadership.term):
        ledger.begin_takeover(0)
    assert (bill_after(world) - world.one("select now()")).total_seconds() > 250
    assert world.one("select takeover_delay_seconds from billing_leadership") == 300


@pytest.mark.parametrize(("moment", "silent"), [("now() + interval '2 hours'", True), ("now()", False)])
def test_heartbeat_of_a_wrong_clock_does_not_spare_the_takeover_delay(
    world: World,
    moment: str,
    silent: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    daemon(world, moment, status="stopped")
    leadership = world.lead()
    with (ledger := world.ledger()).connection, ledger.fenced(leadership.term):
        begun = ledger.begin_term(60)
    assert (begun.silent, begun.after_other) == (silent, True)


def test_periods_of_a_daemon_that_stopped_before_the_term_are_not_evidence(owing: World) -> None:
    owing.lead()
    owing.run("update billing_terms set minted_at = now() - interval '2 days'")
    for instance in instances(owing):
        foreign_period(owing, instance)
    daemon(owing, status="stopped")
    leadership = owing.lead()
    with (ledger := owing.ledger()).connection, ledger.fenced(leadership.term):
        begun = ledger.begin_term(60)
        assert (begun.silent, begun.after_other) == (False, True)
        ledger.begin_takeover(0)
    assert looks(owing, leadership) == []


# --- the whole program


def test_controller_waits_for_a_live_daemon_and_says_who_it_is(
    owing: World, start: StartReplica, tmp_path: Path
) -> None:
    daemon(owing)
    replica = start(owing.url)
    halted = replica.wait_for("billing.halted", kind="other_daemon")
    assert OTHER in halted["reason"]
    assert owing.one("select count(*) from payment_transactions") == 0
    assert owing.one("select count(*) from billing_daemon_status") == 1, "it writes no heartbeat"
    assert owing.one("select waiting_for from billing_status") == "halted"
    shown = run_command("status", folder=tmp_path, DATABASE_URL=owing.url)
    assert f"DOWN: billing is halted: another billing daemon is alive: {OTHER}" in " ".join(shown.stdout.split())
    billed = run_command("bill", "--dry-run", folder=tmp_path, DATABASE_URL=owing.url)
    assert (billed.returncode, OTHER in billed.stderr) == (0, True)


def test_resume_command_lets_the_leader_continue(owing: World, start: StartReplica, tmp_path: Path) -> None:
    takeover_ended(owing)
    for instance in instances(owing)[:2]:
        foreign_period(owing, instance)
    owing.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at, metadata)"
        " values ('test-2', 'stopped', now(), '{\"term\": 1}')"
    )
    replica = start(owing.url)
    replica.wait_for("billing.halted", kind="other_periods")
    eventually(lambda: bool(owing.rows("select from billing_daemon_status where status = 'error'")), "it says so")
    resumed = run_command("resume", "--reason", "test", folder=tmp_path, DATABASE_URL=owing.url)
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert "accepted: another program has billed 2 instances" in resumed.stdout
    assert f"{replica.instance} bills again within seconds" in resumed.stdout
    replica.wait_for("cycle.completed", after=replica.wait_for("billing.continued"))
    again = run_command("resume", folder=tmp_path, DATABASE_URL=owing.url)
    assert "nothing to resume" in again.stdout


def test_name_of_the_user_can_be_missing(owing: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: (_ for _ in ()).throw(KeyError("uid not found")))
    assert Application(Settings(DATABASE_URL=owing.url)).operator(None).startswith("uid ")


def test_facts_do_not_depend_on_the_applications_tables(world: World) -> None:
    world.run("alter table vps_billing_cycles alter column total_amount type numeric(12, 4)")
    world.run("alter table vps_instances alter column last_billed_at type timestamptz(6)")
    assert uuid4() not in instances(world)
    assert looks(world, world.lead()) == []
