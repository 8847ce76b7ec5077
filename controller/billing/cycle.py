"""One cycle: a plan, workers that charge its batches, and the history row that tells how it went."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from uuid import UUID

import psycopg
import structlog

from controller.billing.batch import BatchWorker, CycleContext, CycleFailedError
from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, BatchResult, CycleResult, Leadership, Outcome, Run, Totals
from controller.errors import BillingError

#: Waits between the tries for organizations that someone else holds a lock on.
LOCKED_BACK_OFF_SECONDS = (0.25, 0.5, 1.0, 2.0)

#: So many instances without a priced plan are named in a cycle's log.
NAMED_WARNINGS = 50

log = structlog.get_logger(part="billing")


class StoppedError(BillingError):
    """A drain's deadline has passed: no further batch."""


@dataclass(frozen=True)
class CycleSettings:
    """How a cycle goes about it; see docs/configuration.md."""

    workers: int = 2
    batch_size: int = 3000
    retention_days: int = 30


class Cycle:
    """Runs cycles.

    Args:
        connect: opens a session in autocommit mode, for the plan and the history.
        connect_worker: opens a worker's.
        may_go_on: False when a drain's deadline has passed.
        pause: waits for some seconds, less when there is a reason to look up.
    """

    def __init__(
        self,
        connect: Callable[[], Ledger],
        connect_worker: Callable[[], Ledger],
        settings: CycleSettings,
        may_go_on: Callable[[], bool],
        pause: Callable[[float], None],
    ) -> None:
        self._connect = connect
        self._connect_worker = connect_worker
        self._settings = settings
        self._may_go_on = may_go_on
        self._pause = pause

    def run(
        self,
        leadership: Leadership,
        *,
        dry: bool = False,
        on_planned: Callable[[int], None] = lambda _instances: None,
        on_charged: Callable[[BatchResult], None] = lambda _charged: None,
    ) -> CycleResult:
        """Charges everything that is due now. Expected ends, a failure among them, are results and not exceptions.

        Args:
            leadership: under which it works.
            dry: the same statements, each batch rolled back; leaves no trace and needs no lock.
            on_planned: told how many instances are due.
            on_charged: told of each transaction, on a worker's thread.
        """
        began = time.monotonic()
        done = _Done()
        run: Run | None = None
        outcome, error = Outcome.COMPLETED, None
        try:
            ledger = self._connect()
            with ledger.connection:
                with ledger.fenced(leadership.term, keep=not dry):
                    run = ledger.begin_run(leadership.term)
                plan = ledger.plan(run, self._settings.batch_size)
            on_planned(sum(batch.instances for batch in plan))
            work = CycleContext(
                run=run,
                batch_size=self._settings.batch_size,
                connect=self._connect_worker,
                checkpoint=lambda: self._checkpoint(leadership, done),
                pause=self._pause,
                on_charged=done.noting(on_charged),
                dry=dry,
            )
            self._charge(work, plan, done)
        except DeposedError as deposed:
            outcome, error = Outcome.DEPOSED, str(deposed)
        except StoppedError as stopped:
            outcome, error = Outcome.STOPPED, str(stopped)
        except (psycopg.Error, BillingError) as failed:
            outcome, error = Outcome.FAILED, _first_line(failed)
        figures = done.figures
        if run is not None and not dry and outcome is not Outcome.DEPOSED:
            try:
                figures = self._finish(run, outcome, error)
            except DeposedError as deposed:
                outcome, error = Outcome.DEPOSED, str(deposed)
            except (psycopg.Error, BillingError) as failed:
                outcome, error = Outcome.FAILED, error or f"its end could not be recorded: {_first_line(failed)}"
        return CycleResult(outcome, figures, time.monotonic() - began, run, error, dict(done.failures_by_reason))

    def _checkpoint(self, leadership: Leadership, done: "_Done") -> None:
        """Raises when no further transaction may be started."""
        if done.failure is not None:
            raise CycleFailedError("another worker of this cycle failed")
        if not leadership.still_leads():
            raise DeposedError(f"term {leadership.term} is over: the lock session is lost")
        if not self._may_go_on():
            raise StoppedError("stopped by a drain's deadline; the next cycle goes on from here")

    def _charge(self, work: CycleContext, plan: Sequence[Batch], done: "_Done") -> None:
        self._spread(work, plan, done)
        for seconds in LOCKED_BACK_OFF_SECONDS:
            if not (locked := done.take_locked()):
                return
            self._pause(seconds)
            self._spread(work, locked, done)
        worker = BatchWorker(work)
        try:
            for batch in done.take_locked():
                worker.fail(batch.first_organization, "locked", "someone else's transaction holds rows of it")
        finally:
            worker.close()

    def _spread(self, work: CycleContext, batches: Sequence[Batch], done: "_Done") -> None:
        """Charges batches on the workers' threads. The first failure ends all, after the batches in hand."""
        queue = iter(batches)
        next_of_queue = Lock()

        def charge_until_empty() -> None:
            worker = BatchWorker(work)
            try:
                while True:
                    with next_of_queue:
                        batch = next(queue, None)
                    if batch is None:
                        return
                    worker.charge(batch)
            except BaseException as error:  # noqa: BLE001 - raised again below, on the thread that waits for us
                done.fail(error)
            finally:
                worker.close()

        threads = max(1, min(self._settings.workers, len(batches)))
        with ThreadPoolExecutor(threads, thread_name_prefix="worker") as pool:
            for _ in range(threads):
                pool.submit(charge_until_empty)
        if done.failure is not None:
            raise done.failure

    def _finish(self, run: Run, outcome: Outcome, error: str | None) -> Totals:
        """Tried twice: a session that is lost just here would make a cycle fail in which everything succeeded."""
        try:
            return self._write_end(run, outcome, error)
        except psycopg.OperationalError:
            return self._write_end(run, outcome, error)

    def _write_end(self, run: Run, outcome: Outcome, error: str | None) -> Totals:
        ledger = self._connect()
        with ledger.connection, ledger.fenced(run.term):
            figures = ledger.finish_run(run, outcome, error)
            ledger.prune(self._settings.retention_days)
        return figures


class _Done:
    """What the workers have done so far; shared between their threads."""

    def __init__(self) -> None:
        self.figures = Totals()
        self.failures_by_reason: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._locked: set[UUID] = set()
        self._warnings = 0
        self._lock = Lock()

    def note(self, charged: BatchResult) -> None:
        """Adds a transaction."""
        with self._lock:
            self.figures += charged.figures
            self.failures_by_reason.update(charged.failures_by_reason)
            self._locked.update(charged.locked_by_others)
            unpriced = charged.priced_by_default[: max(0, NAMED_WARNINGS - self._warnings)]
            self._warnings += len(unpriced)
        for instance in unpriced:
            log.warning("instance.priced_by_default", **instance)

    def noting(self, further: Callable[[BatchResult], None]) -> Callable[[BatchResult], None]:
        """`note`, and then tell someone further."""

        def note(charged: BatchResult) -> None:
            self.note(charged)
            further(charged)

        return note

    def fail(self, error: BaseException) -> None:
        """Keeps the first failure."""
        with self._lock:
            self.failure = self.failure or error

    def take_locked(self) -> list[Batch]:
        """The organizations that were left out because of someone else's locks, each as a batch of its own."""
        with self._lock:
            locked, self._locked = sorted(self._locked), set()
        return [Batch(organization, organization, 0, large=True, locked_by_others=True) for organization in locked]


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0]
