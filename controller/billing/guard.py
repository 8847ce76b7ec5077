"""The guard: an audit after each cycle that stops billing where it finds something wrong.

It looks at every payment that has been written since it last looked, also by a leader that was lost before its guard
could. An organization of which a charge breaks an invariant is held: it gets an open row with the reason and no charge
until an audit of its whole books is clean, which is tried before each cycle.

It must not fail a cycle, delay a drain, or lock what billing needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg
import structlog

from controller import sql
from controller.billing.audit import audit
from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.values import Leadership
from controller.errors import BillingError

#: Looked at in one statement.
PAYMENTS: Final = 5000

log = structlog.get_logger(part="guard")


class Guard:
    """Works on the thread of whoever runs cycles.

    Args:
        connect: opens a session in autocommit mode.
        may_go_on: asked between statements; what is left is looked at after the next cycle.
    """

    def __init__(self, connect: Callable[[], Ledger], may_go_on: Callable[[], bool]) -> None:
        self._connect = connect
        self._may_go_on = may_go_on

    def release(self, leadership: Leadership) -> None:
        """Before a cycle: releases the held organizations whose audit is clean."""
        self._carefully(leadership, self._release)

    def look(self, leadership: Leadership) -> None:
        """After a cycle: looks at what was charged, and holds the organizations concerned."""
        self._carefully(leadership, self._look)

    def _carefully(self, leadership: Leadership, action: Callable[[Leadership, Ledger], None]) -> None:
        """A guard that can't look says so, and bills on."""
        try:
            ledger = self._connect()
            with ledger.connection:
                action(leadership, ledger)
        except DeposedError:
            return
        except (psycopg.Error, BillingError) as error:
            log.warning("guard.failed", error=str(error).split("\n", 1)[0])

    def _release(self, leadership: Leadership, ledger: Ledger) -> None:
        for row in sql.rows(ledger.connection, "suspended_organizations"):
            if not (leadership.still_leads() and self._may_go_on()):
                return
            organization = row["organization_id"]
            if self._is_clean(organization):
                with ledger.fenced(leadership.term):
                    sql.run(ledger.connection, "unsuspend_organization", organization_id=organization)
                log.info("organization.unsuspended", organization=str(organization))

    def _is_clean(self, organization: UUID) -> bool:
        """By the audit of its whole books. One that can't be audited keeps nobody else held."""
        with self._connect().connection as own:
            try:
                return audit(own, organization).clean
            except psycopg.Error as error:
                log.warning("guard.failed", organization=str(organization), error=str(error).split("\n", 1)[0])
                return False

    def _look(self, leadership: Leadership, ledger: Ledger) -> None:
        (bounds,) = sql.rows(ledger.connection, "guard_begin")
        after_id, payments, more = bounds["after_id"], 0, True
        while more:
            if not (leadership.still_leads() and self._may_go_on()):
                log.info("guard.interrupted", payments=payments)
                return
            judged = self._judge(ledger, after_id, bounds["end_id"])
            for violation in judged.violations:
                self._suspend(leadership, ledger, violation)
            payments += judged.payments
            after_id, more = judged.last_id, judged.more
        with ledger.fenced(leadership.term):
            sql.run(ledger.connection, "guard_end", checked_until=bounds["now"])
        log.debug("guard.passed", payments=payments)

    def _judge(self, ledger: Ledger, after_id: UUID, end_id: UUID) -> "_Judged":
        """The next payments: fewer where one of them can't be read, down to that one alone, which is a violation."""
        limit = PAYMENTS
        while True:
            try:
                (row,) = sql.rows(ledger.connection, "guard_charges", after_id=after_id, end_id=end_id, limit=limit)
            except psycopg.DataError as error:
                if limit == 1:
                    return self._unreadable(ledger, after_id, end_id, error)
                limit = max(1, limit // 8)
            else:
                violations = tuple(
                    _Violation(UUID(each["organization_id"]), each["invariant"], f"payment {each['payment_id']}")
                    for each in row["violations"]
                )
                return _Judged(row["payments"], row["last_id"], violations, more=row["payments"] == limit)

    def _unreadable(self, ledger: Ledger, after_id: UUID, end_id: UUID, error: psycopg.DataError) -> "_Judged":
        rows = sql.rows(ledger.connection, "guard_unreadable", after_id=after_id, end_id=end_id)
        if not rows:  # deleted meanwhile, and it was the last one
            return _Judged(0, after_id, (), more=False)
        payment = rows[0]
        detail = f"payment {payment['id']}: {error.diag.message_primary}"
        violation = _Violation(payment["organization_id"], "unreadable", detail)
        return _Judged(1, payment["id"], (violation,), more=True)

    def _suspend(self, leadership: Leadership, ledger: Ledger, violation: "_Violation") -> None:
        with ledger.fenced(leadership.term):
            new = sql.rows(
                ledger.connection,
                "suspend_organization",
                organization_id=violation.organization,
                reason=violation.invariant,
                detail=violation.detail,
            )
        if new:
            log.error(
                "organization.suspended",
                organization=str(violation.organization),
                invariant=violation.invariant,
                detail=violation.detail,
                remedy="it is not charged until `containerstacks-billing audit` finds nothing wrong with it",
            )


@dataclass(frozen=True)
class _Violation:
    """`invariant` as the audit names them, or `unreadable`."""

    organization: UUID
    invariant: str
    detail: str


@dataclass(frozen=True)
class _Judged:
    """What one statement looked at."""

    payments: int
    last_id: UUID
    violations: tuple[_Violation, ...]
    more: bool
