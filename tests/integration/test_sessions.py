"""No foreign setting changes what a session does, and no setting of ours stays on a shared backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.main import get_command

from controller import cli, sql
from controller.app import Application
from controller.billing import control
from controller.election import Bounds
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
from tests.support.console import Console
from tests.support.servers import TEMPLATE, Server, chosen_installation, create_template, temporary_database
from tests.support.waiting import eventually, through

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
    # A session's first statement runs under these two, and the server compiles it, because of the settings below.
    "statement_timeout": "1s",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "20ms",
    "idle_session_timeout": "5s",
    "transaction_timeout": "1s",
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


LABEL: Final = "naïve ☃ vps"


class Company:
    """A database to bill in, and the result that billing it must give."""

    def __init__(self, world: World) -> None:
        self.world = world
        plan = world.plan("7.30")
        self.organization: UUID = world.organization("1000.00")
        world.instance(self.organization, plan, NOON - 5 * HOUR, label=LABEL)
        world.instance(world.organization("0.02"), plan, NOON - 5 * HOUR)
        self.supported = {name for name in HOSTILE if world.rows("select from pg_settings where name = %s", name)}

    @property
    def hostile(self) -> dict[str, str]:
        return {name: value for name, value in HOSTILE.items() if name in self.supported}

    def use_every_command(self, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
        """Runs each command as a person would, and checks its result."""
        for name, value in {
            "BILLING_MAX_BACKLOG_HOURS": "none",
            "BILLING_TAKEOVER_DELAY_SECONDS": "0",
            "BILLING_CONTROL_SOCKET": "none",
            "BILLING_HTTP_ADDRESS": "none",
            "BILLING_PAGE_ADDRESS": "none",
            **environment,
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(control, "LEADER_SECONDS", 0.0)  # commands for the leader don't wait for one
        console, organization = Console(monkeypatch), str(self.organization)
        assert console("migrate") == "up to date\n"
        assert console("migrate", "--check") == "up to date\n"
        console("accept-backlog", "--all", "--reason", "x")
        words: tuple[str, ...]
        for words in ("bill", "--dry-run"), ("bill",):
            billed = console.json(*words)
            assert (billed["outcome"], billed["failures"], billed["debts"]) == ("completed", 0, 1)
        assert console.json("audit")["clean"]
        status = console.json("status")
        assert 0 <= status["heartbeat_age_seconds"] < 60
        assert (status["debts"], status["failures"]) == (1, 0)
        assert status["last_run"]["started_at"].endswith("+00:00")
        (run,) = console.json("history")
        assert run["started_at"].endswith("+00:00")
        assert console.json("history", str(run["id"])) == {**run, "failed": []}
        (debt,) = console.json("debts", status=1)
        assert Decimal(debt["owed"]) == debt["hours"] * Decimal("0.01")
        assert console.json("debts", "--lost") == []
        (explained,) = console.json("explain", LABEL)["instances"]
        assert (explained["label"], explained["monthly_price"]) == (LABEL, "7.30")
        statement = console.json("statement", organization, "--from", "2020-01-01")
        assert Decimal(statement["closing"]) == self.world.balance(self.organization) < Decimal("1000.00")
        assert {line["label"] for line in statement["lines"] if line["kind"] == "charge"} == {LABEL}
        assert console.json("reconcile", organization)
        (_, runway) = console.json("runway")
        assert Decimal(runway["hours_left"]) == Decimal(runway["balance"]) * 100
        assert console.json("pause", "--reason", "x")["until"].endswith("+00:00")
        assert [notice["kind"] for notice in console.json("resume")["lifted"]] == ["paused"]
        for words in ("suspend", organization, "--reason", "x"), ("unsuspend", organization):
            assert console.json(*words)["refusal"] is None
        for words in ("trigger",), ("step-down",), ("waive", organization, "--reason", "x"):
            assert console.json(*words)["leader"] is None
        failed = [each for each in console.json("doctor", status=1)["findings"] if each["level"] == "failure"]
        assert [each["check"] for each in failed] == ["billing"], "no replica leads"
        assert commands() - console.used == set(), "commands that this test doesn't run"


def commands() -> set[str]:
    """The commands that use DATABASE_URL for one answer. `drain` has no database, and `run` has separate tests."""
    return set(get_command(cli.app).commands) - {"run", "drain", "demo"}  # type: ignore[attr-defined] # it is a group


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
    set_from(source, company.hostile, company.world, role, monkeypatch)
    company.use_every_command(monkeypatch, DATABASE_URL=make_conninfo(company.world.url, user=role))


def set_from(
    source: str, settings: Mapping[str, str], world: World, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Makes the settings those of a role, a database, the environment, or the whole server."""
    if source == "environment":
        monkeypatch.setenv("PGOPTIONS", " ".join(f"-c{name}={value}" for name, value in settings.items()))
        for name, value in {"PGDATESTYLE": "German", "PGTZ": "Asia/Tokyo", "PGCLIENTENCODING": "LATIN1"}.items():
            monkeypatch.setenv(name, value)
        return
    targets = {"role": f"role {role}", "database": f"database {world.conn.info.dbname}", "server": "system"}
    for name, value in settings.items():
        world.run(f"alter {targets[source]} set {name} = '{value}'")
    if source == "server":
        world.run("select pg_reload_conf()")


@pytest.fixture(scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server whose settings a test may change; the newest, which knows every setting."""
    with Server(chosen_installation(request.config, newest=True)) as running:
        create_template(running)
        yield running


_FROM_THE_SERVER: Final = "select from pg_settings where sourcefile like '%%postgresql.auto.conf'"


class TestOnAHostileServer:
    """`alter system` affects every session of a server."""

    @pytest.fixture
    def world(self, own_server: Server) -> Iterator[World]:
        with temporary_database(own_server, TEMPLATE) as url, World(url) as world:
            yield world

    @pytest.mark.parametrize("other", [None, "role", "database", "environment"])
    def test_no_setting_of_the_server_and_of_another_source_changes_what_a_command_does(
        self, company: Company, role: str, other: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each setting comes from one of two sources, in alternation."""
        settings = list(company.hostile.items())
        if other is not None:
            set_from(other, dict(settings[::2]), company.world, role, monkeypatch)
        world = company.world
        set_from("server", dict(settings if other is None else settings[1::2]), world, role, monkeypatch)
        try:
            company.use_every_command(monkeypatch, DATABASE_URL=make_conninfo(world.url, user=role))
        finally:
            world.run("alter system reset all")
            world.run("select pg_reload_conf()")
            eventually(lambda: not world.rows(_FROM_THE_SERVER), "the server's settings are its own again")


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
