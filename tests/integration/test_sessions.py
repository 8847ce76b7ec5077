"""No foreign setting changes what a session does, and no setting of ours stays on a shared backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from controller import sql
from controller.app import Application
from controller.billing.values import Outcome
from controller.election import Bounds
from controller.foreground import bill
from controller.lifecycle.signals import Signals
from controller.postgres.connections import (
    FOREGROUND,
    MIGRATION,
    STATED,
    WORKER,
    Database,
    PoolerError,
    SessionSettings,
    lock_session_settings,
)
from controller.settings import load
from tests.faults.pooler import PROGRAM, Pooler
from tests.integration.world import World
from tests.model import HOUR, NOON
from tests.support.servers import Server
from tests.support.waiting import through

#: Values that break a session which relies on the defaults.
HOSTILE: Final = {
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Tokyo",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "row_security": "off",
    "exit_on_error": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "400ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "20ms",
    "idle_session_timeout": "5s",
    "transaction_timeout": "400ms",
    "jit": "on",
    "jit_above_cost": "0",
    "plan_cache_mode": "force_custom_plan",
    "join_collapse_limit": "1",
    "geqo_threshold": "2",
    "enable_indexscan": "off",
    "enable_nestloop": "off",
    "enable_hashjoin": "off",
    "work_mem": "64kB",
}


class Company:
    """A database to bill in, and the result that billing it must give."""

    def __init__(self, world: World) -> None:
        self.world = world
        plan = world.plan("7.30")
        self.organization: UUID = world.organization("1000.00")
        world.instance(self.organization, plan, NOON - 5 * HOUR, label="naïve ☃ vps")
        world.instance(world.organization("0.02"), plan, NOON - 5 * HOUR)
        self.supported = {name for name in HOSTILE if world.rows("select from pg_settings where name = %s", name)}

    @property
    def hostile(self) -> dict[str, str]:
        return {name: value for name, value in HOSTILE.items() if name in self.supported}

    def use_every_command(self, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
        """Runs each command as a person would, and checks its result."""
        for name, value in {
            "BILLING_CONTROL_SOCKET": "none",
            "BILLING_HTTP_ADDRESS": "none",
            "BILLING_PAGE_ADDRESS": "none",
            **environment,
        }.items():
            monkeypatch.setenv(name, value)
        application = Application(load(None))
        assert application.migrate(lambda _line: None) == []
        signals = Signals()
        try:
            for dry in (True, False):
                result = bill(
                    application, signals, dry=dry, on_planned=lambda _number: None, on_result=lambda _result: None
                )
                assert (result.outcome, result.totals.failures, result.totals.debts) == (Outcome.COMPLETED, 0, 1)
        finally:
            signals.restore()
            signals._reader.close()
            signals._writer.close()
        assert application.audit().clean
        status = application.status()
        assert status.heartbeat_age_seconds is not None
        assert 0 <= status.heartbeat_age_seconds < 60
        assert (status.debts, status.failures) == (1, 0)
        assert status.database_time.utcoffset() == datetime.now(UTC).utcoffset()
        (run,) = application.history(5)
        assert run["started_at"].utcoffset() == datetime.now(UTC).utcoffset()
        assert self.world.balance(self.organization) < Decimal("1000.00")


@pytest.fixture
def company(world: World) -> Company:
    return Company(world)


@pytest.fixture
def role(world: World) -> Iterator[str]:
    """A role that owns the database's tables."""
    name = "hostile_" + world.conn.info.dbname
    world.run(f"create role {name} login superuser")
    yield name
    world.run(f"drop owned by {name}")
    world.run(f"drop role {name}")


@pytest.mark.parametrize("source", ["role", "database", "environment"])
def test_no_setting_of_others_changes_what_a_command_does(
    company: Company, role: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, url = company.world, company.world.url
    if source == "environment":
        monkeypatch.setenv("PGOPTIONS", " ".join(f"-c{name}={value}" for name, value in company.hostile.items()))
        for name, value in {"PGDATESTYLE": "German", "PGTZ": "Asia/Tokyo", "PGCLIENTENCODING": "LATIN1"}.items():
            monkeypatch.setenv(name, value)
    else:
        target = f"role {role}" if source == "role" else f"database {world.conn.info.dbname}"
        for name, value in company.hostile.items():
            world.run(f"alter {target} set {name} = '{value}'")
        url = make_conninfo(url, user=role)
    company.use_every_command(monkeypatch, DATABASE_URL=url)


@pytest.mark.parametrize("kind", [WORKER, MIGRATION, lock_session_settings(Bounds())], ids=lambda kind: kind.purpose)
def test_session_of_each_kind_has_the_same_settings_in_a_hostile_database(
    company: Company, kind: SessionSettings
) -> None:
    world = company.world
    stated = [name for name, value in {**STATED, **kind.server}.items() if value is not None]

    def in_effect() -> list[dict[str, Any]]:
        query = "select name, setting from pg_settings where name = any (%(stated)s) order by name"
        with world.database.connect(kind) as connection:
            return sql.execute(connection, query, {"stated": stated})

    expected = in_effect()
    for name, value in company.hostile.items():
        world.run(f"alter database {world.conn.info.dbname} set {name} = '{value}'")
    assert in_effect() == expected


def test_session_settings_of_a_command_end_with_its_transaction(world: World) -> None:
    with world.database.connect(WORKER) as connection:
        before = connection.execute(
            "select name, setting from pg_settings where source not in ('default', 'client')"
        ).fetchall()
        with suppress(psycopg.errors.DivisionByZero):
            sql.execute(connection, "select 1 / 0")
        assert sql.execute(connection, "show enable_seqscan") == [{"enable_seqscan": "off"}]
        after = connection.execute(
            "select name, setting from pg_settings where source not in ('default', 'client')"
        ).fetchall()
    assert after == before


def test_options_of_the_url_are_kept(world: World) -> None:
    url = make_conninfo(world.url, options="-csearch_path=elsewhere")
    elsewhere = World(url)
    with elsewhere, elsewhere.database.connect(FOREGROUND) as connection:
        assert sql.execute(connection, "show search_path") == [{"search_path": "elsewhere, pg_temp"}]


@pytest.mark.skipif(PROGRAM is None, reason="no PgBouncer here: apt-get install pgbouncer")
class TestBehindAPoolerInTransactionMode:
    """The pool has one backend, so every session of ours shares it with the application."""

    @pytest.fixture
    def pooled(self, server: Server, world: World) -> Iterator[str]:
        with Pooler(server, "transaction", backends=1) as pooler:
            yield through(world.url, pooler.port)

    def test_neighbour_and_commands_do_not_see_each_others_settings(
        self, company: Company, pooled: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as neighbour:
            neighbour.execute("create temporary table pg_temp.wallets (id int)")
            for name, value in company.hostile.items():
                neighbour.execute(f"set {name} = '{value}'".encode())
            neighbour.execute("set search_path = nowhere")
            backend, before = _backend(neighbour)
            assert "enable_nestloop" in {name for name, _value in before}
            company.use_every_command(monkeypatch, DATABASE_URL=pooled, DATABASE_DIRECT_URL=company.world.url)
            assert _backend(neighbour) == (backend, before)

    def test_refused_command_leaves_nothing(
        self, company: Company, pooled: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as neighbour:
            before = _backend(neighbour)
            monkeypatch.setenv("DATABASE_URL", pooled)
            application = Application(load(None))
            with pytest.raises(PoolerError, match=r"^DATABASE_URL points to a pooler in transaction mode"):
                application.open_lock_session()
            with pytest.raises(PoolerError, match="DATABASE_DIRECT_URL"):
                application.migrate(lambda _line: None)
            assert _backend(neighbour) == before
            assert company.world.one("select count(*) from pg_locks where locktype = 'advisory'") == 0

    def test_failed_cancelled_or_abandoned_use_leaves_nothing(self, pooled: str) -> None:
        database = Database(lambda: pooled, "DATABASE_URL", "test-1")
        with psycopg.connect(pooled, autocommit=True, prepare_threshold=None) as neighbour:
            _pid, before = _backend(neighbour)
            connection = database.connect(WORKER)
            with pytest.raises(psycopg.errors.DivisionByZero):
                sql.execute(connection, "select 1 / 0")
            assert _backend(neighbour)[1] == before
            cancelled = sql.transaction(connection, settings={"statement_timeout": "20ms"})
            with pytest.raises(psycopg.errors.QueryCanceled), cancelled:
                sql.execute(connection, "select pg_sleep(20)")
            assert _backend(neighbour)[1] == before
            transaction = sql.transaction(connection)
            transaction.__enter__()
            connection.pgconn.finish()  # as if the process had been killed
            assert _backend(neighbour)[1] == before


def test_session_survives_a_transaction_that_could_not_begin(world: World) -> None:
    with world.database.connect(WORKER) as connection:
        connection.local_settings = {**STATED, "work_mem": "no amount"}
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            sql.execute(connection, "select 1")
        connection.local_settings = STATED
        assert sql.execute(connection, "select 1 as one") == [{"one": 1}]


def _backend(neighbour: psycopg.Connection[Any]) -> tuple[int, list[tuple[str, str]]]:
    """The pool's backend, and every setting on it that is not a default."""
    (pid,) = neighbour.execute("select pg_backend_pid()").fetchone() or (0,)
    query = "select name, setting from pg_settings where source = 'session' and name <> 'application_name' order by 1"
    return pid, neighbour.execute(query).fetchall()


def test_hostile_settings_are_all_stated() -> None:
    """jit_above_cost and geqo_threshold have no effect once jit and geqo are stated."""
    assert HOSTILE.keys() - {name.lower() for name in STATED} == {"jit_above_cost", "geqo_threshold"}
