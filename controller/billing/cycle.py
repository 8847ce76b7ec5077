"""One cycle: a plan, workers that charge its batches, and the history row that tells how it went."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Lock
from uuid import UUID

import psycopg
import structlog

from controller.billing.batch import BatchWorker, CycleFailedError, Work
from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.values import Batch, Charged, CycleResult, Figures, Leadership, Outcome, Run
from controller.errors import BillingError

#: Waits between the tries for organizations that someone else holds a lock on.
HELD_BACK_OFF_SECONDS = (0.25, 0.5, 1.0, 2.0)

log = structlog.get_logger(part="billing")


class StoppedError(BillingError):
    """A drain's deadline has passed: no further batch."""


@dataclass(frozen=True)
class CycleSettings:
    """How a cycle goes about it; see docs/configuration.md."""

    workers: int = 2
    batch_size: int = 2000
    holder: str = ""
    retention_days: int = 30


@dataclass
class _Progress:
    """What the workers have done; shared between their threads."""

    figures: Figures = field(default_factory=Figures)
    obstacles: Counter[str] = field(default_factory=Counter)
    held: set[UUID] = field(default_factory=set)
    failed: BaseException | None = None
    lock: Lock = field(default_factory=Lock)


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
        on_charged: Callable[[Charged], None] = lambda _charged: None,
    ) -> CycleResult:
        """Charges everything that is due now. Expected ends, a failure among them, are results and not exceptions.

        Args:
            leadership: under which it works.
            dry: the same statements, each batch rolled back; leaves no trace and needs no lock.
            on_planned: told how many instances are due.
            on_charged: told of each transaction, on a worker's thread.
        """
        began = time.monotonic()
        progress = _Progress()
        run: Run | None = None
        ledger: Ledger | None = None
        outcome, error = Outcome.COMPLETED, None
        try:
            ledger = self._connect()
            with ledger.fenced(leadership.term, keep=not dry):
                run = ledger.begin_run(leadership.term, self._settings.holder)
            plan = ledger.plan(run, self._settings.batch_size)
            on_planned(sum(batch.instances for batch in plan))
            self._charge(run, plan, leadership, progress, on_charged, dry=dry)
        except DeposedError as deposed:
            outcome, error = Outcome.DEPOSED, str(deposed)
        except StoppedError as stopped:
            outcome, error = Outcome.STOPPED, str(stopped)
        except (psycopg.Error, BillingError) as failed:
            outcome, error = Outcome.FAILED, str(failed).split("\n", 1)[0]
        figures = progress.figures
        try:
            if ledger is not None and run is not None and not dry and outcome is not Outcome.DEPOSED:
                figures = self._finish(ledger, run, outcome, error)
        except DeposedError as deposed:
            outcome, error = Outcome.DEPOSED, str(deposed)
        except (psycopg.Error, BillingError) as failed:
            outcome, error = Outcome.FAILED, error or f"the run's end could not be recorded: {failed}".split("\n", 1)[0]
        finally:
            if ledger is not None:
                ledger.connection.close()
        return CycleResult(outcome, figures, time.monotonic() - began, run, error, dict(progress.obstacles))

    def _finish(self, ledger: Ledger, run: Run, outcome: Outcome, error: str | None) -> Figures:
        if ledger.connection.closed:
            ledger.connection = self._connect().connection
        with ledger.fenced(run.term):
            figures = ledger.finish_run(run, outcome, error)
            ledger.prune(self._settings.retention_days)
        return figures

    def _charge(
        self,
        run: Run,
        plan: list[Batch],
        leadership: Leadership,
        progress: _Progress,
        on_charged: Callable[[Charged], None],
        *,
        dry: bool,
    ) -> None:
        def checkpoint() -> None:
            if progress.failed is not None:
                raise CycleFailedError("another worker of this cycle failed")
            if not leadership.still_leads():
                raise DeposedError(f"term {run.term} is over: the lock session is lost")
            if not self._may_go_on():
                raise StoppedError("stopped by a drain's deadline; the next cycle goes on from here")

        def note(charged: Charged) -> None:
            with progress.lock:
                progress.figures += charged.figures
                progress.obstacles.update(charged.obstacles)
                progress.held.update(charged.held_by_others)
            for instance in charged.priced_by_default:
                log.warning("instance.priced_by_default", **instance)
            on_charged(charged)

        work = Work(
            run, self._settings.batch_size, self._connect_worker, checkpoint, self._pause, note, dry=dry
        )
        self._spread(work, plan, progress)
        for seconds in HELD_BACK_OFF_SECONDS:
            if not progress.held:
                return
            self._pause(seconds)
            self._spread(work, _singly(progress), progress)
        if progress.held:
            worker = BatchWorker(work)
            try:
                for batch in _singly(progress):
                    worker.fail(batch, "locked", "someone else's transaction holds the wallet or an instance")
            finally:
                worker.close()

    def _spread(self, work: Work, batches: list[Batch], progress: _Progress) -> None:
        """Charges batches on the workers' threads; the first failure ends all, after the batch that each has in hand."""
        queue: Iterator[Batch] = iter(batches)

        def charge_until_empty() -> None:
            worker = BatchWorker(work)
            try:
                while True:
                    with progress.lock:
                        batch = next(queue, None)
                    if batch is None:
                        return
                    worker.charge(batch)
            except BaseException as error:
                with progress.lock:
                    progress.failed = progress.failed or error
                raise
            finally:
                worker.close()

        threads = min(self._settings.workers, len(batches))
        if threads == 0:
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="worker") as pool:
            for future in [pool.submit(charge_until_empty) for _ in range(threads)]:
                future.exception()
        if progress.failed is not None:
            raise progress.failed


def _singly(progress: _Progress) -> list[Batch]:
    """Each held organization as a batch of its own, of any size."""
    held, progress.held = sorted(progress.held), set()
    return [Batch(organization, organization, 0, large=True) for organization in held]
