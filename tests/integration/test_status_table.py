"""`billing_daemon_status`, which the application reads, and the query of its health page."""

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from controller import sql
from controller.billing.heartbeat import Heartbeat
from tests.integration.world import Term, World
from tests.model import HOUR, NOON
from tests.support.waiting import eventually

#: The application's query.
HEALTH = "select * from billing_daemon_status order by heartbeat_at desc nulls last, updated_at desc limit 1"

MakeHeartbeat = Callable[..., Heartbeat]


@pytest.fixture
def make_heartbeat(world: World) -> Iterator[MakeHeartbeat]:
    """Makes heartbeats that are stopped after the test."""
    made: list[Heartbeat] = []

    def make(instance_id: str = "test-1", retention_days: int = 30) -> Heartbeat:
        made.append(
            Heartbeat(
                connect=world.database.connect,
                instance_id=instance_id,
                metadata={"version": "1", "os": "Linux"},
                interval_seconds=60,
                retention_days=retention_days,
            )
        )
        return made[-1]

    yield make
    for heartbeat in made:
        heartbeat.stop()
        heartbeat.run()


def status(world: World) -> dict[str, Any]:
    (row,) = world.rows(HEALTH)
    return row


def bill_five_cents(world: World) -> None:
    world.instance(world.organization("1.00"), world.plan("7.30"), NOON - 5 * HOUR)
    world.bill(NOON, world.term())


def test_start_soon_writes_the_first_heartbeat_on_the_heartbeats_thread(
    world: World, make_heartbeat: MakeHeartbeat
) -> None:
    heartbeat = make_heartbeat()
    heartbeat.start_soon(world.lead())
    assert world.rows(HEALTH) == []
    thread = threading.Thread(target=heartbeat.run)
    thread.start()
    try:
        eventually(lambda: bool(world.rows(HEALTH)), "the first heartbeat")
    finally:
        heartbeat.stop()
        thread.join()


def test_start_of_a_term_writes_the_first_heartbeat_before_any_cycle(
    world: World, make_heartbeat: MakeHeartbeat
) -> None:
    leadership = world.lead()
    before: datetime = world.one("select clock_timestamp()")
    make_heartbeat().start(leadership)
    row = status(world)
    assert (row["daemon_instance_id"], row["status"], row["last_run_at"]) == ("test-1", "running", None)
    assert row["heartbeat_at"] >= before
    assert row["metadata"] == {"version": "1", "os": "Linux", "term": leadership.term}
    assert row["started_at"] is not None


def test_heartbeat_carries_the_totals_of_the_last_run(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    heartbeat.start(world.lead())
    bill_five_cents(world)
    assert heartbeat.beat()
    row = status(world)
    assert (row["instances_billed"], row["total_amount"], row["total_hours"]) == (1, Decimal("0.05"), 5)
    assert (row["last_run_success"], row["last_run_at"], row["error_message"]) == (True, NOON, None)


def test_stop_keeps_the_totals_and_does_not_refresh_the_heartbeat(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    heartbeat.start(world.lead())
    bill_five_cents(world)
    heartbeat.beat()
    world.run("update billing_daemon_status set heartbeat_at = heartbeat_at - interval '50 seconds'")
    before = status(world)
    heartbeat.mark_stopped()
    after = status(world)
    assert after["status"] == "stopped"
    assert after["heartbeat_at"] == before["heartbeat_at"]
    kept = ("last_run_at", "last_run_success", "instances_billed", "total_amount", "total_hours", "started_at")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    assert heartbeat.beat() is False
    assert status(world)["heartbeat_at"] == before["heartbeat_at"]


def test_run_that_ended_during_the_drain_is_recorded_without_a_heartbeat(
    world: World, make_heartbeat: MakeHeartbeat
) -> None:
    heartbeat = make_heartbeat()
    heartbeat.start(world.lead())
    bill_five_cents(world)
    before = status(world)["heartbeat_at"]
    heartbeat.mark_stopped()
    row = status(world)
    assert (row["status"], row["total_amount"], row["heartbeat_at"]) == ("stopped", Decimal("0.05"), before)


def test_earlier_term_of_the_same_replica_writes_nothing(world: World, make_heartbeat: MakeHeartbeat) -> None:
    other, earlier, newest = make_heartbeat("test-2"), make_heartbeat(), make_heartbeat()
    other.start(world.lead(holder="test-2"))
    old = world.lead()
    earlier.start(old)
    newest.start(world.lead())
    world.run("update billing_daemon_status set status = 'running'")
    before = world.rows("select * from billing_daemon_status order by id")
    assert earlier.beat() is False
    earlier.start(old)
    earlier.mark_stopped()
    assert world.rows("select * from billing_daemon_status order by id") == before


def test_failed_run_is_an_error_with_its_reason_until_one_completes(
    world: World, make_heartbeat: MakeHeartbeat
) -> None:
    heartbeat = make_heartbeat()
    leadership = world.lead()
    heartbeat.start(leadership)
    world.run(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome, error)"
        " values (%s, 'x', %s, now(), 'failed', 'disk full')",
        leadership.term,
        NOON - HOUR,
    )
    heartbeat.beat()
    row = status(world)
    assert (row["status"], row["error_message"], row["last_run_success"]) == ("error", "disk full", False)
    bill_five_cents(world)
    heartbeat.beat()
    row = status(world)
    assert (row["status"], row["error_message"], row["last_run_success"]) == ("running", None, True)


def test_running_cycle_does_not_hide_the_totals_of_the_last_one(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    leadership = world.lead()
    bill_five_cents(world)
    world.run("insert into billing_runs (term, holder, started_at) values (%s, 'x', now())", leadership.term)
    heartbeat.start(leadership)
    assert status(world)["total_amount"] == Decimal("0.05")


def test_successor_keeps_the_totals_and_closes_the_rows_of_others(world: World, make_heartbeat: MakeHeartbeat) -> None:
    make_heartbeat("test-1").start(world.lead())
    bill_five_cents(world)
    make_heartbeat("test-2").start(world.lead("test-2"))
    row = status(world)
    assert (row["daemon_instance_id"], row["total_amount"], row["status"]) == ("test-2", Decimal("0.05"), "running")
    other = world.rows("select * from billing_daemon_status where daemon_instance_id = 'test-1'")[0]
    assert other["status"] == "stopped"
    assert other["heartbeat_at"] < row["heartbeat_at"]


def test_rows_of_former_replicas_are_deleted_after_their_retention(world: World, make_heartbeat: MakeHeartbeat) -> None:
    world.run(
        "insert into billing_daemon_status"
        " (daemon_instance_id, status, heartbeat_at, updated_at, created_at, metadata)"
        " select name, 'stopped', now() - age, now() - interval '8 days', now(), '{\"term\": 1}' from (values"
        " ('old', interval '8 days'), ('young', interval '6 days'), ('never', null)) as replica (name, age)"
    )
    make_heartbeat("test-1", retention_days=7).start(world.lead())
    names = {row["daemon_instance_id"] for row in world.rows("select daemon_instance_id from billing_daemon_status")}
    assert names == {"young", "test-1"}


def test_totals_of_a_large_backlog_fit(world: World, make_heartbeat: MakeHeartbeat) -> None:
    leadership = world.lead()
    world.run(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome, instances, hours, amount)"
        " values (%s, 'x', now(), now(), 'completed', 2000000000, 99999999999, 123456789012.34)",
        leadership.term,
    )
    make_heartbeat().start(leadership)
    assert status(world)["total_amount"] == Decimal("123456789012.34")


def test_replica_that_does_not_lead_writes_no_heartbeat(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    assert heartbeat.beat() is False
    heartbeat.start(Term(world.lead().term, leads=lambda: False))
    assert world.rows("select from billing_daemon_status") == []


def test_heartbeat_opens_a_new_session_after_its_own_was_ended(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    heartbeat.start(world.lead())
    world.run(
        "select pg_terminate_backend(pid, 2000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )
    heartbeat.beat()
    assert heartbeat.beat()
    assert world.one("select now()") - status(world)["heartbeat_at"] < timedelta(seconds=10)


def test_heartbeat_does_not_wait_for_a_batch_or_a_mint(world: World, make_heartbeat: MakeHeartbeat) -> None:
    heartbeat = make_heartbeat()
    leadership = world.lead()
    heartbeat.start(leadership)
    ledger = world.ledger()
    with ledger.connection, ledger.fenced(leadership.term):
        assert heartbeat.beat()
    with World(world.url) as other, other.conn.transaction():
        sql.run(other.conn, "close_leadership")
        assert heartbeat.beat()


def test_replica_writes_nothing_under_a_term_that_it_led_before(world: World, make_heartbeat: MakeHeartbeat) -> None:
    """It was deposed and elected again: a late write of its first term must not count as one of the second."""
    world.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
        " values ('test-1', 'running', now() - interval '2 hours'), ('test-2', 'running', now() - interval '2 hours')"
    )
    heartbeat, before = make_heartbeat(), world.dump("billing_daemon_status")
    old = world.lead()
    world.lead()
    heartbeat.start(old)
    assert heartbeat.beat() is False
    heartbeat.mark_stopped()
    assert world.dump("billing_daemon_status") == before


def test_replica_writes_nothing_under_its_term_in_the_name_of_another(
    world: World, make_heartbeat: MakeHeartbeat
) -> None:
    """A promoted server minted the same term again, for another holder."""
    ours = world.lead()
    world.run("update billing_leadership set holder = 'test-2'")
    heartbeat = make_heartbeat()
    heartbeat.start(ours)
    assert heartbeat.beat() is False
    assert world.rows("select from billing_daemon_status") == []
