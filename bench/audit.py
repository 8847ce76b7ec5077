"""Runs and times the guard and the audit on a database whose cycle has ended."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psycopg
from psycopg.rows import dict_row

from bench.cycle import HOLDER, PRICING, TERM, SoleLeadership
from controller.billing.audit import audit
from controller.billing.guard import Guard
from controller.billing.ledger import Ledger
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import GUARD, Database


@dataclass(frozen=True)
class AuditRun:
    """Seconds that the guard took for the last cycle's payments, and seconds of a whole audit."""

    guard_seconds: float
    audit_seconds: float


def run_guard_and_audit(url: str) -> AuditRun:
    """Runs the guard on what the cycle has charged, then audits the whole database.

    Raises:
        SystemExit: the guard suspended an organization or did not finish, or the audit found a violation.
    """
    database = Database(lambda: url, "DATABASE_URL", HOLDER)
    guard = Guard(lambda: Ledger(database.connect(GUARD), PRICING, HOLDER), StopToken())
    with psycopg.connect(url, autocommit=True) as connection:
        ((before,),) = connection.execute("select checked_until from billing_guard").fetchall()
        began = time.perf_counter()
        guard.check(SoleLeadership(TERM))
        seconds = time.perf_counter() - began
        ((after,),) = connection.execute("select checked_until from billing_guard").fetchall()
        suspended = connection.execute("select from billing_suspensions").rowcount
    if suspended or after == before:
        raise SystemExit(f"the guard suspended {suspended} organizations and checked until {after}")
    return AuditRun(seconds, require_clean_audit(url))


def require_clean_audit(url: str) -> float:
    """Audits the whole database and returns how many seconds that took.

    Raises:
        SystemExit: the audit found a violation.
    """
    with psycopg.connect(url, autocommit=True, row_factory=dict_row) as connection:
        began = time.perf_counter()
        broken = [finding for finding in audit(connection).findings if finding.violations]
        seconds = time.perf_counter() - began
    if broken:
        raise SystemExit(f"the audit found violations: {broken}")
    return seconds
