"""Proves that billing works, before the first heartbeat after a long silence.

A heartbeat pauses the application's own billing for 90 minutes. If the leader can't bill either, no customer is billed
in that time. So the leader first charges a few organizations in transactions that are rolled back.
"""

from collections.abc import Callable
from typing import Final

import psycopg

from controller.billing.errors import DeposedError, InconsistentError, StoppedError
from controller.billing.evidence import TRIALS
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, BatchResult, Leadership
from controller.errors import one_line
from controller.lifecycle.stop import StopToken

#: The failure reason of an instance with many unrecorded hours.
BACKLOG: Final = "backlog"
#: How many instances of each organization to try.
INSTANCES: Final = 100


def prove(connect: Callable[[], Ledger], leadership: Leadership, stop: StopToken) -> str | None:
    """Charges a few due organizations and rolls each transaction back. One organization that can be charged, or could
    be with a higher balance, is enough.

    An organization in backlog proves nothing: a rule keeps it from being charged, not a fault in its rows. If only such
    organizations are due, billing works as long as an instance exists that is not in backlog.

    Returns:
        None if billing would work or nothing is due; otherwise why the first organization can't be charged.

    Raises:
        DeposedError, GenerationError: the fence refused the term.
        StoppedError: this replica is being stopped.
        AccessError: this role can't see or write what billing needs.
        psycopg.Error: the session is lost.
    """
    ledger = connect()
    reason: str | None = None
    in_backlog = False
    with ledger.connection:
        ledger.check_access()
        for organization in ledger.sample_organizations(TRIALS):
            if not stop.may_start_batch():
                raise StoppedError("stopped before billing had proven that it works")
            if not leadership.still_leads():
                raise DeposedError(f"term {leadership.term} is over: the lock session is lost")
            try:
                result = _try(ledger, leadership.term, Batch(organization, organization, 1))
            except (psycopg.Error, InconsistentError) as error:
                if ledger.connection.closed:
                    raise
                reason = reason or one_line(error)
            else:
                if result.totals.instances or result.totals.debts:
                    return None
                others = (each for each in result.failures_by_reason if each != BACKLOG)
                reason = reason or next(others, None)
                in_backlog = in_backlog or BACKLOG in result.failures_by_reason
        if reason is None and in_backlog and not ledger.bills_others():
            return BACKLOG
    return reason


def _try(ledger: Ledger, term: int, batch: Batch) -> BatchResult:
    with ledger.fenced(term, keep=False, enforce=True):
        return ledger.charge(ledger.preview_run(term), batch, None, INSTANCES)
