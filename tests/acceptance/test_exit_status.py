"""Every command exits with its documented status and reports an error in one line.

A new process shows each status at least once. The tests of many commands call `cli.main` in this process, whose result
the program passes to `sys.exit` whatever the command was.
"""

from __future__ import annotations

import json

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from controller.postgres.lock_session import LockName
from tests.acceptance.program import Done, Program

UNREACHABLE = "postgresql://user:hunter2@127.0.0.1:1/app?connect_timeout=2"
DATABASE_COMMANDS = (
    ("migrate",),
    ("migrate", "--check"),
    ("status",),
    ("status", "--json"),
    ("history",),
    ("history", "--json"),
    ("audit",),
    ("audit", "--json"),
    ("bill",),
    ("bill", "--dry-run"),
    ("bill", "--json"),
)
commands = pytest.mark.parametrize(
    "command", [each for each in DATABASE_COMMANDS if "--json" not in each], ids=" ".join
)


@pytest.mark.parametrize(
    "command", [*DATABASE_COMMANDS, ("history", "--limit", "1"), ("--help",), ("--version",)], ids=" ".join
)
def test_done_is_0_and_standard_error_has_warnings_at_most(
    quick_program: Program, database: str, command: tuple[str, ...]
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)"
        )
    done = quick_program(*command)
    assert done.status == 0
    assert done.out
    assert _levels(done) <= {"warning"}


@pytest.mark.parametrize("command", [("bill",), ("bill", "--dry-run")], ids=" ".join)
def test_bill_that_could_not_charge_an_instance_is_1(quick_program: Program, command: tuple[str, ...]) -> None:
    done = quick_program(*command)
    assert done.status == 1
    assert "completed_with_failures" in done.out
    assert "wallet_missing" in done.out


@pytest.mark.parametrize(
    "command",
    [
        *(each for each in DATABASE_COMMANDS if "--json" not in each),
        ("pause", "--reason", "x"),
        ("waive", "x", "--reason", "x"),
    ],
    ids=" ".join,
)
def test_unreachable_database_is_3_and_names_the_setting(quick_bare: Program, command: tuple[str, ...]) -> None:
    line = quick_bare(*command, DATABASE_URL=UNREACHABLE).failed_with(3)
    assert "DATABASE_URL" in line
    assert "hunter2" not in line


@pytest.mark.parametrize("command", [("status",), ("bill",), ("run",), ("migrate",)], ids=" ".join)
def test_missing_setting_is_2_and_named(quick_bare: Program, command: tuple[str, ...]) -> None:
    assert "DATABASE_URL is not set" in quick_bare(*command).failed_with(2)


@pytest.mark.parametrize("command", [("status",), ("bill",), ("run",), ("drain",)], ids=" ".join)
def test_wrong_setting_is_2_and_named(quick_bare: Program, command: tuple[str, ...]) -> None:
    line = quick_bare(*command, DATABASE_URL=UNREACHABLE, BILLING_WORKERS="many").failed_with(2)
    assert line.startswith("error: BILLING_WORKERS=many")


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve",),
        ("status", "--yaml"),
        ("status", "extra"),
        ("history", "--limit", "0"),
        ("history", "--limit", "ten"),
        ("drain", "--timeout", "-1"),
        ("drain", "--timeout", "soon"),
        ("drain", "--timeout", "nan"),
        ("drain", "--timeout", "inf"),
        ("--verbose",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_says_what_is_wrong(quick_bare: Program, arguments: tuple[str, ...]) -> None:
    done = quick_bare(*arguments)
    assert (done.status, done.out) == (2, ""), done
    assert done.err


@pytest.mark.parametrize(
    "command",
    [("migrate", "--check"), ("status",), ("history",), ("audit",), ("bill",), ("bill", "--dry-run"), ("trigger",)],
    ids=" ".join,
)
def test_database_that_is_not_migrated_is_1_with_the_remedy(
    quick_bare: Program, foreign_database: str, command: tuple[str, ...]
) -> None:
    line = quick_bare(*command, DATABASE_URL=foreign_database).failed_with(1)
    assert "run `containerstacks-billing migrate`" in line


@commands
def test_foreign_database_is_1_and_says_what_is_missing(
    quick_bare: Program, empty_database: str, command: tuple[str, ...]
) -> None:
    line = quick_bare(*command, DATABASE_URL=empty_database).failed_with(1)
    assert "wallets" in line
    assert "vps_instances" in line


def test_migrate_says_what_it_applied_and_then_that_there_is_nothing_to_do(
    bare: Program, foreign_database: str
) -> None:
    assert bare("migrate", "--check", DATABASE_URL=foreign_database).status == 1
    first = bare("migrate", DATABASE_URL=foreign_database)
    assert first.status == 0
    assert "012_billing_daemon_status" in first.out
    assert bare("migrate", DATABASE_URL=foreign_database).out == "up to date\n"
    assert bare("migrate", "--check", DATABASE_URL=foreign_database).status == 0


def test_violated_invariant_is_1(quick_program: Program, database: str) -> None:
    assert quick_program("bill").status == 1, "the sample has an organization without a wallet"
    assert quick_program("audit").status == 0
    with psycopg.connect(database) as conn:
        conn.execute("update wallets set balance = balance + 1 where id = (select min(id::text)::uuid from wallets)")
    done = quick_program("audit")
    assert done.status == 0, "the application may change wallets"
    assert "unexplained 1.00" in done.out
    with psycopg.connect(database) as conn:
        conn.execute("update vps_billing_cycles set total_amount = total_amount + 1 where billing_is_ours(metadata)")
    done = quick_program("audit")
    assert (done.status, done.err) == (1, "")
    assert "FAIL transactions" in done.out


def test_failed_cycle_is_1(program: Program, database: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute("alter table vps_billing_cycles add constraint shut check (status <> 'billed') not valid")
        conn.execute("alter table vps_billing_cycles rename column hourly_rate to moved_away")
    done = program("bill")
    assert done.status == 1


def test_bill_beside_a_leader_is_4_and_names_it(program: Program, replica: ControllerProcess) -> None:
    assert replica.instance in program("bill").failed_with(4)
    done = program("bill", "--dry-run")
    assert "dry run" in done.out, "a dry run needs no lock"
    assert _levels(done) <= {"warning"}


def test_bill_beside_a_lock_without_a_term_is_1_and_names_the_session(program: Program, database: str) -> None:
    with psycopg.connect(database, autocommit=True, application_name="psql") as stranger:
        stranger.execute("select pg_advisory_lock(%s)", [LockName("containerstacks-billing").key])
        line = program("bill").failed_with(1)
        assert f"psql (pid {stranger.info.backend_pid}, role postgres) holds the billing lock without a term" in line


def test_drain_without_a_controller_is_1_and_names_the_path(bare: Program) -> None:
    line = bare("drain", BILLING_CONTROL_SOCKET=str(bare.folder / "nobody.sock")).failed_with(1)
    assert "nobody.sock" in line


def test_drain_with_the_socket_switched_off_is_2(bare: Program) -> None:
    assert "BILLING_CONTROL_SOCKET" in bare("drain", BILLING_CONTROL_SOCKET="none").failed_with(2)


def test_migrate_that_waited_in_vain_is_3_with_the_reason(bare: Program) -> None:
    missing = str(bare.folder / "missing")
    done = bare("migrate", "--wait", "0.1", DATABASE_URL_FILE=missing)
    waited, gave_up = done.err.splitlines()
    assert done.status == 3
    assert waited.startswith("waiting for up to 0 s: ")
    assert (
        gave_up == f"error: gave up after 0.1 s: DATABASE_URL_FILE={missing} can't be read: No such file or directory"
    )


def test_migrate_does_not_wait_for_a_setting_that_can_not_change(bare: Program) -> None:
    assert "DATABASE_URL is not set" in bare("migrate", "--wait", "60").failed_with(2)


def _levels(done: Done) -> set[str]:
    """The levels of what the command logged. Standard error holds nothing but log lines."""
    return {json.loads(line)["level"] for line in done.err.splitlines()}
