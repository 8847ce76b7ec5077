"""A leader writes heartbeats only while it bills, and bills only while it writes them.

So the application resumes its own billing whenever the controller doesn't bill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest

from controller.app import storable
from controller.billing.errors import HeartbeatError
from controller.billing.heartbeat import Heartbeat
from controller.billing.values import CycleResult, Outcome
from controller.postgres.connections import Database
from tests.integration.world import MONEY, Term, World
from tests.model import HOUR, NOON
from tests.support.processes import StartReplica
from tests.support.waiting import eventually

#: Tables whose insert or update right a cycle needs.
RIGHTS: Final = (
    "insert on payment_transactions",
    "insert on vps_billing_cycles",
    "update on wallets",
    "update on vps_instances",
    "insert on billing_batches",
)


@pytest.fixture
def beat(world: World) -> Iterator[Callable[[Term], bool]]:
    """Writes a heartbeat as the leader's thread does; returns True if it was written."""
    heartbeat = Heartbeat(
        connect=world.database.connect, instance_id="test-1", metadata={}, interval_seconds=60, retention_days=30
    )

    def write(leadership: Term) -> bool:
        heartbeat.start(leadership)
        return heartbeat.beat()

    yield write
    heartbeat.stop()
    heartbeat.run()


def success(world: World, minutes_ago: float, outcome: str = "completed") -> None:
    """Records a run, and that the first term began two days ago."""
    world.run("update billing_terms set minted_at = now() - interval '2 days' where term = 1")
    world.run(
        "insert into billing_runs (term, holder, started_at, finished_at, outcome)"
        " values (1, 'test-1', now() - %s * interval '1 minute', now(), %s)",
        minutes_ago,
        outcome,
    )


def heartbeat_of(world: World, minutes_ago: float, instance: str = "test-1") -> None:
    """Writes a replica's heartbeat."""
    world.run(
        "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at, metadata)"
        """ values (%s, 'running', now() - %s * interval '1 minute', '{"term": 1}')"""
        " on conflict (daemon_instance_id) do update set heartbeat_at = excluded.heartbeat_at",
        instance,
        minutes_ago,
    )


def heartbeat_minutes(world: World) -> float:
    """The age of the newest heartbeat, as the application sees it."""
    return float(
        world.one("select extract(epoch from clock_timestamp() - max(heartbeat_at)) / 60 from billing_daemon_status")
    )


# --- no heartbeat without billing


@pytest.mark.parametrize(("minutes", "beats"), [(149, True), (151, False)])
def test_leader_beats_until_the_next_cycle_is_90_minutes_overdue(
    world: World, beat: Callable[[Term], bool], *, minutes: int, beats: bool
) -> None:
    leadership = world.lead()
    success(world, minutes)
    assert beat(leadership) is beats


def test_interval_of_the_leader_counts(world: World, beat: Callable[[Term], bool]) -> None:
    leadership = world.lead()
    success(world, 200)
    assert not beat(leadership)
    world.run("update billing_leadership set interval_minutes = 120")
    assert beat(leadership)


@pytest.mark.parametrize("outcome", ["failed", "stopped", "abandoned"])
def test_run_that_did_not_bill_prolongs_no_heartbeat(world: World, beat: Callable[[Term], bool], outcome: str) -> None:
    leadership = world.lead()
    success(world, 300)
    success(world, 5, outcome)
    assert not beat(leadership)
    success(world, 5)
    assert beat(leadership)


def test_collection_prolongs_no_heartbeat_and_is_not_the_last_cycle(world: World, beat: Callable[[Term], bool]) -> None:
    leadership = world.lead()
    success(world, 300)
    success(world, 5)
    world.run("update billing_runs set kind = 'collection' where id = 2")
    assert not beat(leadership)
    (status,) = world.rows("select database_time - last_completed_at as age, last_run from billing_status")
    assert (status["last_run"]["id"], status["age"] > 4 * HOUR) == (1, True)


def test_cycle_with_nothing_due_prolongs_the_heartbeat(world: World, beat: Callable[[Term], bool]) -> None:
    leadership = world.lead()
    success(world, 300)
    assert not beat(leadership)
    heartbeat_of(world, 5)
    world.bill(None, leadership)
    assert beat(leadership)


def test_end_of_a_takeover_wait_and_the_first_term_allow_90_minutes(world: World, beat: Callable[[Term], bool]) -> None:
    leadership = world.lead()
    assert beat(leadership), "the first term began a moment ago"
    success(world, 300)
    for minutes, beats in ((91, False), (89, True)):
        world.run("update billing_leadership set bill_after = now() - %s * interval '1 minute'", minutes)
        assert beat(leadership) is beats


@pytest.mark.parametrize("right", RIGHTS)
def test_cycles_that_fail_let_the_heartbeat_grow_old(owing: World, right: str) -> None:
    """The application's fallback starts 90 minutes after the last heartbeat."""
    with restricted(owing, right) as poor:
        leadership = poor.lead()
        success(owing, 300)
        heartbeat_of(owing, 30)
        for _ in range(3):
            result = poor.cycle().run(leadership)
            assert result.outcome is Outcome.FAILED, result
        assert heartbeat_minutes(owing) > 29.9


# --- no billing without a heartbeat


def refused(world: World, result: CycleResult, text: str) -> None:
    assert result.outcome is Outcome.FAILED
    assert text in (result.error or ""), result.error
    assert world.one("select count(*) from payment_transactions") == 0
    assert world.one("select outcome from billing_runs order by id desc limit 1") == "failed"


def test_cycle_begins_with_a_heartbeat(owing: World) -> None:
    heartbeat_of(owing, 50)
    owing.bill()
    assert heartbeat_minutes(owing) < 1


def test_revoked_right_on_the_status_table_stops_billing(owing: World) -> None:
    with restricted(owing, "insert, update on billing_daemon_status") as poor:
        refused(owing, poor.cycle().run(poor.lead()), "billing_daemon_status")


def test_locked_status_row_stops_billing_within_the_lock_timeout(owing: World) -> None:
    heartbeat_of(owing, 70)
    with psycopg.connect(owing.url) as other:
        other.execute("select from billing_daemon_status for update")
        refused(owing, owing.cycle().run(owing.lead()), "the heartbeat can't be written: canceling statement due to")
    owing.bill()


def test_dropped_heartbeat_stops_billing(owing: World) -> None:
    owing.run("create function nothing() returns trigger language plpgsql as $$ begin return null; end $$")
    owing.run("create trigger nothing before insert on billing_daemon_status for each row execute function nothing()")
    refused(owing, owing.cycle().run(owing.lead()), "look for triggers on billing_daemon_status")


def test_batch_needs_a_heartbeat_of_this_leader_in_the_last_60_minutes(owing: World) -> None:
    leadership = owing.lead()
    with (ledger := owing.ledger()).connection:
        for minutes, instance, allowed in ((59, "test-1", True), (61, "test-1", False), (1, "test-2", False)):
            owing.run("delete from billing_daemon_status")
            heartbeat_of(owing, minutes, instance)
            if allowed:
                with ledger.fenced(leadership.term, needs_heartbeat=True):
                    pass
                continue
            with pytest.raises(HeartbeatError), ledger.fenced(leadership.term, needs_heartbeat=True):
                pass


def test_heartbeat_that_grows_old_during_a_cycle_ends_it(owing: World) -> None:
    batches = 0

    def may_start_batch() -> bool:
        nonlocal batches
        batches += 1
        if batches == 3:
            heartbeat_of(owing, 61)
        return True

    result = owing.cycle(batch_size=1, may_start_batch=may_start_batch).run(owing.lead())
    assert result.outcome is Outcome.FAILED
    assert "has written no heartbeat for 60 minutes" in (result.error or "")
    assert 0 < result.totals.instances < 4


def test_dry_run_needs_and_leaves_no_heartbeat(owing: World) -> None:
    result = owing.cycle().run(owing.lead(), dry=True)
    assert (result.outcome, result.totals.instances) == (Outcome.COMPLETED, 4)
    assert owing.rows("select from billing_daemon_status") == []


def test_overdue_leader_bills_on_a_young_heartbeat_without_refreshing_it_first(owing: World) -> None:
    leadership = owing.lead()
    success(owing, 300)
    heartbeat_of(owing, 61, "test-2")
    refused(owing, owing.cycle().run(leadership), "more than 90 minutes overdue")
    heartbeat_of(owing, 40, "test-2")
    assert owing.cycle().run(leadership).outcome is Outcome.COMPLETED
    assert heartbeat_minutes(owing) > 39.9


def test_name_that_is_not_utf_8_can_be_stored(world: World) -> None:
    name = storable(b"pod-\xff".decode("utf-8", "surrogateescape"))
    assert world.one("select %s::jsonb ->> 'pod'", f'{{"pod": "{name}"}}') == name


# --- coming back


def test_proof_leaves_no_trace(owing: World) -> None:
    leadership = owing.lead()
    before = owing.dump()
    assert owing.cycle().prove(leadership) is None
    assert owing.dump() == before


def test_proof_succeeds_if_nothing_is_due_or_only_debts_or_suspended_organizations(world: World) -> None:
    leadership = world.lead()
    assert world.cycle().prove(leadership) is None
    world.instance(world.organization("0.00"), world.plan("7.30"), NOON - 5 * HOUR)
    assert world.cycle().prove(leadership) is None, "short of balance"
    suspended: UUID = world.organization(None)
    world.instance(suspended, world.plan("7.30"), NOON - 5 * HOUR)
    world.run("delete from vps_instances where organization_id <> %s", suspended)
    assert world.cycle().prove(leadership) == "wallet_missing"
    world.run("insert into billing_suspensions (organization_id, reason, detail) values (%s, 'x', 'x')", suspended)
    assert world.cycle().prove(leadership) is None


@pytest.mark.parametrize("right", RIGHTS)
def test_leader_without_a_right_does_not_come_back(owing: World, start: StartReplica, right: str) -> None:
    heartbeat_of(owing, 100, "gone-1")
    before = owing.dump(*MONEY)
    with restricted(owing, right) as poor:
        replica = start(poor.url)
        unproven = replica.wait_until(
            lambda line: line.event in {"billing.unproven", "schedule.failed", "session.failed"}, "that it can't bill"
        )
        assert right.rsplit(maxsplit=1)[-1] in str(unproven["error"])
        assert heartbeat_minutes(owing) >= 100
        assert owing.dump(*MONEY) == before


def test_leader_that_returns_proves_it_can_bill_then_beats_then_waits(owing: World, start: StartReplica) -> None:
    heartbeat_of(owing, 100, "gone-1")
    replica = start(owing.url, BILLING_TAKEOVER_DELAY_SECONDS="3600")
    replica.wait_for("takeover.begun")
    eventually(lambda: heartbeat_minutes(owing) < 1, "the leader beats")
    assert owing.one("select count(*) from payment_transactions") == 0
    assert owing.one("select waiting_for from billing_status") == "takeover"


def test_leader_that_could_not_bill_tries_again_when_elected_again(owing: World, start: StartReplica) -> None:
    heartbeat_of(owing, 100, "gone-1")
    owing.run(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'no payments today'; end $$"
    )
    owing.run("create trigger refuse before insert on payment_transactions for each row execute function refuse()")
    replica = start(owing.url)
    unproven = replica.wait_for("billing.unproven")
    assert "no payments today" in unproven["error"]
    assert heartbeat_minutes(owing) >= 100
    owing.run("drop trigger refuse on payment_transactions")
    owing.run("select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'billing elector%%'")
    replica.wait_for("cycle.completed", after=unproven)
    assert heartbeat_minutes(owing) < 1
    assert owing.one("select count(*) from payment_transactions") == 4


def restricted(world: World, right: str) -> World:
    """The same database, as a role that lacks a right."""
    role = f"poor_{world.one('select current_database()')}"
    world.run(f"create role {role} login")
    world.run(f"grant all on all tables in schema public to {role}")
    world.run(f"grant all on all sequences in schema public to {role}")
    world.run(f"revoke {right} from {role}")
    return Restricted(world.url, role)


class Restricted(World):
    """A controller that bills as another role, which is dropped at the end."""

    def __init__(self, url: str, role: str) -> None:
        super().__init__(url)
        self._role = role
        self._owner = psycopg.connect(url, autocommit=True)
        self.url = as_role(url, role)
        self.database = Database(lambda: self.url, "DATABASE_URL", "test-1")

    def __exit__(self, *_error: object) -> None:
        self._owner.execute(
            b"select pg_terminate_backend(pid, 5000) from pg_stat_activity where usename = %s", [self._role]
        )
        self._owner.execute(f"drop owned by {self._role}; drop role {self._role}".encode())
        self._owner.close()
        super().__exit__(*_error)


def as_role(url: str, role: str) -> str:
    """The URL with another user."""
    separator: Any = "&" if "?" in url else "?"
    return f"{url}{separator}user={quote(role)}"
