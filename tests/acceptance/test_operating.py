"""Commands that tell the leader what to do, as an operator uses them."""

from __future__ import annotations

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.acceptance.program import Program
from tests.integration.test_heartbeat_implies_billing import as_role

COMMAND_KEYS = {
    "id", "command", "given_at", "given_by", "reason", "until", "acknowledged_at", "acknowledged_by", "finished_at",
    "run_id", "refusal", "outcome", "leader",
}  # fmt: skip
REASON = """checking "50% off" at ann's"""


@pytest.fixture
def program(quick_program: Program) -> Program:
    return quick_program


def test_command_without_a_leader_is_recorded(program: Program) -> None:
    done = program("trigger")
    recorded = "recorded; no replica leads, so the next leader will carry it out\n"
    assert (done.status, done.out, done.err) == (0, recorded, "")
    given = program("pause", "--reason", REASON, "--json", "--by", "ann").json
    assert (given["command"], given["leader"], given["acknowledged_at"]) == ("pause", None, None)
    assert given.keys() == COMMAND_KEYS
    assert (given["reason"], given["given_by"].startswith("ann on ")) == (REASON, True)
    line = program("bill").failed_with(1)
    assert line.startswith("error: paused until 20")


def test_pause_and_resume_beside_a_leader(program: Program, replica: ControllerProcess) -> None:
    done = program("pause", "--reason", REASON, "--for", "2h", "--by", "ann")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("paused until 20")
    halted = replica.wait_for("billing.halted", kind="paused")
    assert halted["reason"].endswith(f": {REASON}")
    assert "billing is halted: paused until 20" in program("trigger").failed_with(1)
    done = program("resume")
    assert done.status == 0
    assert done.out.startswith("lifted: paused until 20")
    assert f"{replica.instance} bills again within seconds" in done.out
    replica.wait_for("billing.continued")
    assert "nothing to resume" in program("resume").out


def test_trigger_is_followed_to_the_end_of_its_cycle_and_bill_names_it(
    program: Program, replica: ControllerProcess, database: str
) -> None:
    assert "`containerstacks-billing trigger`" in program("bill").failed_with(4)
    done = program("trigger", "--reason", REASON)
    assert done.status == 1, "the sample has an organization without a wallet"
    assert "completed_with_failures" in done.out
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)"
        )
    done = program("trigger", "--json")
    assert (done.status, done.json["run"]["outcome"], done.json["acknowledged_by"]) == (
        0,
        "completed",
        replica.instance,
    )
    assert done.json["run_id"] == done.json["run"]["id"] == program("history", "--json").json[0]["id"]


def test_suspend_and_unsuspend_an_organization_by_its_slug(program: Program, replica: ControllerProcess) -> None:
    assert "no organization has the id or slug vps-5" in program("suspend", "vps-5", "--reason", "x").failed_with(2)
    done = program("suspend", "organization-1", "--reason", REASON)
    assert (done.status, done.out) == (0, "suspended organization-1 until `containerstacks-billing unsuspend`\n")
    explained = program("explain", "organization-1").out
    assert REASON in explained
    assert "suspended\n" in explained
    done = program("unsuspend", "organization-1")
    assert (done.status, done.out.startswith("lifted: organization-1 was suspended by ")) == (0, True)
    assert "no operator has suspended" in program("unsuspend", "organization-1").failed_with(1)


def test_waive_writes_off_what_an_organization_owes(program: Program, replica: ControllerProcess) -> None:
    (*_, debt) = program("debts", "organization-4", "--json").json
    assert f"use the id {debt['instance_id']}" in program("waive", debt["label"], "--reason", "x").failed_with(2)
    done = program("waive", debt["instance_id"], "--reason", REASON, "--json").json
    assert (done["waived"]["instances"], done["refusal"], done["acknowledged_by"]) == (1, None, replica.instance)
    done_all = program("waive", "organization-4", "--reason", REASON)
    assert (done_all.status, done_all.out.startswith("waived ")) == (0, True)
    assert "no unpaid whole hours" in program("waive", "organization-4", "--reason", "x").failed_with(1)
    assert program("audit").status == 0


def test_step_down_hands_over_to_a_standby_and_is_refused_without_one(
    program: Program, replica: ControllerProcess, database: str
) -> None:
    assert "no standby is connected" in program("step-down").failed_with(1)
    successor = ControllerProcess(database)
    try:
        successor.wait_for("election.joined")
        done = program("step-down", "--by", "ann")
        assert (done.status, done.out) == (0, f"{replica.instance} has stepped down; {successor.instance} leads\n")
        assert replica.wait_for("step_down.accepted")["given_by"].startswith("ann on ")
        replica.wait_for("election.joined", after=replica.wait_for("leader.resigned"))
    finally:
        successor.remove()


@pytest.mark.parametrize(
    "arguments",
    [
        ("pause",),
        ("pause", "--reason", " "),
        ("suspend", "organization-1"),
        ("waive", "organization-1"),
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


def test_role_that_may_only_read_is_told_which_right_it_lacks(program: Program, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("drop role if exists control_reader; create role control_reader login")
        conn.execute("grant select on all tables in schema public to control_reader")
    try:
        line = program("resume", DATABASE_URL=as_role(database, "control_reader")).failed_with(1)
        assert "this role lacks the right to give commands: insert on billing_commands" in line
    finally:
        with psycopg.connect(database, autocommit=True) as conn:
            conn.execute("drop owned by control_reader; drop role control_reader")
