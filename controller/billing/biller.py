"""The leader's work: a cycle whenever one is due, as long as the leadership lasts."""

import threading
from collections.abc import Callable

import psycopg
import structlog

from controller.billing.cycle import Cycle
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.values import CycleResult, Leadership, Outcome
from controller.errors import BillingError

#: The schedule is asked for at least this often, so that a change of the settings of another replica, or of the
#: database's clock, is noticed.
LOOK_AGAIN_SECONDS = 60.0
#: A leader whose cycles fail this often in a row, not for the data's sake, lets another try.
FAILURES_BEFORE_STEPPING_DOWN = 3
FIRST_BACK_OFF_SECONDS = 5.0
STEP_DOWN_BACK_OFF_SECONDS = 60.0
#: A leader whose lock and whose term are not on the same server finds the right one by contending anew.
CONTRADICTED_BACK_OFF_SECONDS = 5.0

CYCLE_EVENTS = {
    Outcome.COMPLETED: "cycle.completed",
    Outcome.FAILED: "cycle.failed",
    Outcome.STOPPED: "cycle.stopped",
    Outcome.DEPOSED: "cycle.deposed",
}

log = structlog.get_logger(part="billing")


class Biller:
    """Works under whatever leadership it is given; one thread.

    Args:
        connect: opens a session in autocommit mode, for the schedule.
        step_down: gives the leadership up for some seconds.
        on_cycle: told of each cycle that has ended.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Ledger],
        make_cycle: Callable[["Biller"], Cycle],
        make_guard: Callable[["Biller"], Guard],
        heartbeat: Heartbeat,
        interval_minutes: float,
        takeover_delay_seconds: float,
        step_down: Callable[[float], None],
        on_cycle: Callable[[CycleResult], None],
    ) -> None:
        self._connect = connect
        self._cycle = make_cycle(self)
        self._guard = make_guard(self)
        self._heartbeat = heartbeat
        self._interval_minutes = interval_minutes
        self._takeover_delay_seconds = takeover_delay_seconds
        self._step_down = step_down
        self._on_cycle = on_cycle
        self._leadership: Leadership | None = None
        self._handing_over = threading.Lock()
        self._look_up = threading.Event()
        self._draining = threading.Event()
        self._deadline_passed = threading.Event()

    def elected(self, leadership: Leadership) -> None:
        """Begins to work under it. Any thread."""
        with self._handing_over:
            self._leadership = leadership
        self._look_up.set()

    def deposed(self, _leadership: Leadership) -> None:
        """Looks up from whatever it waits for. Any thread."""
        self._look_up.set()

    def drain(self) -> None:
        """Starts no new cycle. Any thread."""
        self._draining.set()
        self._look_up.set()

    def stop_after_batch(self) -> None:
        """Starts no new batch either. Any thread."""
        self._deadline_passed.set()
        self.drain()

    def may_go_on(self) -> bool:
        """Whether the cycle in hand may start another batch."""
        return not self._deadline_passed.is_set()

    def at_leisure(self) -> bool:
        """Whether there is time for what is not billing: not while draining."""
        return not self._draining.is_set()

    def pause(self, seconds: float) -> None:
        """Waits, but not past the moment at which no batch may be started."""
        self._deadline_passed.wait(seconds)

    def run(self) -> None:
        """The loop; returns when drained."""
        while not self._draining.is_set():
            with self._handing_over:
                leadership, self._leadership = self._leadership, None
            if leadership is None:
                self._wait(LOOK_AGAIN_SECONDS)
                continue
            self._serve(leadership)
            if self._draining.is_set() and leadership.still_leads():
                self._heartbeat.mark_stopped()

    def _serve(self, leadership: Leadership) -> None:
        failures = 0
        in_office = False
        while leadership.still_leads() and not self._draining.is_set():
            try:
                if not in_office:
                    self._take_office(leadership)
                    in_office = True
                seconds = self._seconds_until_due()
            except (psycopg.Error, BillingError) as error:
                failures += 1
                log.warning("schedule.failed", error=str(error).split("\n", 1)[0])
            else:
                if seconds > 0:
                    self._wait(min(seconds, LOOK_AGAIN_SECONDS))
                    continue
                result = self._bill(leadership)
                if result.outcome is Outcome.DEPOSED and leadership.still_leads():
                    self._give_up_contradicted(leadership)
                    return
                failures = failures + 1 if result.outcome is Outcome.FAILED else 0
            if failures >= FAILURES_BEFORE_STEPPING_DOWN:
                log.error("leader.unable", failures=failures)
                self._step_down(STEP_DOWN_BACK_OFF_SECONDS)
                return
            if failures:
                self._wait(FIRST_BACK_OFF_SECONDS * 2 ** (failures - 1))

    def _take_office(self, leadership: Leadership) -> None:
        ledger = self._connect()
        with ledger.connection:
            with ledger.fenced(leadership.term):
                takeover = ledger.begin_term(self._interval_minutes, self._takeover_delay_seconds)
            if takeover:
                log.info("takeover.begun", delay_seconds=self._takeover_delay_seconds)
        self._heartbeat.start(leadership)

    def _seconds_until_due(self) -> float:
        ledger = self._connect()
        with ledger.connection:
            return ledger.seconds_until_due()

    def _bill(self, leadership: Leadership) -> CycleResult:
        self._guard.release(leadership)
        log.info("cycle.started")
        result = self._cycle.run(leadership)
        figures = result.figures
        tell = log.error if result.outcome is Outcome.FAILED else log.info
        tell(
            CYCLE_EVENTS[result.outcome],
            cycle=result.run.id if result.run else None,
            seconds=round(result.seconds, 3),
            instances=figures.instances,
            hours=figures.hours,
            amount=str(figures.amount),
            debts=figures.debts,
            failures=figures.failures,
            **({"error": result.error} if result.error else {}),
            **({"failures_by_reason": result.failures_by_reason} if result.failures_by_reason else {}),
        )
        self._on_cycle(result)
        if not self._draining.is_set():
            self._heartbeat.beat()
        self._guard.look(leadership)
        return result

    def _give_up_contradicted(self, leadership: Leadership) -> None:
        log.error(
            "leader.contradicted",
            term=leadership.term,
            error="the lock is held, but the term in the database is somebody else's",
            remedy="make sure that DATABASE_URL and DATABASE_DIRECT_URL lead to the same server and the same database",
        )
        self._step_down(CONTRADICTED_BACK_OFF_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._look_up.wait(seconds)
        self._look_up.clear()
