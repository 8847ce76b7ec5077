"""Compares a wallet with its transactions, and corrects or accepts a difference.

The application writes wallets as absolute values, without a lock. So a top-up can overwrite a debit, and then the
wallet holds more than its baseline and its completed transactions. SQL functions of migration 040 compare and explain.
An operator decides: `correct` changes the wallet, `accept` changes the baseline. `billing_corrections` records both.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from controller import sql
from controller.billing.errors import InconsistentError
from controller.errors import BillingError

#: Seconds after a correction until the wallet is read again, because the application may be about to overwrite it.
READ_AGAIN_SECONDS: Final = 5.0
#: How many earlier corrections are shown.
LISTED: Final = 5


class RefusedError(BillingError):
    """A correction was refused. Nothing was changed."""


@dataclass(frozen=True)
class Comparison:
    """A row of `billing_wallet_comparison`: a wallet and what it should hold. Amounts are in the wallet's currency.

    Attributes:
        expected: baseline plus completed transactions.
        difference: balance minus expected; None if there is nothing to compare.
        not_compared: why not, such as wallet_missing or not_adopted.
        explanation: the amounts that make up the difference, by kind.
        other_wallets: sum of the transactions of the organization's other wallets, which don't count.
        unsettled: why the difference may still change on its own; None if it is settled.
        left_balance: what our last charge left in the wallet.
        compared_at: when it was compared, by the database's clock.
    """

    organization_id: UUID
    wallet_id: UUID | None
    balance: Decimal | None
    currency: str | None
    left_balance: Decimal | None
    adopted_at: datetime | None
    baseline: Decimal | None
    completed: Decimal
    other_wallets: Decimal
    expected: Decimal | None
    difference: Decimal | None
    not_compared: str | None
    explanation: dict[str, Decimal]
    unsettled: str | None
    compared_at: datetime

    @property
    def differs(self) -> bool:
        """True if the wallet doesn't match its transactions, or can't be compared with them."""
        return self.not_compared is not None or self.difference != 0


@dataclass(frozen=True)
class Correction:
    """A correction that has been made.

    Attributes:
        kind: correct or accept.
        amount: what was added to the wallet (correct) or to the baseline (accept).
        after: the comparison made after the correction.
        rest: the difference that remains because the wallet does not go below zero.
        overwritten: True if the wallet differs again, by an amount other than `rest`.
    """

    kind: str
    amount: Decimal
    after: Comparison
    rest: Decimal
    overwritten: bool


@dataclass(frozen=True)
class Order:
    """What an operator asks for.

    Attributes:
        kind: correct or accept.
        amount: the difference that the operator has seen.
        reason: the operator's reason, for the record.
        given_by: the operator, for the record.
    """

    kind: str
    amount: Decimal
    reason: str
    given_by: str


@dataclass(frozen=True)
class _Settled:
    """A difference that may be corrected, and the wallet's balance."""

    comparison: Comparison
    balance: Decimal
    difference: Decimal


def compare(connection: sql.Connection, organization: UUID) -> Comparison | None:
    """Compares an organization's wallet with its transactions, in one snapshot. None if the organization is gone.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    row = sql.optional_row(connection, "compare_wallet", organization=organization)
    if row is None:
        return None
    parts = {kind: Decimal(amount) for kind, amount in (row["explanation"] or {}).items()}
    return Comparison(**{**row, "explanation": parts})


def store(connection: sql.Connection, comparison: Comparison) -> bool:
    """Stores a comparison's result. Returns True if the difference is new."""
    if comparison.not_compared is not None:
        sql.run(connection, "forget_comparison", organization=comparison.organization_id)
        return False
    stored = sql.row(
        connection,
        "record_comparison",
        organization=comparison.organization_id,
        wallet_id=comparison.wallet_id,
        difference=comparison.difference,
        completed=comparison.completed,
        compared_at=comparison.compared_at,
        left_balance=comparison.left_balance,
        explanation=_explanation(comparison),
    )
    return bool(stored["new"])


def read_corrections(connection: sql.Connection, organization: UUID) -> list[dict[str, Any]]:
    """Reads the newest corrections of an organization, newest first."""
    return sql.rows(connection, "corrections", organization=organization, limit=LISTED)


def reconcile(
    connection: sql.Connection, organization: UUID, order: Order, wait: Callable[[float], None]
) -> Correction:
    """Carries out an order, and reads the wallet again after five seconds.

    Args:
        connection: a session in autocommit mode.
        organization: id of the wallet's owner.
        order: what to do. Its amount must still be the difference.
        wait: sleeps for a number of seconds.

    Raises:
        RefusedError: the difference has changed, or may still change on its own.
        InconsistentError: the database changed what was written.
        psycopg.Error: the database can't be reached, or refuses.
    """
    with sql.transaction(connection):
        sql.rows(connection, "begin_correction", organization=organization)
        if order.kind == "correct":
            sql.run(connection, "lock_wallet", organization=organization)
        else:
            sql.run(connection, "lock_baseline", organization=organization)
        found = _settled(compare(connection, organization), order.amount)  # a later snapshot than the lock
        amount = _correct(connection, found) if order.kind == "correct" else _accept(connection, found)
        sql.run(
            connection,
            "record_correction",
            made_by=order.given_by,
            reason=order.reason,
            kind=order.kind,
            organization=organization,
            wallet_id=found.comparison.wallet_id,
            difference=found.difference,
            amount=amount,
            explanation=_explanation(found.comparison),
        )
    rest = found.difference + amount if order.kind == "correct" else Decimal(0)
    if order.kind == "correct":
        wait(READ_AGAIN_SECONDS)
    after = compare(connection, organization)
    if after is None:
        raise RefusedError("the organization was deleted after the correction")
    with sql.transaction(connection):
        store(connection, after)
    return Correction(order.kind, amount, after, rest, overwritten=after.difference != rest)


def _settled(comparison: Comparison | None, amount: Decimal) -> _Settled:
    """Returns the difference of a wallet, or raises RefusedError unless it is the expected one and settled."""
    if comparison is None:
        raise RefusedError("the organization has been deleted")
    if comparison.difference is None or comparison.balance is None:
        raise RefusedError(f"there is nothing to compare: {comparison.not_compared}")
    if comparison.difference != amount:
        raise RefusedError(
            f"the difference is {comparison.difference}, not {amount}; look at it again with"
            f" `containerstacks-billing reconcile {comparison.organization_id}`"
        )
    if comparison.difference == 0:
        raise RefusedError("the wallet matches its transactions, so there is nothing to do")
    if comparison.unsettled:
        raise RefusedError(f"{comparison.unsettled}, so the difference may still change; try again later")
    return _Settled(comparison, comparison.balance, comparison.difference)


def _correct(connection: sql.Connection, found: _Settled) -> Decimal:
    """Changes the wallet to match its transactions, but not below zero. Returns the amount added to it."""
    amount = -min(found.difference, max(found.balance, Decimal(0)))
    if amount == 0:
        raise RefusedError(
            "the wallet is empty, so nothing can be taken from it; --accept adds the difference to the baseline"
        )
    moved = sql.optional_row(connection, "move_wallet", wallet_id=found.comparison.wallet_id, amount=amount)
    if moved is None or moved["balance"] != found.balance + amount:
        raise InconsistentError("the database dropped or changed the wallet's correction; look for triggers and rules")
    return amount


def _accept(connection: sql.Connection, found: _Settled) -> Decimal:
    """Adds the difference to the baseline. Returns the difference."""
    sql.row(connection, "move_baseline", wallet_id=found.comparison.wallet_id, amount=found.difference)
    return found.difference


def _explanation(comparison: Comparison) -> Jsonb:
    """Returns the explanation for its column, with amounts as text, because JSON numbers would round them."""
    return Jsonb({kind: str(amount) for kind, amount in comparison.explanation.items()})
