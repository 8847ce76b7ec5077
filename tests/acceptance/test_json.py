"""Machine-readable output: one JSON text, documented keys, amounts as text, times with a zone."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import psycopg
import pytest

from controller.demo.process import ControllerProcess
from tests.acceptance.program import Program

AMOUNT = re.compile(r"-?\d+\.\d\d")
STATUS_KEYS = {
    "leader", "term", "leading_since", "standbys", "last_run", "last_completed_at", "next_cycle_at", "waiting_for",
    "running_since", "heartbeat_age_seconds", "debts", "owed", "failures", "suspended", "checked_until",
    "database_time", "verdict", "reasons", "replicas", "beats_until", "interval_minutes",
    "differing_wallets", "difference",
}  # fmt: skip
RUN_KEYS = {
    "id", "kind", "term", "holder", "started_at", "finished_at", "seconds", "outcome", "instances", "hours", "amount",
    "debts", "failures", "error", "cause", "planned", "charged_in_part", "failures_by_reason", "suspended", "vanished",
}  # fmt: skip
BILL_KEYS = {
    "outcome", "dry_run", "run", "instances", "hours", "amount", "debts", "failures", "seconds", "error",
    "failures_by_reason", "suspended", "cause", "largest", "unrecorded",
}  # fmt: skip
INVARIANTS = {
    "wallet_balance", "wallet_state", "periods", "last_billed", "whole_hours", "transactions", "price_clock",
    "open_rows", "overdue", "terms",
}  # fmt: skip


def assert_time(text: Any) -> None:  # noqa: ANN401 - from JSON
    assert datetime.fromisoformat(text).utcoffset() is not None


@pytest.fixture
def program(quick_program: Program) -> Program:
    return quick_program


def test_status_of_an_idle_database_names_no_leader(program: Program) -> None:
    status = program("status", "--json").json
    assert status.keys() >= STATUS_KEYS
    assert (status["leader"], status["term"], status["standbys"], status["last_run"]) == (None, 0, [], None)
    assert status["heartbeat_age_seconds"] is None
    assert_time(status["database_time"])


def test_doctor_lists_each_check_with_its_level_and_remedy(program: Program) -> None:
    done = program("doctor", "--json")
    assert (done.status, done.json["ok"]) == (0, True)
    for finding in done.json["findings"]:
        assert finding.keys() == {"check", "level", "message", "remedy"}
        assert finding["level"] in {"ok", "warning", "skipped"}, finding
    assert program("doctor").out.splitlines()[-1] == "2 warnings, 1 skipped"


def test_status_beside_a_leader_shows_it_and_its_last_cycle(program: Program, replica: ControllerProcess) -> None:
    status = program("status", "--json").json
    assert status["leader"] == replica.instance
    assert status["term"] == 1
    assert status["heartbeat_age_seconds"] < 60
    for key in ("leading_since", "last_completed_at", "next_cycle_at"):
        assert_time(status[key])
    run = status["last_run"]
    assert run.keys() >= RUN_KEYS
    assert run["outcome"] == "completed_with_failures", "the sample has an organization without a wallet"
    assert isinstance(run["amount"], str), "an amount that was read as a float is not exact"
    assert AMOUNT.fullmatch(run["amount"])
    assert AMOUNT.fullmatch(status["owed"])


def test_history_is_the_newest_runs_first(program: Program) -> None:
    assert program("history", "--json").json == []
    program("bill")
    program("bill")
    runs = program("history", "--json").json
    assert [run["id"] for run in runs] == [2, 1]
    for run in runs:
        assert run.keys() == RUN_KEYS
        assert AMOUNT.fullmatch(run["amount"])
        assert_time(run["started_at"])
        assert_time(run["finished_at"])
    assert len(program("history", "--json", "--limit", "1").json) == 1


def test_bill_and_its_dry_run_return_the_same_totals(program: Program) -> None:
    dry = program("bill", "--dry-run", "--json").json
    real = program("bill", "--json").json
    assert dry.keys() == real.keys() == BILL_KEYS
    assert (dry["dry_run"], dry["run"], real["dry_run"]) == (True, None, False)
    assert real["run"] == program("history", "--json").json[0]["id"]
    for key in ("outcome", "instances", "hours", "amount", "debts", "failures", "failures_by_reason", "error"):
        assert dry[key] == real[key], key
    assert AMOUNT.fullmatch(real["amount"])
    assert real["instances"] > 0


def test_dry_run_charges_the_suspended_organizations_that_a_real_run_would(program: Program, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute(
            "insert into billing_suspensions (organization_id, reason, detail)"
            " select organization_id, 'periods', 'repaired since' from vps_instances group by organization_id"
        )
    dry = program("bill", "--dry-run", "--json").json
    real = program("bill", "--json").json
    assert (dry["instances"], dry["failures_by_reason"]) == (real["instances"], real["failures_by_reason"])
    assert dry["instances"] > 0


def test_audit_has_a_finding_for_each_invariant(program: Program) -> None:
    program("bill")
    report = program("audit", "--json").json
    assert report["clean"] is True
    assert {finding["invariant"] for finding in report["findings"]} == INVARIANTS
    for finding in report["findings"]:
        assert finding.keys() == {"invariant", "meaning", "violations", "exempt", "examples", "exempt_examples"}
    assert isinstance(report["older_rows"], int)


def test_bill_does_not_refresh_the_heartbeat_as_it_exits(program: Program, database: str) -> None:
    program("bill")
    with psycopg.connect(database) as conn:
        row = conn.execute(
            "select s.status, s.instances_billed = r.instances, s.heartbeat_at <= r.finished_at"
            " from billing_daemon_status s, billing_runs r"
        ).fetchone()
    assert row == ("stopped", True, True)
