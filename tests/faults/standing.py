"""What the database shows of replicas: who contends, who leads, what the status table says."""

from __future__ import annotations

from typing import Any

from controller.postgres.connections import application_name
from tests.faults.books import Books
from tests.faults.replica import Replica
from tests.faults.waiting import eventually


def sessions(books: Books, purpose: str, replica: Replica) -> list[dict[str, Any]]:
    """Rows of `pg_stat_activity`: a replica's sessions of a kind (elector, worker, guard, biller, cycle, heartbeat)."""
    name = application_name(purpose, replica.instance)
    return books.rows("select * from pg_stat_activity where application_name = %s", name)


def wait_until_standing_by(books: Books, replica: Replica) -> None:
    """Blocks until it has tried the lock once, and in vain: from then on it polls."""
    replica.wait_for("election.joined")
    eventually(
        lambda: any("advisory" in each["query"] for each in sessions(books, "elector", replica)),
        f"{replica.instance} tries the lock",
    )


def end_sessions(books: Books, purpose: str, replica: Replica) -> int:
    """`pg_terminate_backend`; how many."""
    pids = [each["pid"] for each in sessions(books, purpose, replica)]
    for pid in pids:
        books.conn.execute("select pg_terminate_backend(%s)", [pid])
    return len(pids)


def status_row(books: Books, replica: Replica) -> dict[str, Any] | None:
    """What the application reads of it."""
    rows = books.rows("select * from billing_daemon_status where daemon_instance_id = %s", replica.instance)
    return rows[0] if rows else None


def lock_holders(books: Books) -> int:
    """How many sessions hold an election's lock in this database."""
    return len(
        books.rows(
            "select from pg_locks where locktype = 'advisory' and granted and objsubid = 1"
            " and database = (select oid from pg_database where datname = current_database())"
        )
    )
