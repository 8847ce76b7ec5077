"""Commands that tell the leader what to do, as an operator uses them."""

from __future__ import annotations

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.acceptance.program import Program
from tests.integration.test_heartbeat_implies_billing import as_role

REASON = """checking "50% off" at ann's"""
CONTROL = (("pause", "--reason", "test"), ("resume",))


@pytest.mark.parametrize("command", CONTROL, ids=" ".join)
def test_command_that_nobody_answers_is_recorded(program: Program, command: tuple[str, ...]) -> None:
    done = program(*command)
    assert (done.status, done.err) == (0, "")
    assert "recorded; nobody leads" in done.out
    given = program(*command, "--json", "--by", "ann").json
    assert (given["command"], given["leader"], given["acknowledged_at"]) == (command[0], None, None)
    assert given["given_by"].startswith("ann on ")


def test_pause_and_resume_beside_a_leader(program: Program, replica: ControllerProcess) -> None:
    done = program("pause", "--reason", REASON, "--for", "2h", "--by", "ann")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("paused until 20")
    halted = replica.wait_for("billing.halted", kind="paused")
    assert halted["reason"].endswith(f": {REASON}")
    checked = program("status", "--check")
    assert checked.status == 1
    assert "DOWN: billing is halted: paused until 20" in checked.out
    assert REASON in checked.out
    stopped = program("bill")
    assert stopped.status == 4
    done = program("resume")
    assert done.status == 0
    assert done.out.startswith("lifted: paused until 20")
    assert f"{replica.instance} bills again within seconds" in done.out
    replica.wait_for("billing.continued")
    assert "nothing to resume" in program("resume").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause",),
        ("pause", "--reason", "x", "--for", "0h"),
        ("pause", "--reason", "x", "--for", "soon"),
        ("pause", "--reason", "x", "--for", "4h", "--indefinitely"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(bare: Program, arguments: tuple[str, ...]) -> None:
    done = bare(*arguments)
    assert (done.status, done.out) == (2, "")
    assert done.err


@pytest.mark.parametrize("command", CONTROL, ids=" ".join)
def test_role_that_may_only_read_is_told_which_right_it_lacks(
    program: Program, database: str, command: tuple[str, ...]
) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("drop role if exists control_reader; create role control_reader login")
        conn.execute("grant select on all tables in schema public to control_reader")
    try:
        line = program(*command, DATABASE_URL=as_role(database, "control_reader")).failed_with(1)
        assert "this role lacks the right to give commands: insert on billing_commands" in line
    finally:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute("drop owned by control_reader; drop role control_reader")
