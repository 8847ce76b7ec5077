"""What looking after a cycle takes: the guard, and the whole audit, on a database whose cycle has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass
from decimal import Decimal

import psycopg
from psycopg.rows import dict_row

from bench.cycle import HOLDER, TERM, Leading
from controller.billing.audit import audit
from controller.billing.guard import Guard
from controller.billing.ledger import Ledger
from controller.billing.values import Pricing
from controller.postgres import queries
from controller.postgres.connections import GUARD, Database


@dataclass(frozen=True)
class WatchRun:
    """Seconds each."""

    guard: float
    audit: float


def watch(url: str) -> WatchRun:
    """Looks at what the cycle has charged, and then at everything.

    Raises:
        SystemExit: something is wrong, or the guard did not get to its end.
    """
    statements = queries.load()
    database = Database(lambda: url, "DATABASE_URL", HOLDER)
    pricing = Pricing(Decimal("19.71"), "USD")
    guard = Guard(lambda: Ledger(database.connect(GUARD), statements, pricing, HOLDER), statements, lambda: True)
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        (before,) = connection.execute("select checked_until from billing_guard").fetchall()
        began = time.perf_counter()
        guard.look(Leading(TERM))
        looked = time.perf_counter()
        (after,) = connection.execute("select checked_until from billing_guard").fetchall()
        held = connection.execute("select from billing_holds").fetchall()
        if held or after == before:
            raise SystemExit(f"the guard held {len(held)} organizations and looked until {after}")
    return WatchRun(looked - began, require_clean_audit(url))


def require_clean_audit(url: str) -> float:
    """Seconds of a whole audit.

    Raises:
        SystemExit: an invariant of money does not hold.
    """
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        began = time.perf_counter()
        broken = [finding for finding in audit(connection, queries.load()).findings if finding.violations]
        seconds = time.perf_counter() - began
    if broken:
        raise SystemExit(f"the audit found violations: {broken}")
    return seconds
