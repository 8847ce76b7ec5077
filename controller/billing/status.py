"""Reads the state of billing: who leads, the cycles and the debts. `status`, the status page and the metrics show it.

The facts are SQL functions and views of migrations 026, 028 and 032, so `psql` shows the same answers.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from controller import sql
from controller.billing.other_billers import Notice, read_notices


@dataclass(frozen=True)
class Status:
    """The state at one moment. Times are the database's, in UTC; amounts are in the wallets' currency.

    Attributes:
        leader: instance id of the lock's holder according to `pg_locks`; None if the lock is free.
        term: the newest term.
        leading_since: when that term was minted; None if no replica leads.
        standbys: instance ids of the other connected replicas.
        replicas: every connected replica, the leader first: instance_id, role, and since when it is connected or leads.
            The role is `without term` for a session that holds the lock and has not minted the newest term.
        next_cycle_at: when the next cycle is due; None if no cycle has ever completed.
        waiting_for: what the next cycle waits for: leader, running, halted, takeover, interval or nothing.
        running_since: start of the cycle in progress.
        last_completed_at: start of the newest completed cycle.
        last_run: the newest run that has ended, as a row of `billing_runs`.
        heartbeat_age_seconds: age of the newest heartbeat in `billing_daemon_status`; None if there is none.
        beats_until: the time until which the leader may write heartbeats unless a cycle succeeds; None before the first
            term, and while billing is halted.
        interval_minutes: time from the start of a cycle to the start of the next, in the leader's settings.
        debts: instances with a debt.
        owed: sum of all debts.
        failures: instances that failed for a reason other than their balance and have not been charged since.
        suspended: organizations that the guard has suspended.
        suspended_by_operators: organizations that operators have suspended.
        checked_until: the guard has checked every charge made before this time.
        database_time: when this was read.
        charged_instances: instances charged in the hour, or interval, before the start of the newest successful cycle;
            None if no cycle has succeeded.
        failing_cycles: the newest cycles in a row that have failed.
        cut_short_cycles: cycles that a drain has stopped within the last hour.
        notices: what operators must know about billing as a whole, such as another biller. Some halt billing.
        backlogs: instances that are not charged until an operator accepts or waives their hours.
        backlog: what these hours cost.
        differing_wallets: wallets that differ from their transactions because another program changed them.
        difference: the sum of these differences, each without its sign.
    """

    leader: str | None
    term: int
    leading_since: datetime | None
    standbys: tuple[str, ...]
    next_cycle_at: datetime | None
    waiting_for: str
    running_since: datetime | None
    last_completed_at: datetime | None
    last_run: dict[str, Any] | None
    heartbeat_age_seconds: float | None
    debts: int
    owed: Decimal
    failures: int
    suspended: int
    checked_until: datetime
    database_time: datetime
    notices: tuple[Notice, ...] = ()
    replicas: tuple[dict[str, Any], ...] = ()
    beats_until: datetime | None = None
    interval_minutes: float = 60.0
    suspended_by_operators: int = 0
    backlogs: int = 0
    backlog: Decimal = Decimal(0)
    differing_wallets: int = 0
    difference: Decimal = Decimal(0)
    charged_instances: int | None = None
    failing_cycles: int = 0
    cut_short_cycles: int = 0

    @property
    def lock_held_without_term(self) -> str | None:
        """The session that holds the lock without the newest term, so that no replica can lead; else None."""
        return next((each["instance_id"] for each in self.replicas if each["role"] == "without term"), None)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON, which writes times and amounts as text."""
        return asdict(self)


def read_status(connection: sql.Connection) -> Status:
    """Reads the status.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    row = sql.row(connection, "status")
    return Status(
        **{
            **row,
            "standbys": tuple(row["standbys"]),
            "replicas": tuple(row["replicas"]),
            "notices": read_notices(connection),
        }
    )


def read_history(connection: sql.Connection, limit: int) -> list[dict[str, Any]]:
    """Reads the newest `limit` runs, newest first.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    return sql.rows(connection, "history", limit=limit)
