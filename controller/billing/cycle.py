"""One cycle: its plan, the workers that charge its batches, and the history row that records how it went."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from heapq import nlargest
from threading import Event, Lock
from typing import Any
from uuid import UUID

import psycopg
import structlog

from controller.billing.batch import LARGEST, BatchWorker, CycleContext
from controller.billing.customers_log import CustomersLog
from controller.billing.errors import CycleFailedError, DeposedError, HaltedError, StoppedError
from controller.billing.evidence import Evidence
from controller.billing.ledger import Ledger
from controller.billing.other_billers import LOOK_SECONDS, Notice, Watch, look, refuse_if_halted
from controller.billing.pace import SHARE_OF_INTERVAL, Pace, may_be_paced
from controller.billing.proof import prove
from controller.billing.sharing import Sharing
from controller.billing.values import (
    Batch,
    BatchResult,
    Cause,
    CycleResult,
    Leadership,
    Outcome,
    ResumePoint,
    Run,
    Totals,
)
from controller.errors import BillingError, one_line
from controller.generation import GenerationError
from controller.lifecycle.stop import StopToken

#: Seconds to wait before each new try for organizations with rows that another session has locked.
LOCKED_BACK_OFF_SECONDS = (0.25, 0.5, 1.0, 2.0)


log = structlog.get_logger(part="billing")


@dataclass(frozen=True)
class CycleSettings:
    """Settings of every cycle.

    Attributes:
        workers: threads that charge batches.
        batch_size: instances in one transaction.
        retention_days: how long the batches of finished runs are kept.
        look_seconds: time between two checks for other billers.
        pace: the share of its time that each worker spends working in a cycle that begins on time; 1 never pauses.
        interval_minutes: time between the starts of two cycles.
        guard_seconds: time from a call of the guard to the next interruption of a paced cycle. It is less than a
            minute, because the workers first finish their pauses and transactions.
    """

    workers: int = 2
    batch_size: int = 3000
    retention_days: int = 30
    look_seconds: float = LOOK_SECONDS
    pace: float = 1.0
    interval_minutes: float = 60.0
    guard_seconds: float = 50.0


class Cycle:
    """Runs one cycle at a time: plans it, charges its batches on workers, and records how it ended.

    Args:
        connect: opens a session in autocommit mode, for the plan and the history.
        connect_worker: opens a worker's session.
        settings: the settings of every cycle.
        stop: checked before each transaction; ends the waits between two tries.
    """

    def __init__(
        self,
        connect: Callable[[], Ledger],
        connect_worker: Callable[[], Ledger],
        settings: CycleSettings,
        stop: StopToken,
    ) -> None:
        self._connect = connect
        self._connect_worker = connect_worker
        self._settings = settings
        self._stop = stop
        self._sharing = Sharing(settings.batch_size)
        self._look_now = Event()
        self._customers = CustomersLog()

    def commands_waiting(self) -> None:
        """Makes a running cycle read operators' commands before its next batch. Any thread."""
        self._look_now.set()

    def run(
        self,
        leadership: Leadership,
        *,
        dry: bool = False,
        looked: bool = False,
        on_planned: Callable[[int], None] = lambda _instances: None,
        on_result: Callable[[BatchResult], None] = lambda _result: None,
        on_quiet: Callable[[], None] = lambda: None,
    ) -> CycleResult:
        """Charges everything that is due now. A cycle that fails or is stopped returns a result and raises nothing.

        Args:
            leadership: the leadership that it works under.
            dry: True runs the same statements and rolls each batch back. A dry run leaves no trace and needs no lock.
            looked: True if the caller has just checked for other billers, and found no reason to halt.
            on_planned: called with the number of due instances.
            on_result: called with the result of each transaction, on a worker's thread.
            on_quiet: called every `guard_seconds` of a paced cycle, while no transaction of the cycle is open.
        """
        began = time.monotonic()
        state = _CycleState(on_result, self._customers)
        run: Run | None = None
        ending = _Ending(Outcome.COMPLETED)
        try:
            ledger = self._connect()
            with ledger.connection:
                run = self._begin(ledger, leadership, dry=dry, looked=looked)
                plan = ledger.plan(run, self._sharing.begin_cycle())
                planned = sum(batch.instances for batch in plan)
                if not dry:
                    with ledger.fenced(leadership.term):
                        ledger.record_plan(run, planned)
            on_planned(planned)
            pace = self._pace(run, planned)
            watch = None if dry else self._watch(leadership, pace)
            context = CycleContext(
                run=run,
                batch_size=self._settings.batch_size,
                connect=self._connect_worker,
                stop=self._stop,
                check=lambda: self._check(leadership, state, watch),
                on_result=state.add,
                evidence=state.evidence,
                sharing=self._sharing,
                dry=dry,
                pace=pace,
                on_quiet=on_quiet,
            )
            self._charge(context, plan, state)
            if not dry:  # after a roll-back everything is still due
                self._count_missed(run, state)
            ending = state.ending()
        except (DeposedError, GenerationError) as deposed:
            ending = _Ending(_ended_by(deposed), str(deposed))
        except StoppedError as stopped:
            cause = Cause.HALT if isinstance(stopped, HaltedError) else Cause.DRAIN
            ending = _Ending(Outcome.STOPPED, str(stopped), cause)
        except (psycopg.Error, BillingError) as failed:
            ending = _Ending(Outcome.FAILED, one_line(failed), Cause.CONTROLLER)
        self._customers.cycle_ended()
        totals = state.totals
        if run is None and not dry and ending.outcome is Outcome.FAILED:
            run = self._record_run(leadership)
        if run is not None and not dry and ending.outcome not in {Outcome.DEPOSED, Outcome.SUPERSEDED}:
            try:
                totals = self._finish(run, ending)
            except (DeposedError, GenerationError) as deposed:
                ending = _Ending(_ended_by(deposed), str(deposed))
            except (psycopg.Error, BillingError) as failed:
                error = ending.error or f"the end of the run was not recorded: {one_line(failed)}"
                ending = _Ending(Outcome.FAILED, error, Cause.CONTROLLER)
        return CycleResult(
            ending.outcome,
            totals,
            time.monotonic() - began,
            run,
            ending.error,
            dict(state.failures_by_reason),
            ending.cause,
            tuple(state.largest),
        )

    @staticmethod
    def _begin(ledger: Ledger, leadership: Leadership, *, dry: bool, looked: bool) -> Run:
        """Checks that billing may start. Begins the run and writes the cycle's first heartbeat in one transaction."""
        ledger.check_access()
        if not looked:
            _require_no_halt(look(ledger, leadership.term, keep=not dry), dry=dry)
        with ledger.fenced(leadership.term, keep=not dry):
            run = (ledger.preview_run if dry else ledger.begin_run)(leadership.term)
            ledger.begin_heartbeat(require_fresh=not dry)
        return run

    def _pace(self, run: Run, planned: int) -> Pace | None:
        settings = self._settings
        if settings.pace >= 1 or not may_be_paced(run.late_seconds):
            return None
        seconds = settings.interval_minutes * 60 * SHARE_OF_INTERVAL
        return Pace(
            settings.pace,
            workers=settings.workers,
            instances=planned,
            seconds=seconds,
            guard_seconds=settings.guard_seconds,
            stop=self._stop,
        )

    def _watch(self, leadership: Leadership, pace: Pace | None) -> Watch:
        return Watch(
            self._connect,
            leadership.term,
            self._settings.look_seconds,
            look_now=self._look_now,
            on_waiting=pace.hurry if pace is not None else lambda: None,
        )

    def _record_run(self, leadership: Leadership) -> Run | None:
        """Adds a row for a cycle that failed before it had one, so the history shows it. None if that fails too."""
        with suppress(psycopg.Error, BillingError):
            ledger = self._connect()
            with ledger.connection, ledger.fenced(leadership.term):
                return ledger.record_run(leadership.term)
        return None

    def _count_missed(self, run: Run, state: "_CycleState") -> None:
        """Finds instances that the cycle should have charged but did not, and counts them as failures."""
        ledger = self._connect()
        with ledger.connection:
            if not (missed := ledger.count_missed(run, state.unrecorded)):
                return
            with ledger.fenced(run.term):
                ledger.record_missed(run, missed)
        log.error("instances.missed", instances=missed)
        state.add(BatchResult(Totals(failures=missed), missed, failures_by_reason={"missed": missed}))

    def prove(self, leadership: Leadership) -> str | None:
        """Proves that billing works, without charging any organization. Returns the failure reason, or None."""
        return prove(self._connect_worker, leadership, self._stop)

    def _check(self, leadership: Leadership, state: "_CycleState", watch: Watch | None) -> None:
        """Raises if no further transaction may start."""
        if state.error is not None:
            raise CycleFailedError("another worker of this cycle failed")
        if not leadership.still_leads():
            raise DeposedError(f"term {leadership.term} is over: the lock session is lost")
        if not self._stop.may_start_batch():
            raise StoppedError("stopped after the batch in hand; the next cycle continues from here")
        if watch is not None:
            watch.check()

    def _charge(self, context: CycleContext, plan: Sequence[Batch], state: "_CycleState") -> None:
        """Charges the plan, then tries again for organizations with locked rows, and records those still locked."""
        self._run_workers(context, plan, state)
        for seconds in LOCKED_BACK_OFF_SECONDS:
            if not (locked := state.take_locked()):
                return
            self._stop.wait(seconds)
            self._run_workers(context, locked, state)
        worker = BatchWorker(context)
        try:
            for batch in state.take_locked():
                worker.fail(batch, "locked", "another session holds locks on its rows")
        finally:
            worker.close()

    def _run_workers(self, context: CycleContext, batches: Sequence[Batch], state: "_CycleState") -> None:
        """Charges batches on the workers' threads. The first error stops every worker after its batch in hand.

        A worker whose session is refused leaves its work to the others.
        """
        queue = deque(batches)
        while queue:
            self._run_workers_once(context, queue, state)
            if state.error is not None:
                raise state.error
            if queue and context.pace is not None:
                context.pace.guard_begins()
                context.on_quiet()

    def _run_workers_once(self, context: CycleContext, queue: deque[Batch], state: "_CycleState") -> None:
        """Charges batches until the queue is empty, or, in a paced cycle, until it is time for the guard."""

        def charge_until_empty(worker: BatchWorker) -> None:
            try:
                while True:
                    try:
                        batch = queue.popleft()
                    except IndexError:
                        break
                    queue.extendleft(reversed(worker.charge(batch)))
                    if context.guard_due():
                        break
            except BaseException as error:  # noqa: BLE001 - raised by the caller, on the thread that waits
                state.fail(error)
            finally:
                worker.close()

        def work() -> bool:
            worker = BatchWorker(context)
            try:
                worker.open()
            except (psycopg.Error, BillingError) as error:
                log.warning("worker.unavailable", error=one_line(error))
                return False
            charge_until_empty(worker)
            return True

        threads = max(1, min(self._settings.workers, len(queue)))
        with ThreadPoolExecutor(threads, thread_name_prefix="worker") as pool:
            opened = [pool.submit(work) for _ in range(threads)]
        if not any(each.result() for each in opened):
            charge_until_empty(BatchWorker(context))  # no session could be opened: keep trying on this thread

    def _finish(self, run: Run, ending: "_Ending") -> Totals:
        """Writes the end of the run. Tries twice, so that a session lost here doesn't fail a successful cycle."""
        try:
            return self._write_end(run, ending)
        except psycopg.OperationalError:
            return self._write_end(run, ending)

    def _write_end(self, run: Run, ending: "_Ending") -> Totals:
        ledger = self._connect()
        with ledger.connection:
            with ledger.fenced(run.term):
                totals = ledger.finish_run(run, ending.outcome, ending.error, ending.cause)
            try:
                with ledger.fenced(run.term):
                    ledger.prune(self._settings.retention_days)
            except (psycopg.Error, BillingError) as unpruned:
                log.warning("history.unpruned", error=one_line(unpruned))
        return totals


def _require_no_halt(notices: Sequence[Notice], *, dry: bool) -> None:
    """Raises HaltedError if billing is halted. A dry run only warns, because a cut-over begins with one."""
    if not dry:
        refuse_if_halted(notices)
    for notice in notices if dry else ():
        log.warning("billing.noticed", kind=notice.kind, reason=notice.message)


def _ended_by(error: DeposedError | GenerationError) -> Outcome:
    return Outcome.DEPOSED if isinstance(error, DeposedError) else Outcome.SUPERSEDED


@dataclass(frozen=True)
class _Ending:
    """How a cycle ended. `error` is None if it completed."""

    outcome: Outcome
    error: str | None = None
    cause: Cause | None = None


class _CycleState:
    """The workers' progress. Their threads share it."""

    def __init__(self, on_result: Callable[[BatchResult], None], customers: CustomersLog) -> None:
        self._on_result = on_result
        self._customers = customers
        self.totals = Totals()
        self.failures_by_reason: Counter[str] = Counter()
        self.largest: list[dict[str, Any]] = []
        self.unrecorded: list[UUID] = []
        self.evidence = Evidence()
        self.error: BaseException | None = None
        self._locked: dict[UUID, ResumePoint | None] = {}
        self._lock = Lock()

    def add(self, result: BatchResult) -> None:
        """Adds the result of one transaction."""
        self.evidence.add(result.totals)
        with self._lock:
            self.totals += result.totals
            self.largest = nlargest(LARGEST, (*self.largest, *result.largest), key=lambda charge: charge["amount"])
            self.failures_by_reason.update(result.failures_by_reason)
            self.unrecorded += result.unrecorded
            self._locked.update(dict.fromkeys(result.locked_by_others, result.last))
        self._customers.add(result)
        self._on_result(result)

    def ending(self) -> _Ending:
        """Returns how the cycle ended. Call it only after a cycle that got through its plan."""
        if not self.totals.failures:
            return _Ending(Outcome.COMPLETED)
        if self.evidence.anyone_charged:
            return _Ending(Outcome.COMPLETED_WITH_FAILURES)
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.failures_by_reason.items()))
        return _Ending(Outcome.FAILED, f"no organization could be charged: {reasons}", Cause.ORGANIZATIONS)

    def fail(self, error: BaseException) -> None:
        """Keeps the first error."""
        with self._lock:
            self.error = self.error or error

    def take_locked(self) -> list[Batch]:
        """Returns one batch for each organization left out because of other sessions' locks, and clears the list."""
        with self._lock:
            locked, self._locked = sorted(self._locked.items()), {}
        return [Batch(each, each, 0, large=True, locked_by_others=True, after=after) for each, after in locked]
