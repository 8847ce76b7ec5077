"""The leader's schedule: a cycle whenever one is due, for as long as the leadership lasts."""

import threading
from collections.abc import Callable
from typing import Protocol

import psycopg
import structlog

from controller.billing.cycle import Cycle
from controller.billing.errors import DeposedError
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.values import Cause, CycleResult, Leadership, Outcome
from controller.errors import BillingError, one_line
from controller.lifecycle.stop import StopToken

#: The longest wait before the schedule is read again, to notice that the database's clock has changed.
RECHECK_SECONDS = 60.0
#: Time between two attempts to prove that billing works, after 90 minutes without a heartbeat.
PROOF_RETRY_SECONDS = 300.0
#: A leader whose cycles fail this often in a row for its own reasons steps down.
FAILURES_BEFORE_STEPPING_DOWN = 3
FIRST_BACK_OFF_SECONDS = 5.0
STEP_DOWN_BACK_OFF_SECONDS = 60.0
#: Back-off of a leader whose lock and term are on different servers. Contending again finds the right server.
CONTRADICTED_BACK_OFF_SECONDS = 5.0

CYCLE_EVENTS = {
    Outcome.COMPLETED: "cycle.completed",
    Outcome.COMPLETED_WITH_FAILURES: "cycle.completed",
    Outcome.FAILED: "cycle.failed",
    Outcome.STOPPED: "cycle.stopped",
    Outcome.DEPOSED: "cycle.deposed",
    Outcome.SUPERSEDED: "cycle.superseded",
}
#: Outcomes of a cycle that the fence has refused.
REFUSED = {Outcome.DEPOSED, Outcome.SUPERSEDED}

log = structlog.get_logger(part="billing")


class ElectedLeadership(Leadership, Protocol):
    """A leadership that can be given up; implemented by the election."""

    def step_down(self, back_off_seconds: float) -> None:
        """Resigns, and does not contend for `back_off_seconds`."""


class Biller:
    """Bills under each leadership that it is given, on one thread.

    Args:
        connect: opens a session in autocommit mode, for the schedule.
        cycle: charges what is due.
        guard: checks what was charged.
        heartbeat: started with each leadership.
        stop: ends the loop after the cycle in hand.
        interval_minutes: between the starts of two cycles.
        takeover_delay_seconds: before the first cycle, if the application may still be billing.
        on_cycle_ended: called with the result of each cycle.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Ledger],
        cycle: Cycle,
        guard: Guard,
        heartbeat: Heartbeat,
        stop: StopToken,
        interval_minutes: float,
        takeover_delay_seconds: float,
        on_cycle_ended: Callable[[CycleResult], None],
    ) -> None:
        self._connect = connect
        self._cycle = cycle
        self._guard = guard
        self._heartbeat = heartbeat
        self._stop = stop
        self._interval_minutes = interval_minutes
        self._takeover_delay_seconds = takeover_delay_seconds
        self._on_cycle_ended = on_cycle_ended
        self._leadership: ElectedLeadership | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        stop.on_stop_cycles(self._wake.set)

    def elected(self, leadership: ElectedLeadership) -> None:
        """Starts to bill under a leadership. Any thread."""
        with self._lock:
            self._leadership = leadership
        self._wake.set()

    def leadership_ended(self) -> None:
        """Ends the wait for the next cycle, so that the loop notices. Any thread."""
        self._wake.set()

    def run(self) -> None:
        """Bills until no cycle may start any more."""
        while self._stop.may_start_cycle():
            with self._lock:
                leadership, self._leadership = self._leadership, None
            if leadership is None:
                self._wait(RECHECK_SECONDS)
                continue
            self._bill_while_leading(leadership)
            if not self._stop.may_start_cycle() and leadership.still_leads():
                self._heartbeat.mark_stopped()

    def _bill_while_leading(self, leadership: ElectedLeadership) -> None:
        failures = 0
        started = False
        while leadership.still_leads() and self._stop.may_start_cycle():
            try:
                started = started or self._start_term(leadership)
                seconds = self._seconds_until_due() if started else PROOF_RETRY_SECONDS
            except DeposedError:
                if leadership.still_leads():
                    self._step_down_refused(leadership, Outcome.DEPOSED)
                return
            except (psycopg.Error, BillingError) as error:
                failures += 1
                log.warning("schedule.failed", error=one_line(error))
            else:
                if seconds > 0:
                    self._wait(min(seconds, RECHECK_SECONDS) if started else seconds)
                    continue
                result = self._bill(leadership)
                if result.outcome in REFUSED and leadership.still_leads():
                    self._step_down_refused(leadership, result.outcome)
                    return
                failures = failures + 1 if result.cause is Cause.CONTROLLER else 0
            if failures and not self._may_try_again(leadership, failures):
                return

    def _may_try_again(self, leadership: ElectedLeadership, failures: int) -> bool:
        """Waits before the next try. After too many failures in a row, steps down and returns False."""
        if failures < FAILURES_BEFORE_STEPPING_DOWN:
            self._wait(FIRST_BACK_OFF_SECONDS * 2 ** (failures - 1))
            return True
        log.error("leader.unable", failures=failures)
        leadership.step_down(STEP_DOWN_BACK_OFF_SECONDS)
        return False

    def _start_term(self, leadership: Leadership) -> bool:
        """Starts the heartbeat. After 90 minutes without a heartbeat, it first proves that billing works.

        Returns:
            True if this leader may bill. If not, it writes no heartbeat, and the application's own billing continues.
        """
        ledger = self._connect()
        with ledger.connection:
            with ledger.fenced(leadership.term):
                silent = ledger.begin_term(self._interval_minutes)
            if silent:
                if (reason := self._cycle.prove(leadership)) is not None:
                    log.error("billing.unproven", error=reason, next_try_seconds=PROOF_RETRY_SECONDS)
                    return False
                with ledger.fenced(leadership.term):
                    ledger.begin_takeover(self._takeover_delay_seconds)
                log.info("takeover.begun", delay_seconds=self._takeover_delay_seconds)
        self._heartbeat.start(leadership)
        return True

    def _seconds_until_due(self) -> float:
        ledger = self._connect()
        with ledger.connection:
            return ledger.seconds_until_due()

    def _bill(self, leadership: Leadership) -> CycleResult:
        self._guard.unsuspend(leadership)
        log.info("cycle.started")
        result = self._cycle.run(leadership)
        _log_result(result)
        self._on_cycle_ended(result)
        if self._stop.may_start_cycle():
            self._heartbeat.beat()
        self._guard.check(leadership)
        return result

    def _step_down_refused(self, leadership: ElectedLeadership, outcome: Outcome) -> None:
        """Steps down because the fence refused the term of a lock that this replica still holds."""
        if outcome is Outcome.DEPOSED:
            log.error(
                "leader.contradicted",
                term=leadership.term,
                error="this replica holds the lock, but the term in the database belongs to another one",
                remedy="make sure that DATABASE_URL and DATABASE_DIRECT_URL lead to one database on one server",
            )
        leadership.step_down(CONTRADICTED_BACK_OFF_SECONDS)

    def _wait(self, seconds: float) -> None:
        self._wake.wait(seconds)
        self._wake.clear()


def _log_result(result: CycleResult) -> None:
    totals = result.totals
    write = log.error if result.outcome in {Outcome.FAILED, Outcome.SUPERSEDED} else log.info
    if result.outcome is Outcome.COMPLETED_WITH_FAILURES:
        write = log.warning
    write(
        CYCLE_EVENTS[result.outcome],
        outcome=str(result.outcome),
        cycle=result.run.id if result.run else None,
        seconds=round(result.seconds, 3),
        instances=totals.instances,
        hours=totals.hours,
        amount=str(totals.amount),
        debts=totals.debts,
        failures=totals.failures,
        suspended=totals.suspended,
        **({"error": result.error} if result.error else {}),
        **({"cause": str(result.cause)} if result.cause else {}),
        **({"failures_by_reason": result.failures_by_reason} if result.failures_by_reason else {}),
    )
