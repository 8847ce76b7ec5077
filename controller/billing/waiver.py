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

log = structlog.get_logger(part="billing")


class _NothingWaivedError(BillingError):
    """No unpaid whole hours were found, so the run is rolled back."""


def carry_out_waivers(ledger: Ledger, leadership: Leadership, batch_size: int = BATCH_SIZE) -> None:
    """Carries out every open `waive`. If one fails for a temporary reason, it stays open; otherwise it is refused.

    Args:
        ledger: on the leader's session.
        leadership: under which it works.
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
    instances = hours = 0
    while True:
        with ledger.fenced(term, needs_heartbeat=True):
            run = run or ledger.begin_waiver(term, waiver["id"])
            done = ledger.waive(run, waiver, after, batch_size)
            after, instances, hours = done["last_id"], instances + done["instances"], hours + done["hours"]
            finished = done["due"] < batch_size
            if finished and not instances:
                raise _NothingWaivedError("there are no unpaid whole hours with a price to waive")
            if finished:
                ledger.finish_run(run, Outcome.COMPLETED, None)
                sql.run(ledger.connection, "finish_command", id=waiver["id"], refusal=None)
        if finished:
            log.info("hours.waived", run=run.id, instances=instances, hours=hours, given_by=waiver["given_by"])
            return


def _refuse(ledger: Ledger, term: int, waiver: dict[str, Any], reason: str) -> None:
    log.warning("waiver.refused", command=waiver["id"], reason=reason)
    with ledger.fenced(term):
        sql.run(ledger.connection, "finish_command", id=waiver["id"], refusal=reason)
