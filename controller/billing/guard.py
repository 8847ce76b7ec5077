"""The guard of payments: checks what each cycle has charged, and suspends an organization whose charges are wrong.

After a cycle, and every minute during a paced one, it checks every payment written since the last check, and compares
their sum with what the batches recorded. This includes the payments of a leader that was lost before its guard ran. If
a charge breaks an invariant, its organization is suspended: it gets an open row with the reason, and is not charged
until an audit of all its charges is clean. Before each cycle the guard tries this audit.

The guard must not fail a cycle, delay a drain, or lock rows that billing needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

import psycopg
import structlog
from psycopg import errors

from controller import sql
from controller.billing.audit import audit
from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.reconcile_check import compare_changed_wallets
from controller.billing.values import Leadership
from controller.errors import BillingError, one_line
from controller.generation import GenerationError
from controller.lifecycle.stop import StopToken

#: Payments that one statement checks.
BATCH_SIZE: Final = 5000

log = structlog.get_logger(part="guard")


class Guard:
    """Runs before and after each cycle, and during a paced one while its workers rest. Always on the cycle's thread.

    Args:
        connect: opens a session in autocommit mode.
        stop: checked between statements. Once no cycle may start, the next leader's guard checks the rest.
    """

    def __init__(self, connect: Callable[[], Ledger], stop: StopToken) -> None:
        self._connect = connect
        self._stop = stop

    def unsuspend(self, leadership: Leadership) -> None:
        """Ends the suspension of every organization whose audit is clean. Call it before a cycle."""
        self._run(leadership, self._unsuspend)

    def check(self, leadership: Leadership) -> None:
        """Checks what was charged, and suspends the organizations whose charges are wrong.

        Then it compares the wallets that another program has changed with their transactions. Call it while no
        transaction of a cycle is open.
        """
        self._run(leadership, self._check)
        self._run(leadership, self._compare_wallets)

    def clean_suspended(self) -> tuple[UUID, ...]:
        """Returns the suspended organizations whose audit is clean. The next cycle would charge them again.

        Raises:
            psycopg.Error: the database can't be reached.
        """
        with self._connect().connection as connection:
            rows = sql.rows(connection, "suspended_organizations")
        return tuple(row["organization_id"] for row in rows if self._is_clean(row["organization_id"]))

    def _run(self, leadership: Leadership, action: Callable[[Leadership, Ledger], None]) -> None:
        """Runs an action. If it fails, logs a warning and lets billing continue."""
        try:
            ledger = self._connect()
            with ledger.connection:
                action(leadership, ledger)
        except (DeposedError, GenerationError):
            return
        except (psycopg.Error, BillingError) as error:
            log.warning("guard.failed", error=one_line(error))

    def _may_continue(self, leadership: Leadership) -> bool:
        return leadership.still_leads() and self._stop.may_start_cycle()

    def _compare_wallets(self, leadership: Leadership, ledger: Ledger) -> None:
        compare_changed_wallets(ledger, leadership.term, lambda: self._may_continue(leadership))

    def _unsuspend(self, leadership: Leadership, ledger: Ledger) -> None:
        for row in sql.rows(ledger.connection, "suspended_organizations"):
            if not self._may_continue(leadership):
                return
            organization = row["organization_id"]
            if self._is_clean(organization):
                with ledger.fenced(leadership.term):
                    sql.run(ledger.connection, "unsuspend_organization", organization_id=organization)
                log.info("organization.unsuspended", organization=str(organization))

    def _is_clean(self, organization: UUID) -> bool:
        """Audits all charges of an organization. If the audit itself fails, only this organization stays suspended."""
        with self._connect().connection as connection:
            try:
                return audit(connection, organization).clean
            except psycopg.Error as error:
                log.warning("guard.failed", organization=str(organization), error=one_line(error))
                return False

    def _check(self, leadership: Leadership, ledger: Ledger) -> None:
        bounds = sql.row(ledger.connection, "guard_begin")
        after_id, payments, paid, more = bounds["after_id"], 0, Decimal(0), True
        while more:
            if not self._may_continue(leadership):
                log.info("guard.interrupted", payments=payments)
                return
            checked = self._check_next(ledger, after_id, bounds["end_id"])
            for violation in checked.violations:
                self._suspend(leadership, ledger, violation)
            payments += checked.payments
            paid += checked.amount
            after_id, more = checked.last_id, checked.more
        self._compare(leadership, ledger, bounds["checked_until"], paid)
        with ledger.fenced(leadership.term):
            sql.run(ledger.connection, "guard_end", checked_until=bounds["now"])
        log.debug("guard.passed", payments=payments)

    def _compare(self, leadership: Leadership, ledger: Ledger, checked_until: datetime, paid: Decimal) -> None:
        """Compares the payments with what the batches recorded. Suspends organizations whose payments are missing."""
        charged = sql.row(ledger.connection, "guard_charged", checked_until=checked_until)
        if charged["amount"] <= paid:
            return
        # deleting an organization is legitimate, and deletes its payments together with its periods
        try:
            unpaid = sql.rows(ledger.connection, "guard_unpaid", runs=charged["runs"])
        except errors.QueryCanceled as error:  # too many instances: warn, and let the guard continue from here
            log.warning("payments.missed", amount=str(charged["amount"] - paid), error=one_line(error))
            return
        log.warning("payments.missed", amount=str(charged["amount"] - paid), organizations=len(unpaid))
        for row in unpaid:
            detail = f"{row['periods']} periods without a payment, such as period {row['example']}"
            self._suspend(leadership, ledger, _Violation(row["organization_id"], "transactions", detail))

    def _check_next(self, ledger: Ledger, after_id: UUID, end_id: UUID) -> "_Checked":
        """Checks the next payments. If one of them can't be read, tries fewer; alone, it is a violation."""
        limit = BATCH_SIZE
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
                return _Checked(
                    row["payments"], row["amount"], row["last_id"], violations, more=row["payments"] == limit
                )

    def _unreadable(self, ledger: Ledger, after_id: UUID, end_id: UUID, error: psycopg.DataError) -> "_Checked":
        rows = sql.rows(ledger.connection, "guard_unreadable", after_id=after_id, end_id=end_id)
        if not rows:  # it was the last payment, and has been deleted in the meantime
            return _Checked(0, Decimal(0), after_id, (), more=False)
        payment = rows[0]
        detail = f"payment {payment['id']}: {error.diag.message_primary}"
        violation = _Violation(payment["organization_id"], "unreadable", detail)
        return _Checked(1, -payment["amount"], payment["id"], (violation,), more=True)

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
    """A charge that is wrong. `invariant` is a name from the audit, or `unreadable`."""

    organization: UUID
    invariant: str
    detail: str


@dataclass(frozen=True)
class _Checked:
    """What one statement has checked."""

    payments: int
    amount: Decimal
    last_id: UUID
    violations: tuple[_Violation, ...]
    more: bool
