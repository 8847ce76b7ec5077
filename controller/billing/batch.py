"""One batch: its transactions, its retries, and the search for the organization that spoils it."""

import random
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import errors

from controller.billing.errors import DeposedError, Fault, InconsistentError, classify
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, BatchResult, Run, Totals
from controller.errors import BillingError

#: Tries of a transaction: on a lost connection, which a restarting server needs; and on a conflict with others, after
#: which halving finds out whose it is.
TRIES_LOST = 6
TRIES_CONFLICT = 3
FIRST_BACK_OFF_SECONDS = 0.1

T = TypeVar("T")

log = structlog.get_logger(part="billing")


class CycleFailedError(BillingError):
    """The cycle can't go on for a reason that lies with us or the server, not with an organization's data."""


@dataclass(frozen=True)
class CycleContext:
    """What every batch of a cycle shares.

    Attributes:
        checkpoint: called before each transaction; raises when no further one may be started.
        pause: waits for some seconds, less when the cycle is to end.
        on_charged: told of each transaction, on the worker's thread.
        dry: roll back what each batch did.
    """

    run: Run
    batch_size: int
    connect: Callable[[], Ledger]
    checkpoint: Callable[[], None]
    pause: Callable[[float], None]
    on_charged: Callable[[BatchResult], None]
    dry: bool = False


class BatchWorker:
    """Charges batches, one after the other, on a session of its own."""

    def __init__(self, work: CycleContext) -> None:
        self._work = work
        self._ledger: Ledger | None = None

    def charge(self, batch: Batch) -> None:
        """Charges a batch, whatever single organizations do to it.

        Raises:
            CycleFailedError: trying again and halving do not help.
            DeposedError: another replica leads.
        """
        done: list[BatchResult] = []  # outlives a try: what it has committed is not counted again
        try:
            self._retried(
                lambda ledger, attempt: self._charge(
                    ledger, batch, done, lock_first=batch.locked_by_others or attempt > 0
                )
            )
        except (psycopg.Error, InconsistentError) as error:
            if classify(error) is Fault.OURS:
                raise CycleFailedError(_text(error)) from error
            self._halve(batch, error)

    def fail(self, organization: UUID, reason: str, error: str) -> None:
        """Records that an organization could not be charged, on each of its instances that is due."""

        def count(ledger: Ledger, _attempt: int) -> Totals:
            with ledger.fenced(self._work.run.term, keep=not self._work.dry):
                return ledger.count_failed_organization(self._work.run, organization)

        def record(ledger: Ledger, attempt: int) -> Totals:
            if attempt > 0:  # whoever holds its rows keeps us from writing to them; it counts all the same
                return count(ledger, attempt)
            with ledger.fenced(self._work.run.term, keep=not self._work.dry):
                return ledger.record_failed_organization(self._work.run, organization, reason, error)

        log.warning("organization.failed", organization=str(organization), reason=reason, error=error)
        try:
            figures = self._retried(record)
        except (psycopg.Error, InconsistentError) as unwritten:
            if classify(unwritten) is Fault.OURS:
                raise CycleFailedError(_text(unwritten)) from unwritten
            log.warning("failure.unrecorded", organization=str(organization), error=_text(unwritten))
            figures = self._retried(count)  # its rows refuse even the reason: no cause to stop the others
        self._work.on_charged(BatchResult(figures, figures.failures, failures_by_reason={reason: figures.failures}))

    def close(self) -> None:
        """Gives the session back."""
        if self._ledger is not None:
            with suppress(psycopg.Error):
                self._ledger.connection.close()
            self._ledger = None

    def _charge(self, ledger: Ledger, batch: Batch, done: list[BatchResult], *, lock_first: bool) -> None:
        """A large organization takes several transactions; a dry run needs them to see each other, so has one."""
        term, limit, dry = self._work.run.term, self._work.batch_size if batch.large else None, self._work.dry
        if dry:
            done.clear()
        with ledger.fenced(term, keep=False) if dry else nullcontext():
            while True:
                self._work.checkpoint()
                with nullcontext() if dry else ledger.fenced(term):
                    after = done[-1].last if done else None
                    step = ledger.charge(self._work.run, batch, after, limit, lock_first=lock_first)
                done.append(step)
                if not dry:
                    self._work.on_charged(step)
                if limit is None or step.due < limit:
                    break
        if dry:
            for step in done:
                self._work.on_charged(step)

    def _retried(self, action: Callable[[Ledger, int], T]) -> T:
        """Runs an action, which is told how often it has failed, until it succeeds or fails for good."""
        for attempt in range(TRIES_LOST):
            self._work.checkpoint()
            try:
                if self._ledger is None:
                    self._ledger = self._work.connect()
                return action(self._ledger, attempt)
            except DeposedError:
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
                    raise CycleFailedError(_text(error)) from error
                log.debug("batch.retried", attempt=attempt + 1, error=_text(error))
                self._work.pause(FIRST_BACK_OFF_SECONDS * 2**attempt * (0.5 + random.random()))  # noqa: S311 - jitter
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _halve(self, batch: Batch, error: Exception) -> None:
        """Charges the two halves of a batch apart; a single organization is at fault itself."""
        organizations = self._retried(lambda ledger, _: ledger.due_organizations(self._work.run, batch))
        if not organizations:  # deleted, or paid by the application, meanwhile
            return
        if len(organizations) == 1:
            locked = isinstance(error, errors.LockNotAvailable)
            self.fail(organizations[0], "locked" if locked else "error", _text(error))
            return
        log.debug("batch.halved", organizations=len(organizations), error=_text(error))
        middle = len(organizations) // 2
        for half in (organizations[:middle], organizations[middle:]):
            self.charge(Batch(half[0], half[-1], batch.instances // 2))


def _text(error: BaseException) -> str:
    """The first line of an error; what follows is the server's context."""
    return str(error).split("\n", 1)[0] or type(error).__name__
