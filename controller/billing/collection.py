"""Collections: the leader collects debts that a wallet can pay after a top-up.

It does so between two cycles, and during a paced one. A collection charges each organization in a separate transaction,
on the ordered path of a cycle. It is a run only if it charges something. If an organization can't be charged now, the
next cycle records the reason.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg
import structlog

from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, BatchResult, Leadership, Outcome, ResumePoint, Run, Totals
from controller.errors import BillingError, one_line
from controller.generation import GenerationError
from controller.lifecycle.stop import StopToken

#: A collection stops after this time. The loop looks for commands and other billers before it continues.
LONGEST_SECONDS: Final = 5.0
#: Instances in one transaction.
BATCH_SIZE: Final = 1000

log = structlog.get_logger(part="billing")


@dataclass(frozen=True)
class Collected:
    """What a collection has charged. `complete` is False if it ended before it had tried every organization."""

    totals: Totals
    complete: bool = True


class _NothingCollectedError(BillingError):
    """The organization could not pay, so its transaction is rolled back."""


class Collector:
    """Collects debts under one leadership.

    Args:
        ledger: a ledger on the leader's session.
        leadership: the leadership that it works under.
        stop: checked before each organization.
        seconds: time until the next cycle is due; the collection ends before that.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        leadership: Leadership,
        stop: StopToken,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._leadership = leadership
        self._stop = stop
        self._clock = clock
        self._deadline = clock() + min(seconds, LONGEST_SECONDS)
        self._run: Run | None = None

    def collect(self) -> Collected:
        """Charges every organization that can pay at least one owed hour.

        Raises:
            DeposedError, GenerationError: the fence refused the term.
            psycopg.Error: the session is lost.
        """
        totals, complete = Totals(), True
        for organization in self._ledger.payable_organizations():
            if not self._may_continue():
                complete = False
                break
            totals += self._collect_from(organization)
        if self._run is not None:
            log.info(
                "debts.collected",
                run=self._run.id,
                instances=totals.instances,
                hours=totals.hours,
                amount=str(totals.amount),
            )
        return Collected(totals, complete)

    def _may_continue(self) -> bool:
        in_time = self._clock() < self._deadline
        return in_time and self._leadership.still_leads() and self._stop.may_start_cycle()

    def _collect_from(self, organization: UUID) -> Totals:
        totals, after, more = Totals(), None, True
        try:
            while more and self._may_continue():
                result = self._charge(organization, after)
                totals += result.totals
                after, more = result.last, result.due == BATCH_SIZE and not result.locked_by_others
        except (DeposedError, GenerationError):
            raise
        except (psycopg.Error, BillingError) as error:
            if self._ledger.connection.closed:
                raise
            if not isinstance(error, _NothingCollectedError):
                log.debug("collection.skipped", organization=str(organization), error=one_line(error))
        return totals

    def _charge(self, organization: UUID, after: ResumePoint | None) -> BatchResult:
        """Charges an organization in one transaction.

        The first transaction begins the run, and each one finishes it, so no run stays open if the session is lost.
        """
        term = self._leadership.term
        with self._ledger.fenced(term, needs_heartbeat=True):
            run = self._run or self._ledger.begin_collection(term)
            result = self._ledger.charge(run, Batch(organization, organization, 0), after, BATCH_SIZE, lock_first=True)
            if not result.totals.instances:
                raise _NothingCollectedError("the wallet can't pay an owed hour")
            self._ledger.finish_run(run, Outcome.COMPLETED, None)
        self._run = run
        for instance in result.rewound:
            log.warning("instance.rewound", **instance)
        return result
