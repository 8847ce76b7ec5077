"""`run` without a terminal logs once what it is waiting for, and starts as soon as that is available."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from controller.demo.process import LogLine
from tests.acceptance.program import Program
from tests.support.processes import StartReplica, count_for, terminate
from tests.support.waiting import eventually


def says(*words: str) -> Callable[[LogLine], bool]:
    """True for a warning that contains all of these words."""
    return lambda line: line["level"] == "warning" and all(word in str(line.fields) for word in words)


def test_replica_waits_for_the_tables_and_for_the_migrations_and_says_why(
    bare: Program, empty_database: str, start: StartReplica
) -> None:
    replica = start(empty_database)
    replica.wait_until(says("vps_instances", "missing"), "a warning about the missing tables")
    bare("demo", "seed", DATABASE_URL=empty_database)
    replica.wait_until(says("migrations not applied", "migrate"), "a warning about the missing migrations")
    assert bare("migrate", DATABASE_URL=empty_database).status == 0
    replica.wait_for("cycle.completed")
    assert terminate(replica) == 0


def test_wrong_password_is_reported_without_quoting_it(database: str, start: StartReplica) -> None:
    replica = start(database.replace("postgres@", "nobody:hunter2@"))
    replica.wait_until(says("DATABASE_URL", "nobody"), "a warning about the refusal")
    assert "hunter2" not in replica.tail()
    assert terminate(replica) == 0


def test_lock_on_another_database_than_the_money_bills_nothing_and_names_both_settings(
    database: str, foreign_database: str, bare: Program, start: StartReplica
) -> None:
    assert bare("migrate", DATABASE_URL=foreign_database).status == 0
    replica = start(database, DATABASE_DIRECT_URL=foreign_database)
    said = replica.wait_for("leader.contradicted")
    assert "DATABASE_URL" in said["remedy"]
    assert "DATABASE_DIRECT_URL" in said["remedy"]
    replica.wait_for("leader.resigned")
    assert terminate(replica) == 0
    with psycopg.connect(database) as conn:
        assert conn.execute("select from billing_runs").fetchall() == []


@pytest.mark.parametrize("level", ["error", "warn", "info", "debug"])
def test_no_log_level_shows_a_password(database: str, start: StartReplica, level: str) -> None:
    url = database.replace("postgres@", "postgres:hunter2@")
    replica = start(url, LOG_LEVEL=level)
    other = start(url, LOG_LEVEL=level)
    if level in {"info", "debug"}:
        replica.wait_until(
            lambda _line: bool(other.events("cycle.completed") or replica.events("cycle.completed")), "a cycle"
        )
    else:
        assert count_for(replica, 2.0) == 0
    assert (terminate(replica), terminate(other)) == (0, 0)
    for each in (replica, other):
        assert "hunter2" not in each.tail(1000)
        assert each.other_output == []


def test_console_form_is_chosen_by_a_setting(database: str, start: StartReplica) -> None:
    replica = start(database, LOG_FORMAT="console")
    eventually(lambda: any("leader.elected" in line for line in replica.other_output), "the election is logged")
    assert terminate(replica) == 0
    assert replica.events() == []
    assert not any("\x1b" in line for line in replica.other_output)


def test_events_of_a_quiet_replica_are_few(database: str, start: StartReplica) -> None:
    replica = start(database)
    replica.wait_for("cycle.completed")
    assert count_for(replica, 1.5, *{line.event for line in replica.events()}) == 0
    assert terminate(replica) == 0
    told = [line.event for line in replica.events() if line.event not in {"customers.affected", "takeover.begun"}]
    assert told == [
        "controller.started", "leader.elected", "cycle.started", "cycle.completed", "drain.started", "leader.resigned",
        "drain.completed", "controller.stopped",
    ]  # fmt: skip
    for line in replica.events():
        assert line["instance"] == replica.instance
        assert str(line["time"]).endswith("Z")


def test_env_file_that_others_can_read_is_warned_about_and_read(program: Program) -> None:
    file = program.folder / ".env"
    file.write_text(f"DATABASE_URL={program.settings['DATABASE_URL']}\n")
    file.chmod(0o644)
    exposed = Program(program.folder, {})("status", "--json")
    assert exposed.status == 0
    assert "chmod 600" in exposed.err
    file.chmod(0o600)
    assert Program(program.folder, {})("status", "--json").err == ""
