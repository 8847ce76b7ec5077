"""The commands that answer questions, as a person or a script uses them."""

from __future__ import annotations

import csv
import re

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.acceptance.program import Program


@pytest.fixture
def program(quick_program: Program) -> Program:
    return quick_program


def test_status_check_is_0_only_while_everyone_is_billed(
    program: Program, replica: ControllerProcess, database: str
) -> None:
    done = program("status", "--check")
    assert (done.status, done.out) == (1, "ATTENTION: 4 instances can't be charged\n")
    assert program("status").status == 0, "a report is not a check"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)"
        )
    done = program("status", "--check")
    assert (done.status, done.out) == (0, f"OK: {replica.instance} leads, and everything due has been billed\n")
    judged = program("status", "--check", "--json").json
    assert (judged["verdict"], judged.keys()) == ("ok", {"verdict", "reasons"})
    replica.kill()
    done = program("status", "--check")
    assert (done.status, done.out) == (1, "DOWN: no replica leads\n")


def test_debts_and_explain_answer_for_one_customer(program: Program, database: str) -> None:
    program("bill")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("update vps_instances set label = '[/b]' where label = 'vps-5'")
    done = program("debts")
    assert done.status == 1
    assert "Organization 4 (organization-4, " in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    rows = program("debts", "organization-4", "--json").json
    assert {row["slug"] for row in rows} == {"organization-4"}
    assert program("debts", "organization-4", "--older-than", "900d").status == 0
    assert program("debts", "--lost").out == "no debts were lost\n"
    assert "such as 24h" in program("debts", "--older-than", "soon").err
    done = program("explain", "[/b]")
    assert (done.status, done.out.splitlines()[0]) == (0, "instance [/b]")
    assert "top up the wallet; the leader collects the debt within a minute" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert "can't be charged in full" in program("explain", "organization-4").out
    assert program("explain", "organization-4", "--json").json["organization"]["wallets"] == 1
    assert "no id, slug or label is unknown-org" in program("explain", "unknown-org").failed_with(2)


def test_statement_prints_a_table_csv_and_json_of_the_same_lines(program: Program) -> None:
    program("bill")
    done = program("statement", "organization-1", "--from", "yesterday")
    assert done.status == 0
    assert done.out.endswith("It adds up.\n")
    assert max(map(len, done.out.splitlines())) <= 80
    shown = program("statement", "organization-1", "--from", "yesterday", "--json").json
    assert (shown["difference"], shown["organization"]["slug"]) == ("0.00", "organization-1")
    rows = list(csv.DictReader(program("statement", "organization-1", "--from", "yesterday", "--csv").out.splitlines()))
    assert [row["amount"] for row in rows[1:-1]] == [line["amount"] for line in shown["lines"]]
    assert (rows[0]["amount"], rows[-1]["amount"]) == (shown["opening"], shown["closing"])
    program("statement", "unknown-org", "--from", "today").failed_with(2)
    program("statement", "organization-1", "--from", "soon").failed_with(2)


def test_history_runway_and_the_audit_of_one_organization(program: Program, database: str) -> None:
    program("bill")
    done = program("history", "1")
    assert "wallet_missing 4" in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    assert len(program("history", "1", "--json").json["failed"]) == 4
    assert "there is no run 99" in program("history", "99").failed_with(2)
    assert max(map(len, program("runway").out.splitlines())) <= 80
    assert program("runway", "organization-1", "--json").json[0]["slug"] == "organization-1"
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "update vps_billing_cycles c set total_amount = 9 from organizations o"
            " where o.id = c.organization_id and o.slug = 'organization-1' and c.status = 'billed'"
        )
    assert program("audit", "--organization", "organization-2").status == 0
    done = program("audit", "--organization", "organization-1")
    assert done.status == 1
    assert " of organization-1)" in done.out
    assert re.search(r"^       and \d+ more$", done.out, re.MULTILINE)
    program("audit", "--organization", "unknown-org").failed_with(2)
