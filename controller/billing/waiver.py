"""Waivers: the leader writes off hours that an operator has told it to waive, between two cycles."""

from typing import Any, Final
from uuid import UUID

import psycopg
import structlog

from controller import sql
from controller.billing.errors import DeposedError, InconsistentError, is_transient
from controller.billing.ledger import Ledger
from controller.billing.values import Leadership, Outcome, Run
from controller.errors import BillingError, one_line
from controller.generation import GenerationError

#: Instances in one transaction.
BATCH_SIZE: Final = 1000
#: How often to try a transaction whose rows another program changes at the same time.
TRIES: Final = 3

log = structlog.get_logger(part="billing")


class _NothingWaivedError(BillingError):
    """No unpaid whole hours were found, so the run is rolled back."""


def carry_out_waivers(ledger: Ledger, leadership: Leadership, batch_size: int = BATCH_SIZE) -> None:
    """Carries out every open `waive`. If one fails for a temporary reason, it stays open; otherwise it is refused.

    A waiver that was interrupted continues: hours that it has waived are no longer due, and its end does not move.

    Args:
        ledger: a ledger on the leader's session.
        leadership: the leadership that it works under.
        batch_size: instances in one transaction.

    Raises:
        DeposedError, GenerationError: the fence refused the term.
        psycopg.Error: the session is lost.
    """
    for waiver in sql.rows(ledger.connection, "waivers"):
        try:
            _carry_out(ledger, leadership.term, waiver, batch_size)
        except (DeposedError, GenerationError):
            raise
        except _NothingWaivedError as nothing:
            _refuse(ledger, leadership.term, waiver, str(nothing))
        except (psycopg.Error, BillingError) as error:
            if ledger.connection.closed:
                raise
            if is_transient(error) and not isinstance(error, InconsistentError):
                log.warning("waiver.delayed", command=waiver["id"], error=one_line(error))
            else:
                _refuse(ledger, leadership.term, waiver, one_line(error))


def _carry_out(ledger: Ledger, term: int, waiver: dict[str, Any], batch_size: int) -> None:
    run: Run | None = None
    after: UUID | None = None
    finished, tries = False, 0
    while not finished:
        try:
            with ledger.fenced(term, needs_heartbeat=True):
                begun = run or ledger.begin_waiver(term, waiver["id"])
                done = ledger.waive(begun, waiver, after, batch_size)
                ledger.finish_run(begun, Outcome.COMPLETED, None)
                if finished := done["due"] < batch_size:
                    waived = sql.row(ledger.connection, "waived", id=waiver["id"])
                    if not waived["instances"]:
                        raise _NothingWaivedError("there are no unpaid whole hours with a price to waive")
                    sql.run(ledger.connection, "finish_command", id=waiver["id"], refusal=None)
        except InconsistentError:
            tries += 1
            if tries == TRIES:
                raise
        else:
            run, after, tries = begun, done["last_id"], 0
    log.info("hours.waived", run=begun.id, given_by=waiver["given_by"], **{**waived, "amount": str(waived["amount"])})


def _refuse(ledger: Ledger, term: int, waiver: dict[str, Any], reason: str) -> None:
    """Finishes a command that can't be carried out. The reason says what has been waived before."""
    waived = sql.row(ledger.connection, "waived", id=waiver["id"])
    if waived["instances"]:
        reason = (
            f"waived {waived['hours']} hours of {waived['instances']} instances, and failed for the others: {reason}"
        )
    log.warning("waiver.refused", command=waiver["id"], reason=reason)
    with ledger.fenced(term):
        sql.run(ledger.connection, "finish_command", id=waiver["id"], refusal=reason)
