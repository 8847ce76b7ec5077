"""One batch: its transactions, its retries, and the search for the organizations that can't be charged."""

import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import errors

from controller.billing.errors import (
    CycleFailedError,
    DeposedError,
    Fault,
    InconsistentError,
    StoppedError,
    classify,
)
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, BatchResult, Run, Totals
from controller.errors import BillingError, one_line
from controller.lifecycle.stop import StopToken

#: Tries of a transaction whose connection is lost: enough for a server to restart.
TRIES_LOST = 6
#: Tries of a transaction that conflicts with others. After that, splitting the batch finds the organization concerned.
TRIES_CONFLICT = 3
FIRST_BACK_OFF_SECONDS = 0.1

T = TypeVar("T")

log = structlog.get_logger(part="billing")


@dataclass(frozen=True)
class CycleContext:
    """What all batches of a cycle share.

    Attributes:
        connect: opens a worker's session.
        stop: ends the waits between two tries.
        check: called before each transaction; raises if no further one may start.
        on_result: called with the result of each transaction, on the worker's thread.
        dry: True rolls back what each batch did.
    """

    run: Run
    batch_size: int
    connect: Callable[[], Ledger]
    stop: StopToken
    check: Callable[[], None]
    on_result: Callable[[BatchResult], None]
    dry: bool = False


class BatchWorker:
    """Charges batches one after the other, on its own session."""

    def __init__(self, context: CycleContext) -> None:
        self._context = context
        self._ledger: Ledger | None = None

    def charge(self, batch: Batch) -> None:
        """Charges a batch. An organization that can't be charged is recorded as a failure; the others are charged.

        Raises:
            CycleFailedError: neither trying again nor splitting the batch helps.
            DeposedError: another replica leads.
            StoppedError: the drain's deadline has passed.
        """
        results: list[BatchResult] = []  # survives a failed try, so that nothing that has been committed counts twice
        try:
            self._with_retries(
                lambda ledger, attempt: self._charge(
                    ledger, batch, results, lock_first=batch.locked_by_others or attempt > 0
                )
            )
        except (psycopg.Error, InconsistentError) as error:
            if classify(error) is Fault.OURS:
                raise CycleFailedError(one_line(error)) from error
            self._split(batch, error)

    def fail(self, organization: UUID, reason: str, error: str) -> None:
        """Records, on each due instance of an organization, that it could not be charged."""

        def count(ledger: Ledger, _attempt: int) -> Totals:
            with ledger.fenced(self._context.run.term, keep=not self._context.dry):
                return ledger.count_failed_organization(self._context.run, organization)

        def record(ledger: Ledger, attempt: int) -> Totals:
            if attempt > 0:  # another session's locks also prevent us from recording the failure, but it still counts
                return count(ledger, attempt)
            with ledger.fenced(self._context.run.term, keep=not self._context.dry):
                return ledger.record_failed_organization(self._context.run, organization, reason, error)

        log.warning("organization.failed", organization=str(organization), reason=reason, error=error)
        try:
            totals = self._with_retries(record)
        except (psycopg.Error, InconsistentError) as unrecorded:
            if classify(unrecorded) is Fault.OURS:
                raise CycleFailedError(one_line(unrecorded)) from unrecorded
            log.warning("failure.unrecorded", organization=str(organization), error=one_line(unrecorded))
            totals = self._with_retries(count)  # its rows refuse even the reason, which must not stop the others
        self._context.on_result(BatchResult(totals, totals.failures, failures_by_reason={reason: totals.failures}))

    def close(self) -> None:
        """Closes the session."""
        if self._ledger is not None:
            with suppress(psycopg.Error):
                self._ledger.connection.close()
            self._ledger = None

    def _charge(self, ledger: Ledger, batch: Batch, results: list[BatchResult], *, lock_first: bool) -> None:
        """Charges a large organization in several transactions, unless the run is dry.

        In a dry run each step must see what the earlier steps did, so one transaction holds them all.
        """
        context = self._context
        term, limit, dry = context.run.term, context.batch_size if batch.large else None, context.dry
        if dry:
            results.clear()
        with ledger.fenced(term, keep=False) if dry else nullcontext():
            while True:
                context.check()
                with nullcontext() if dry else ledger.fenced(term):
                    after = results[-1].last if results else None
                    result = ledger.charge(context.run, batch, after, limit, lock_first=lock_first)
                results.append(result)
                if not dry:
                    context.on_result(result)
                if limit is None or result.due < limit:
                    break
        if dry:
            for result in results:
                context.on_result(result)

    def _with_retries(self, action: Callable[[Ledger, int], T]) -> T:
        """Runs an action until it succeeds or fails for good. It receives the number of failed attempts so far."""
        for attempt in range(TRIES_LOST):
            self._context.check()
            try:
                if self._ledger is None:
                    self._ledger = self._context.connect()
                return action(self._ledger, attempt)
            except (DeposedError, StoppedError, CycleFailedError):
                raise
            except (psycopg.Error, BillingError) as error:
                lost = self._ledger is None or self._ledger.connection.closed
                if lost:
                    self.close()
                if classify(error) is not Fault.TRANSIENT:
                    raise
                if not lost and isinstance(error, (psycopg.Error, InconsistentError)):
                    if attempt >= TRIES_CONFLICT - 1:
                        raise
                elif attempt == TRIES_LOST - 1:
                    raise CycleFailedError(one_line(error)) from error
                log.debug("batch.retried", attempt=attempt + 1, error=one_line(error))
                jitter = 0.5 + random.random()  # noqa: S311 - not for cryptography
                self._context.stop.wait(FIRST_BACK_OFF_SECONDS * 2**attempt * jitter)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _split(self, batch: Batch, error: Exception) -> None:
        """Charges the two halves of a failed batch separately. An organization that fails alone is at fault itself."""
        organizations = self._with_retries(lambda ledger, _: ledger.due_organizations(self._context.run, batch))
        if not organizations:  # in the meantime they were deleted, or the application charged them
            return
        if len(organizations) == 1:
            locked = isinstance(error, errors.LockNotAvailable)
            self.fail(organizations[0], "locked" if locked else "error", one_line(error))
            return
        log.debug("batch.split", organizations=len(organizations), error=one_line(error))
        middle = len(organizations) // 2
        for half in (organizations[:middle], organizations[middle:]):
            self.charge(Batch(half[0], half[-1], batch.instances // 2))
