"""Reads a replica's sessions, its status row and the lock's holder from the database."""

from __future__ import annotations

from typing import Any

from controller.app import FIRST_STATEMENTS
from controller.demo.process import ControllerProcess
from controller.postgres.connections import application_name
from tests.support.ledger_probe import LedgerProbe
from tests.support.waiting import eventually


def sessions(ledger: LedgerProbe, purpose: str, replica: ControllerProcess) -> list[dict[str, Any]]:
    """A replica's sessions of one kind (elector, worker, guard, biller, cycle, heartbeat), from `pg_stat_activity`."""
    name = application_name(purpose, replica.instance)
    return ledger.rows("select * from pg_stat_activity where application_name = %s", name)


def wait_until_standing_by(ledger: LedgerProbe, replica: ControllerProcess) -> None:
    """Blocks until the replica has joined the election and waits for the lock."""
    replica.wait_for("election.joined")
    eventually(
        lambda: any("billing_contend" in each["query"] for each in sessions(ledger, "elector", replica)),
        f"{replica.instance} tries the lock",
    )


def wait_until_ready_to_lead(ledger: LedgerProbe, replica: ControllerProcess) -> None:
    """Blocks until the replica waits for the lock and has all of its spare sessions."""
    wait_until_standing_by(ledger, replica)
    eventually(
        lambda: (
            all(sessions(ledger, kind.purpose, replica) for kind, _ in FIRST_STATEMENTS)
            and all(each["state"] == "idle" for each in sessions(ledger, "worker", replica))
        ),
        f"{replica.instance} has opened its spare sessions",
    )


def end_sessions(ledger: LedgerProbe, purpose: str, replica: ControllerProcess) -> int:
    """Ends these sessions with `pg_terminate_backend`; returns how many."""
    pids = [each["pid"] for each in sessions(ledger, purpose, replica)]
    for pid in pids:
        ledger.conn.execute("select pg_terminate_backend(%s)", [pid])
    return len(pids)


def status_row(ledger: LedgerProbe, replica: ControllerProcess) -> dict[str, Any] | None:
    """The replica's row in the status table, which the application reads."""
    rows = ledger.rows("select * from billing_daemon_status where daemon_instance_id = %s", replica.instance)
    return rows[0] if rows else None


def lock_holders(ledger: LedgerProbe) -> int:
    """The number of sessions that hold an election lock in this database."""
    return len(
        ledger.rows(
            "select from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
            " and database = (select oid from pg_database where datname = current_database())"
        )
    )
