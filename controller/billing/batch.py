"""One batch: its transactions, its retries, and the search for the organizations that can't be charged."""

import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

import psycopg
import structlog
from psycopg import errors

from controller.billing.errors import CycleFailedError, DeposedError, InconsistentError, StoppedError, is_transient
from controller.billing.evidence import FEWEST_ORGANIZATIONS, TRIALS, Evidence, signature
from controller.billing.ledger import Ledger
from controller.billing.pace import Pace
from controller.billing.sharing import Sharing
from controller.billing.values import Batch, BatchResult, ResumePoint, Run, Totals
from controller.errors import BillingError, one_line
from controller.generation import GenerationError
from controller.lifecycle.stop import StopToken

#: How often to try a transaction whose connection is lost. This leaves a server enough time to restart.
TRIES_LOST = 6
#: How often to try a transaction that conflicts with others. After that, splitting the batch isolates the organization.
TRIES_CONFLICT = 3
FIRST_BACK_OFF_SECONDS = 0.1
#: How many of the largest charges a dry run names.
LARGEST: Final = 10
#: A step that exceeds its statement timeout is tried again with this fraction of its rows, down to one row.
FEWER_ROWS = 8

T = TypeVar("T")
#: The id and the result of a transaction whose COMMIT has not been answered. Empty if there is none.
Unanswered = list[tuple[str, T]]

log = structlog.get_logger(part="billing")


@dataclass(frozen=True)
class CycleContext:
    """What all batches of a cycle share.

    Attributes:
        connect: opens a worker's session.
        stop: ends the waits between two tries.
        check: called before each transaction; raises if no further transaction may start.
        on_result: called with the result of each transaction, on the worker's thread.
        sharing: how many instances may share a transaction.
        evidence: decides whether an organization or the controller is at fault for a failure.
        dry: True rolls back what each batch did.
        pace: when workers pause; None for full speed.
        on_quiet: called between two parts of a paced cycle, while none of its transactions is open.
    """

    run: Run
    batch_size: int
    connect: Callable[[], Ledger]
    stop: StopToken
    check: Callable[[], None]
    on_result: Callable[[BatchResult], None]
    evidence: Evidence
    sharing: Sharing
    dry: bool = False
    pace: Pace | None = None
    on_quiet: Callable[[], None] = lambda: None

    def guard_due(self) -> bool:
        """Returns True if this cycle is paced and the guard waits for a moment without an open transaction."""
        return self.pace is not None and self.pace.guard_due()


class BatchWorker:
    """Charges batches one after the other, on its own session."""

    def __init__(self, context: CycleContext) -> None:
        self._context = context
        self._ledger: Ledger | None = None
        self._pause_seconds = 0.0

    def open(self) -> Ledger:
        """Opens the session, unless it is open.

        Raises:
            BillingError: PostgreSQL can't be reached, or refuses the session.
        """
        if self._ledger is None:
            self._ledger = self._context.connect()
        return self._ledger

    def charge(self, batch: Batch) -> list[Batch]:
        """Charges a batch. An organization that can't be charged is recorded as a failure; the others are charged.

        Returns:
            What is left of the batch if the guard is due, in order. Empty if the batch is done.

        Raises:
            CycleFailedError: the controller is at fault, not an organization.
            DeposedError: another replica leads.
            StoppedError: the drain's deadline has passed.
        """
        if batch.first_organization == batch.last_organization:
            return self._charge_alone(batch)
        parts = self._parts(batch)
        for done, part in enumerate(parts, start=1):
            error = self._try_charge(part)
            left = self._split(part, error) if error is not None else []
            if left or self._context.guard_due():
                return left + parts[done:]
        return []

    def fail(self, batch: Batch, reason: str, error: str) -> None:
        """Records a failure for each due instance of an organization after the batch's resume point."""
        context, organization = self._context, batch.first_organization
        without_row: tuple[UUID, ...] = ()
        refused = False
        unanswered: Unanswered[Totals] = []

        def count(ledger: Ledger, _attempt: int) -> Totals:
            nonlocal without_row
            without_row = (organization,)
            return self._commit_once(
                ledger, unanswered, lambda: ledger.count_failed_organization(context.run, batch, reason)
            )

        def record(ledger: Ledger, attempt: int) -> Totals:
            nonlocal refused
            if refused:  # locks or a conflict prevented the record; the failure still counts
                return count(ledger, attempt)
            try:
                return self._commit_once(
                    ledger, unanswered, lambda: ledger.record_failed_organization(context.run, batch, reason, error)
                )
            except (psycopg.Error, InconsistentError):
                refused = not ledger.connection.closed  # after a lost session, try again
                raise

        log.debug("organization.failed", organization=str(organization), reason=reason, error=error)
        try:
            totals = self._with_retries(record)
        except (psycopg.Error, InconsistentError) as unrecorded:
            log.debug("failure.unrecorded", organization=str(organization), error=one_line(unrecorded))
            try:
                totals = self._with_retries(count)  # can't write the reason either; charge the others
            except psycopg.Error as uncounted:  # the controller's own tables can't be written
                raise CycleFailedError(one_line(uncounted)) from uncounted
        context.on_result(
            BatchResult(
                totals,
                totals.failures,
                failures_by_reason={reason: totals.failures},
                unrecorded=without_row,
                failed={organization: f"{reason}: {error}"},
            )
        )

    def close(self) -> None:
        """Closes the session."""
        if self._ledger is not None:
            with suppress(psycopg.Error):
                self._ledger.connection.close()
            self._ledger = None

    def _parts(self, batch: Batch) -> list[Batch]:
        """Divides a batch if it has more instances than may currently share a transaction."""
        parts = self._context.sharing.parts(batch.instances)
        if parts <= 1:
            return [batch]
        due = self._with_retries(lambda ledger, _: ledger.due_organizations(self._context.run, batch))
        length = max(1, len(due) // parts)
        chunks = [due[start : start + length] for start in range(0, len(due), length)]
        return [Batch(each[0], each[-1], batch.instances * len(each) // len(due)) for each in chunks]

    def _try_charge(self, batch: Batch) -> Exception | None:
        """Charges a batch in one transaction. Returns the error if that fails even after retries."""
        try:
            self._charge_with_retries(batch, [], None)
        except (psycopg.Error, InconsistentError) as error:
            return error
        return None

    def _split(self, batch: Batch, error: Exception) -> list[Batch]:
        """Charges the two halves of a failed batch separately, and splits again the half that fails.

        If both halves fail, several organizations do, so all of them are charged one at a time. Returns what is left if
        the guard is due.
        """
        organizations = self._with_retries(lambda ledger, _: ledger.due_organizations(self._context.run, batch))
        while len(organizations) > 1:
            log.debug("batch.split", organizations=len(organizations), error=one_line(error))
            middle = len(organizations) // 2
            halves = [organizations[:middle], organizations[middle:]]
            failed = []
            for half in halves:
                if (half_error := self._try_charge(Batch(half[0], half[-1], 0))) is not None:
                    failed.append(half)
                    error = half_error
            if len(failed) != 1:
                break
            organizations = failed[0]
        else:
            failed = [organizations]
        alone = [Batch(each, each, 0) for half in failed for each in half]
        for done, single in enumerate(alone, start=1):
            left = self._charge_alone(single)
            if left or self._context.guard_due():
                return left + alone[done:]
        return []

    def _charge_alone(self, batch: Batch) -> list[Batch]:
        """Charges one organization. If that fails, finds out whether it or the controller is at fault.

        Returns what is left if the guard is due.
        """
        context, organization = self._context, batch.first_organization
        results: list[BatchResult] = []  # kept across failed tries, so that committed results count once
        limit = batch.limit or (context.batch_size if batch.large else None)
        while True:
            try:
                complete = self._charge_with_retries(batch, results, limit)
            except (psycopg.Error, InconsistentError) as error:
                failure = error
            else:
                return [] if complete else [replace(batch, after=_resume_point(batch, results), limit=limit)]
            if not isinstance(failure, errors.QueryCanceled) or limit == 1:
                break
            # the step took longer than its statement timeout
            limit = max(1, (limit or context.batch_size) // FEWER_ROWS)
            log.debug("batch.shortened", organization=str(organization), rows=limit)
        if not batch.failed_before and context.evidence.controller_at_fault(
            lambda: self._others_fail_alike(organization, failure)
        ):
            raise CycleFailedError(one_line(failure)) from failure
        locked = isinstance(failure, errors.LockNotAvailable)
        self.fail(
            replace(batch, after=_resume_point(batch, results)), "locked" if locked else "error", one_line(failure)
        )
        return []

    def _others_fail_alike(self, organization: UUID, failure: Exception) -> bool:
        """Tries other organizations alone and rolls them back. Returns True if they fail like this one.

        An organization that fails for a known reason, such as a missing wallet, proves nothing. If half of the tried
        organizations fail for known reasons, too few are left to blame the controller.
        """
        context, alike = self._context, 0
        others = self._with_retries(
            lambda ledger, _: ledger.sample_organizations(TRIALS, as_of=context.run.as_of, without=organization)
        )
        if len(others) + 1 < FEWEST_ORGANIZATIONS:
            return False

        def charge_one(other: UUID, ledger: Ledger, _attempt: int) -> BatchResult:
            with ledger.fenced(context.run.term, keep=False):
                return ledger.charge(context.run, Batch(other, other, 1), None, limit=1)

        for other in others:
            try:
                result = self._with_retries(partial(charge_one, other), tries=1)
            except (psycopg.Error, InconsistentError) as error:
                if signature(error) != signature(failure):
                    return False
                alike += 1
            else:
                if result.totals.instances or result.totals.debts:
                    return False
        log.debug("failure.tried_others", organizations=len(others), alike=alike, error=one_line(failure))
        return alike + 1 >= FEWEST_ORGANIZATIONS and 2 * alike > len(others)

    def _charge_with_retries(self, batch: Batch, results: list[BatchResult], limit: int | None) -> bool:
        """Charges a batch as `_charge` does, and tries again as long as that may help."""
        unanswered: Unanswered[BatchResult] = []

        def charge(ledger: Ledger, attempt: int) -> bool:
            lock_first = batch.locked_by_others or attempt > 0
            return self._charge(ledger, batch, results, limit, unanswered, lock_first=lock_first)

        return self._with_retries(charge)

    def _charge(
        self,
        ledger: Ledger,
        batch: Batch,
        results: list[BatchResult],
        limit: int | None,
        unanswered: Unanswered[BatchResult],
        *,
        lock_first: bool,
    ) -> bool:
        """Charges a batch in steps of at most `limit` rows, each in its own transaction.

        Stops early if another session has locked rows of a large organization, because the later rows must not be
        charged before the locked ones.

        Returns:
            False if it stopped because the guard is due. The batch continues after the last result.
        """
        context = self._context

        def charge_step(after: ResumePoint | None) -> BatchResult:
            if context.dry and results:  # the earlier steps were rolled back
                spent = sum((each.totals.amount for each in results), Decimal(0))
                ledger.take_from_wallet(batch.first_organization, spent)
            charged = ledger.charge(context.run, batch, after, limit, lock_first=lock_first)
            return replace(charged, largest=ledger.largest_charges(LARGEST)) if context.dry else charged

        while True:
            self._pause()
            after = _resume_point(batch, results)
            with context.pace.turn() if context.pace is not None else nullcontext():
                context.check()  # after the wait for the turn
                began = time.monotonic()
                result = self._commit_once(ledger, unanswered, partial(charge_step, after))
                seconds = time.monotonic() - began
            if batch.first_organization != batch.last_organization:
                context.sharing.observe(seconds, result.due)
            if context.pace is not None:
                self._pause_seconds = context.pace.pause_after(seconds, result.due)
            if result.last is None or result.locked_by_others:
                result = replace(result, last=after)
            results.append(result)
            context.on_result(result)
            if limit is None or result.due < limit or result.locked_by_others:
                return True
            if context.guard_due():
                return False

    def _pause(self) -> None:
        """Pauses after the last transaction, as the cycle's pace requires."""
        seconds, self._pause_seconds = self._pause_seconds, 0.0
        if seconds > 0:
            self._context.stop.pause(seconds)

    def _commit_once(self, ledger: Ledger, unanswered: Unanswered[T], work: Callable[[], T]) -> T:
        """Does the work in a fenced transaction and returns its result.

        If the session of an earlier attempt was lost during its COMMIT, the server says whether that attempt committed.
        If so, its result is returned, because a second attempt would count the same debts and failures again.
        """
        context = self._context
        if unanswered:
            transaction_id, result = unanswered[0]
            committed = ledger.has_committed(transaction_id)  # keeps the id if it can't tell yet
            unanswered.clear()
            if committed:
                return result
        with ledger.fenced(context.run.term, keep=not context.dry, needs_heartbeat=True):
            result = work()
            if ledger.transaction_id is not None and not context.dry:
                unanswered.append((ledger.transaction_id, result))
        unanswered.clear()
        return result

    def _with_retries(self, action: Callable[[Ledger, int], T], tries: int = TRIES_CONFLICT) -> T:
        """Runs an action until it succeeds or fails for good. It receives the number of failed attempts so far.

        Args:
            action: one or more transactions.
            tries: how often to try an action that conflicts with other sessions.

        Raises:
            CycleFailedError: no session can be opened.
            psycopg.Error, InconsistentError: the action fails.
        """
        for attempt in range(TRIES_LOST):
            self._context.check()
            opened = False
            try:
                ledger = self.open()
                opened = True
                return action(ledger, attempt)
            except (DeposedError, GenerationError, StoppedError, CycleFailedError):
                raise
            except (psycopg.Error, BillingError) as error:
                lost = self._ledger is None or self._ledger.connection.closed
                if lost:
                    self.close()
                if not is_transient(error):
                    raise
                if not lost and isinstance(error, (psycopg.Error, InconsistentError)):
                    if attempt >= tries - 1:
                        raise
                elif attempt == TRIES_LOST - 1:
                    if opened:  # something in these rows may end the session
                        raise
                    raise CycleFailedError(one_line(error)) from error
                log.debug("batch.retried", attempt=attempt + 1, error=one_line(error))
                jitter = 0.5 + random.random()  # noqa: S311 - not for cryptography
                self._context.stop.wait(FIRST_BACK_OFF_SECONDS * 2**attempt * jitter)
        raise AssertionError("unreachable: the last attempt returns or raises")


def _resume_point(batch: Batch, results: Sequence[BatchResult]) -> ResumePoint | None:
    """Returns the point from which a batch continues after its earlier steps."""
    return results[-1].last if results else batch.after
