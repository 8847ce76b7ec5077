"""The check after each cycle: compares the wallets that another program has changed with their transactions.

Each charge keeps the balance that it leaves, and notes a wallet that holds another balance at the next charge. Only
these wallets are compared here, outside any batch. A difference is stored in `billing_wallet_differences` and logged
once. It suspends no organization, because the application may change wallets.
"""

import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

import psycopg
import structlog

from controller import sql
from controller.billing.ledger import Ledger
from controller.billing.reconcile import Comparison, compare, store
from controller.errors import one_line

#: The most wallets compared after one cycle. The others are compared after the next cycle.
MOST_WALLETS: Final = 500
#: No comparison starts after this time, so that the next cycle is not delayed.
MOST_SECONDS: Final = 20.0

log = structlog.get_logger(part="guard")


def compare_changed_wallets(
    ledger: Ledger,
    term: int,
    may_continue: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Compares the changed wallets, the oldest change first, and those with a known difference.

    Args:
        ledger: a ledger on the guard's session.
        term: the leader's term.
        may_continue: checked before each wallet.
        clock: monotonic seconds.

    Raises:
        DeposedError, GenerationError: the fence refused the term.
        psycopg.Error: the session is lost.
    """
    give_up_at = clock() + MOST_SECONDS
    for row in sql.rows(ledger.connection, "wallets_to_compare", limit=MOST_WALLETS):
        if not may_continue() or clock() >= give_up_at:
            return
        _compare_one(ledger, term, row["organization_id"])


def _compare_one(ledger: Ledger, term: int, organization: UUID) -> None:
    try:
        compared = compare(ledger.connection, organization)
    except psycopg.Error as error:
        if ledger.connection.closed:
            raise
        log.warning("wallet.not_compared", organization=str(organization), error=one_line(error))
        with ledger.fenced(term):
            sql.run(ledger.connection, "postpone_comparison", organization=organization)
        return
    with ledger.fenced(term):
        if compared is None:
            sql.run(ledger.connection, "forget_comparison", organization=organization)
            new = False
        else:
            new = store(ledger.connection, compared)
    if compared is not None and new:
        _report(compared)


def _report(compared: Comparison) -> None:
    log.warning(
        "wallet.mismatched",
        organization=str(compared.organization_id),
        difference=str(compared.difference),
        explanation={kind: str(amount) for kind, amount in compared.explanation.items()},
        remedy=f"see `containerstacks-billing reconcile {compared.organization_id}`",
    )
