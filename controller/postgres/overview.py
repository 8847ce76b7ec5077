"""Who leads, how billing goes: what `status`, the status page and the metrics show. Reads only."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg

from controller.postgres.connections import application_name
from controller.postgres.lock_session import LockName


@dataclass(frozen=True)
class Overview:
    """A moment's view; times are the database's, in UTC.

    Attributes:
        leader: instance id (`hostname-pid`) of the holder of the lock by `pg_locks`; None when nobody holds it.
        term: the newest.
        leading_since: when that term was minted, while somebody leads.
        standbys: instance ids of the replicas whose lock sessions wait.
        last_run: the newest run that has ended, as `billing_runs` has it.
        next_cycle_at: when the next one is due.
        running_since: the start of the cycle under way.
        heartbeat_age_seconds: of the newest heartbeat, whoever's.
        debts: instances with an open debt; `owed` is their sum.
        failures: instances that failed for another reason and have not been charged since.
        held: organizations that the guard has stopped; `checked_until`: it has looked at what was charged before.
    """

    leader: str | None
    term: int
    leading_since: datetime | None
    standbys: tuple[str, ...]
    last_run: dict[str, Any] | None
    last_completed_at: datetime | None
    next_cycle_at: datetime | None
    running_since: datetime | None
    heartbeat_age_seconds: float | None
    debts: int
    owed: Decimal
    failures: int
    held: int
    checked_until: datetime
    database_time: datetime

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which writes times and amounts as text."""
        return asdict(self)


def overview(
    connection: psycopg.Connection[dict[str, Any]],
    statements: Mapping[str, str],
    lock: LockName,
    interval_minutes: float,
) -> Overview:
    """Asks the database.

    Raises:
        psycopg.Error: it is away, or not migrated.
    """

    def rows(name: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        return connection.execute(statements[name].encode(), parameters).fetchall()

    prefix = application_name("elector", "")
    holders = {row["pid"]: row["application_name"] for row in rows("lock_holder", lock.halves)}
    candidates = {row["pid"]: row["application_name"] for row in rows("candidates", {"prefix": prefix})}
    (now,) = rows("overview")
    leader = next((name.removeprefix(prefix) for name in holders.values()), None)
    if leader and now["holder"] and now["holder"].endswith(leader):
        leader = now["holder"]  # a session's name may have been cut
    last_completed_at = now["last_completed_at"]
    return Overview(
        leader=leader,
        term=now["term"],
        leading_since=now["elected_at"] if leader else None,
        standbys=tuple(name.removeprefix(prefix) for pid, name in candidates.items() if pid not in holders),
        last_run=now["last_run"],
        last_completed_at=last_completed_at,
        next_cycle_at=last_completed_at + timedelta(minutes=interval_minutes) if last_completed_at else None,
        running_since=now["running_since"] if leader else None,
        heartbeat_age_seconds=now["heartbeat_age_seconds"],
        debts=now["debts"],
        owed=now["owed"],
        failures=now["failures"],
        held=now["held"],
        checked_until=now["checked_until"],
        database_time=now["database_time"],
    )
