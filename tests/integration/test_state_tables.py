"""A state table that was emptied or doubled is named with a remedy that works, and so is a lock without a term."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from controller.app import Application
from controller.billing.guard import Guard
from controller.billing.status import read_status
from controller.billing.values import Outcome
from controller.election import Bounds, LockSessionError
from controller.generation import GENERATION
from controller.lifecycle.stop import StopToken
from controller.postgres import migrations, state_tables
from controller.postgres.connections import GUARD, MIGRATION
from controller.postgres.lock_session import LockName, PostgresLockSession
from controller.postgres.state_tables import StateTableError
from controller.settings import load
from tests.integration.world import World
from tests.model import HOUR, NOON
from tests.support.waiting import eventually

DOUBLED = "alter table {0} drop constraint {0}_pkey; insert into {0} select * from {0}"
UPSETS = {
    "billing_leadership": ["truncate billing_leadership", DOUBLED.format("billing_leadership")],
    "billing_guard": ["delete from billing_guard", DOUBLED.format("billing_guard")],
    "billing_price_check": [DOUBLED.format("billing_price_check")],
}


@pytest.fixture
def billed(world: World) -> World:
    """A database in its third term, after one cycle."""
    world.instance(world.organization(), world.plan("7.30"), NOON - 5 * HOUR)
    world.lead()
    world.lead("test-9")
    world.bill(NOON, world.lead())
    return world


@pytest.fixture
def session(world: World) -> Iterator[PostgresLockSession]:
    opened = PostgresLockSession.open(world.database, LockName("test"), Bounds())
    yield opened
    opened.close()


def migrate(world: World) -> list[str]:
    with world.database.connect(MIGRATION) as connection:
        applied = migrations.migrate(connection)
        return applied + state_tables.repair(connection, generation=GENERATION, version="0.2.0")


def test_page_names_a_doubled_table(billed: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", billed.url)
    application = Application(load(None))
    assert application.web_reader().public_facts().status.term == 3
    billed.run(UPSETS["billing_guard"][1])
    with pytest.raises(StateTableError, match=r"^billing_guard has 2 rows"):
        application.web_reader().public_facts()


@pytest.mark.parametrize(("table", "upset"), [(name, each) for name, all_ in UPSETS.items() for each in all_])
def test_upset_table_is_named_and_migrate_repairs_it(billed: World, table: str, upset: str) -> None:
    before = billed.rows("select term, holder, elected_at, generation from billing_leadership")
    billed.run(upset)
    with (
        billed.database.connect() as connection,
        pytest.raises(StateTableError, match=rf"^{table} has [02] rows instead of one; run `containerstacks"),
    ):
        migrations.check(connection)
    assert migrate(billed) == [table]
    assert migrate(billed) == []
    assert billed.rows("select term, holder, elected_at, generation from billing_leadership") == before
    with pytest.raises(psycopg.errors.UniqueViolation):
        billed.run(f"insert into {table} select * from {table}")  # noqa: S608 - ours
    leadership = billed.lead()
    assert leadership.term == 4
    billed.bill(NOON + HOUR, leadership)
    Guard(lambda: billed.ledger(GUARD), StopToken()).check(leadership)
    assert billed.audit().clean


def test_term_is_never_minted_twice_although_its_history_is_gone(billed: World) -> None:
    billed.run("truncate billing_leadership, billing_terms, billing_runs, billing_batches")
    assert migrate(billed) == ["billing_leadership"]
    assert billed.lead().term == 4


def test_emptied_list_of_migrations_is_restored(billed: World) -> None:
    billed.run("truncate billing_schema_migrations")
    assert len(migrate(billed)) == len(migrations.available())
    assert billed.lead().term == 4


def test_leader_whose_term_was_removed_says_so(billed: World, session: PostgresLockSession) -> None:
    assert session.contend(0).taken
    leadership = billed.term()
    billed.run("truncate billing_leadership")
    with pytest.raises(LockSessionError, match="which repairs it"):
        session.ping()
    result = billed.cycle().run(leadership)
    assert result.outcome is Outcome.FAILED
    assert "which repairs it" in str(result.error)


@pytest.mark.parametrize("name", ["psql", "", "billing elector test-1"])
def test_session_that_holds_the_lock_without_a_term_is_named(
    billed: World, session: PostgresLockSession, name: str
) -> None:
    assert session.contend(0).taken
    assert session.mint() == 4
    assert status_of(billed) == ("test-1", None)
    session.resign()
    with psycopg.connect(billed.url, autocommit=True, application_name=name) as stranger:
        stranger.execute("select pg_advisory_lock(%s)", [LockName("test").key])
        described = f"{name or 'a session without a name'} (pid {stranger.info.backend_pid}, role postgres)"
        assert status_of(billed) == (None, described)
        assert session.contend(0).without_term == described
    eventually(lambda: session.contend(0).taken, "the stranger has gone")


def status_of(world: World) -> tuple[str | None, str | None]:
    with world.database.connect() as connection:
        status = read_status(connection)
    return status.leader, status.lock_held_without_term
