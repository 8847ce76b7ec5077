"""What the database shows of replicas: who contends, who leads, what the status table says."""

from __future__ import annotations

from typing import Any

from controller.demo.process import ControllerProcess
from controller.postgres.connections import application_name
from tests.support.ledger_probe import LedgerProbe
from tests.support.waiting import eventually


def sessions(ledger: LedgerProbe, purpose: str, replica: ControllerProcess) -> list[dict[str, Any]]:
    """Rows of `pg_stat_activity`: a replica's sessions of a kind (elector, worker, guard, biller, cycle, heartbeat)."""
    name = application_name(purpose, replica.instance)
    return ledger.rows("select * from pg_stat_activity where application_name = %s", name)


def wait_until_standing_by(ledger: LedgerProbe, replica: ControllerProcess) -> None:
    """Blocks until it has tried the lock once, and in vain: from then on it polls."""
    replica.wait_for("election.joined")
    eventually(
        lambda: any("advisory" in each["query"] for each in sessions(ledger, "elector", replica)),
        f"{replica.instance} tries the lock",
    )


def end_sessions(ledger: LedgerProbe, purpose: str, replica: ControllerProcess) -> int:
    """`pg_terminate_backend`; how many."""
    pids = [each["pid"] for each in sessions(ledger, purpose, replica)]
    for pid in pids:
        ledger.conn.execute("select pg_terminate_backend(%s)", [pid])
    return len(pids)


def status_row(ledger: LedgerProbe, replica: ControllerProcess) -> dict[str, Any] | None:
    """What the application reads of it."""
    rows = ledger.rows("select * from billing_daemon_status where daemon_instance_id = %s", replica.instance)
    return rows[0] if rows else None


def lock_holders(ledger: LedgerProbe) -> int:
    """How many sessions hold an election's lock in this database."""
    return len(
        ledger.rows(
            "select from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
            " and database = (select oid from pg_database where datname = current_database())"
        )
    )
