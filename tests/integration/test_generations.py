"""Only a program of the database's generation leads, writes heartbeats and charges, even beside an older version."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest

from controller import sql
from controller.billing.values import Outcome
from controller.demo.process import clean_environment
from controller.demo.sample import create_schema
from controller.election import Bounds, LockSessionError
from controller.generation import GENERATION, GenerationError
from controller.postgres import migrations
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.integration.world import World
from tests.model import HOUR, NOON
from tests.support.ledger_probe import LedgerProbe
from tests.support.processes import BUSY, StartReplica
from tests.support.servers import migrate_url
from tests.support.waiting import eventually

#: The last version of each earlier generation, by generation.
EARLIER: Final = {1: "22d817249456235c4bd83fa2f20042988895a3bd", 2: "f703827d8fe51ec96c465a03ff4de9bd418305da"}
ROOT: Final = Path(__file__).parents[2]
NEXT: Final = GENERATION + 1


@pytest.fixture(scope="session", params=[pytest.param(1, marks=pytest.mark.slow), 2], ids="generation {}".format)
def old_version(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an earlier version's code."""
    generation = request.param
    archive = subprocess.run(
        ["git", "archive", EARLIER[generation], "controller", "migrations"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode:
        pytest.skip(f"this clone does not contain the last version of generation {generation}")
    folder = tmp_path_factory.mktemp("old-version")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def raise_generation(world: World) -> None:
    """Raises the generation as a later migration would."""
    with world.conn.transaction():
        world.run(
            "update billing_leadership"
            " set generation = %s, needs_version = '9.0', term = term + 1, holder = 'migration'",
            NEXT,
        )


def test_mint_of_another_generation_is_refused_with_the_version_to_use(world: World) -> None:
    raise_generation(world)
    session = PostgresLockSession.open(world.database, LockName(), Bounds())
    with closing(session):
        for attempt in (session.mint, lambda: session.contend(0), session.ping):
            with pytest.raises(LockSessionError, match=r"generation 4.*use containerstacks-billing 9\.0 or newer"):
                attempt()
    assert world.one("select count(*) from billing_terms where generation is distinct from %s", GENERATION) == 0


def test_term_without_a_generation_cannot_be_recorded(world: World) -> None:
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match=r"use containerstacks-billing 0\.2\.0"):
        world.run("insert into billing_terms (term, holder, minted_at) values (99, 'x', now())")


def test_every_write_under_another_generation_is_refused(world: World) -> None:
    leadership = world.lead()
    world.run("update billing_leadership set generation = %s, needs_version = '9.0'", NEXT)
    with (ledger := world.ledger()).connection, pytest.raises(GenerationError), ledger.fenced(leadership.term):
        pass
    world.instance(world.organization(), world.plan(), NOON - 5 * HOUR)
    result = world.cycle(NOON).run(leadership)
    assert result.outcome is Outcome.SUPERSEDED
    assert result.error is not None
    assert "use containerstacks-billing 9.0 or newer" in result.error
    assert world.rows("select from billing_runs") == []


def test_cycle_ends_at_once_when_a_migration_raises_the_generation(scripted_world: World) -> None:
    leadership = scripted_world.lead()
    scripted_world.bill(NOON, leadership, batch_size=2)
    scripted_world.run("update vps_instances set last_billed_at = null, created_at = created_at - interval '1 hour'")
    batches = 0

    def may_start_batch() -> bool:
        nonlocal batches
        batches += 1
        if batches == 2:
            raise_generation(scripted_world)
        return True

    result = scripted_world.cycle(NOON + 3 * HOUR, batch_size=2, may_start_batch=may_start_batch).run(leadership)
    assert result.outcome is Outcome.SUPERSEDED
    assert batches == 2, "nothing is tried again"


@pytest.mark.parametrize("name", ["029_billing_generation", "050_billing_generation_three"])
def test_migration_mints_a_term_on_a_database_that_has_had_a_leader(empty_database: str, name: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        create_schema(conn)
    migrate_url(empty_database)
    raising = next(each for each in migrations.available() if each.name == name).text
    with World(empty_database) as world:
        assert world.term().term == 0
        old = world.lead()
        world.run("update billing_leadership set generation = 1")
        with world.conn.transaction():
            sql.execute(world.conn, raising)
        assert world.term().term == old.term + 1
        sql.execute(world.conn, raising)
        assert world.term().term == old.term + 1, "applied twice it mints once"
        assert world.cycle().run(old).outcome in {Outcome.DEPOSED, Outcome.SUPERSEDED}


def test_replica_of_another_generation_stays_unready_and_does_not_contend(world: World, start: StartReplica) -> None:
    replica = start(world.url)
    replica.wait_for("cycle.completed")
    raise_generation(world)
    ended = replica.wait_for("leader.deposed")
    assert f"generation {NEXT}" in ended["reason"]
    refused = replica.wait_for("session.failed", after=ended)
    assert "use containerstacks-billing 9.0 or newer" in refused["error"]
    term, beat = world.term().term, world.one("select max(heartbeat_at) from billing_daemon_status")
    eventually(lambda: no_elector_session(world), "the replica keeps no lock session")
    standby = start(world.url)
    standby.wait_for("session.failed")
    assert world.term().term == term
    assert world.one("select max(heartbeat_at) from billing_daemon_status") == beat


def no_elector_session(world: World) -> bool:
    return not world.rows("select from pg_locks where locktype = 'advisory' and granted")


def command(package: Path, url: str, *arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "controller", *arguments],
        env={**clean_environment({"DATABASE_URL": url}), "PYTHONPATH": str(package)},
        cwd=package,
        check=True,
        capture_output=True,
        timeout=60,
    )


def slow_down(conn: psycopg.Connection[Any]) -> None:
    """Makes a cycle last for seconds."""
    conn.execute(
        "create function slow() returns trigger language plpgsql as"
        " $$ begin perform pg_sleep(0.03); return new; end $$;"
        " create trigger slow before insert on vps_billing_cycles for each row execute function slow()"
    )


@pytest.mark.timeout(180)
def test_upgrade_in_mid_cycle_and_return_lose_and_double_no_hour(
    empty_database: str, old_version: Path, start: StartReplica
) -> None:
    url, old_code = empty_database, {"PYTHONPATH": str(old_version), **BUSY}
    with psycopg.connect(url, autocommit=True) as conn:
        create_schema(conn)
        command(old_version, url, "migrate")
        ledger = LedgerProbe(conn)
        ledger.add(organizations=60)
        slow_down(conn)
        old = start(url, **old_code)
        eventually(lambda: ledger.billed_instances > 0, "the old version charges")
        migrate_url(url)
        assert not ledger.all_billed, "the cycle was still running"
        conn.execute("drop trigger slow on vps_billing_cycles")
        new = start(url, **BUSY)
        new.wait_for("cycle.completed", within=60)
        ledger.judge()
        ledger.add(organizations=2)
        new.kill()  # the old version takes the lock, and is refused a term
        for returned in (old, start(url, **old_code)):
            refused = returned.wait_until(
                lambda line: f"generation {GENERATION}" in str(line.fields.get("error")), "the refusal"
            )
            assert "use containerstacks-billing 0.2.0 or newer" in refused["error"]
        assert not ledger.all_billed
        start(url, **BUSY).wait_for("cycle.completed")
        ledger.judge()
        (raised, *_) = ledger.rows(
            "select term, minted_at from billing_terms where holder like 'migration%%' order by term"
        )
        late = ledger.rows(
            "select from billing_batches where term < %s and written_at > %s", raised["term"], raised["minted_at"]
        )
        assert late == []


def test_term_records_its_leaders_pod_for_the_successor(world: World) -> None:
    pods = [{"namespace": "billing", "name": name, "uid": f"uid-{name}"} for name in ("a", "b", "a")]
    for pod in [*pods, None]:
        with closing(PostgresLockSession.open(world.database, LockName(), Bounds(), pod)) as session:
            term = session.mint()
    found = sql.rows(world.conn, "former_leader_pods", term=term, uid=None)
    assert found == [pods[2], pods[1]], "the newest first, each once"
    assert sql.rows(world.conn, "former_leader_pods", term=term, uid="uid-a") == [pods[1]]
