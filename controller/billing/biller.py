"""The leader's schedule: a cycle whenever one is due, for as long as the leadership lasts."""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import psycopg
import structlog

from controller.billing import control
from controller.billing.collection import LONGEST_SECONDS, Collector
from controller.billing.cycle import Cycle
from controller.billing.errors import DeposedError
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.other_billers import LOOK_SECONDS, Notice, halting, look
from controller.billing.values import Cause, CycleResult, Leadership, Outcome, TermStart, Totals
from controller.billing.waiver import carry_out_waivers
from controller.errors import BillingError, one_line
from controller.generation import GenerationError
from controller.lifecycle.stop import StopToken

#: The longest wait for a new leadership. A wake-up ends it.
IDLE_SECONDS = 60.0
#: Seconds between two checks while billing is halted, so that it continues soon after a pause or another biller ends.
HALTED_LOOK_SECONDS = 5.0
#: Seconds between two parts of a long collection.
MORE_TO_COLLECT_SECONDS = 0.1
#: Time between two attempts to prove that billing works, after 90 minutes without a heartbeat.
PROOF_RETRY_SECONDS = 300.0
#: A leader whose cycles fail this often in a row for its own reasons steps down.
FAILURES_BEFORE_STEPPING_DOWN = 3
FIRST_BACK_OFF_SECONDS = 5.0
STEP_DOWN_BACK_OFF_SECONDS = 60.0
#: How long a leader doesn't contend after an operator's `step-down`, so that a standby wins.
HANDED_OVER_BACK_OFF_SECONDS = 10.0
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
#: Outcomes of a cycle whose term the fence refused.
REFUSED = {Outcome.DEPOSED, Outcome.SUPERSEDED}

log = structlog.get_logger(part="billing")


class ElectedLeadership(Leadership, Protocol):
    """A leadership that can be given up; implemented by the election."""

    def step_down(self, back_off_seconds: float) -> None:
        """Resigns, and does not contend for `back_off_seconds`."""


class Biller:
    """Bills while this replica leads, on one thread.

    Args:
        connect: opens a session in autocommit mode, for the schedule.
        cycle: charges what is due.
        guard: checks what was charged.
        heartbeat: started with each leadership.
        stop: ends the loop after the cycle in hand.
        interval_minutes: time between the starts of two cycles.
        takeover_delay_seconds: how long to wait before the first cycle if the application may still be billing.
        other_billers: what to do if other programs bill instances: `stop` or `warn`.
        on_idle: called while this replica doesn't lead. It prepares to lead for as long as its argument returns True.
        on_cycle_ended: called with the result of each cycle.
        on_collected: called with what a collection has charged.
        on_halted: called with the message when billing is halted, and with None when this leader bills again.
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
        other_billers: str,
        on_cycle_ended: Callable[[CycleResult], None],
        on_collected: Callable[[Totals], None] = lambda _totals: None,
        on_idle: Callable[[Callable[[], bool]], None] = lambda _wanted: None,
        on_halted: Callable[[str | None], None] = lambda _message: None,
    ) -> None:
        self._connect = connect
        self._cycle = cycle
        self._guard = guard
        self._heartbeat = heartbeat
        self._stop = stop
        self._interval_minutes = interval_minutes
        self._takeover_delay_seconds = takeover_delay_seconds
        self._other_billers = other_billers
        self._on_cycle_ended = on_cycle_ended
        self._on_collected = on_collected
        self._on_idle = on_idle
        self._on_halted = on_halted
        self._notices: tuple[Notice, ...] = ()
        self._leadership: ElectedLeadership | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        stop.on_stop_cycles(self._wake.set)

    def elected(self, leadership: ElectedLeadership) -> None:
        """Starts to bill under a leadership. Any thread."""
        with self._lock:
            self._leadership = leadership
        self._wake.set()

    def standing_by(self) -> None:
        """Makes the loop prepare to lead. Any thread."""
        self._wake.set()

    def leadership_ended(self) -> None:
        """Ends the wait for the next cycle, so that the loop notices. Any thread."""
        self._wake.set()

    def commands_waiting(self) -> None:
        """Makes the loop or the running cycle read operators' commands soon. Any thread."""
        self._cycle.commands_waiting()
        self._wake.set()

    def run(self) -> None:
        """Bills until no cycle may start any more."""
        while self._stop.may_start_cycle():
            with self._lock:
                leadership, self._leadership = self._leadership, None
            if leadership is None:
                self._on_idle(lambda: self._leadership is None and self._stop.may_start_cycle())
                self._wait(IDLE_SECONDS)
                continue
            try:
                self._bill_while_leading(leadership)
            finally:
                self._notices = ()  # if billing stays halted, the next leader reports it
            if not self._stop.may_start_cycle() and leadership.still_leads():
                self._heartbeat.mark_stopped()

    def _bill_while_leading(self, leadership: ElectedLeadership) -> None:
        failures = 0
        started = False
        while leadership.still_leads() and self._stop.may_start_cycle():
            try:
                started, seconds = self._prepare(leadership, started=started)
            except DeposedError:
                if leadership.still_leads():
                    self._step_down_refused(leadership, Outcome.DEPOSED)
                return
            except (psycopg.Error, BillingError) as error:
                failures += 1
                log.warning("schedule.failed", error=one_line(error))
            else:
                if seconds is None:
                    leadership.step_down(HANDED_OVER_BACK_OFF_SECONDS)
                    return
                if seconds > 0:
                    failures = 0
                    self._wait(seconds)
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

    @property
    def halted(self) -> str | None:
        """Why this leader isn't billing, without customers' names; None if it bills or doesn't lead. Thread-safe."""
        halt = halting(self._notices)
        return halt.public_message if halt else None

    def _prepare(self, leadership: Leadership, *, started: bool) -> tuple[bool, float | None]:
        """Looks for other billers and commands, and starts the term unless another daemon is alive.

        Args:
            leadership: the leadership to bill under.
            started: True if this term has started its heartbeat.

        Returns:
            True if the term has started, and the seconds until the next call. They are zero or negative if a cycle is
            due, and None if an operator told this leader to step down.
        """
        ledger, start = self._connect(), None
        with ledger.connection:
            if not started:
                with ledger.fenced(leadership.term):
                    start = ledger.begin_term(self._interval_minutes, self._other_billers)
            notices = look(ledger, leadership.term, between_cycles=True)
            changed = self._report(notices)
            if self._told_to_step_down(ledger, leadership):
                return started, None
            halt = halting(notices)
            if halt is not None and halt.kind == "other_daemon":
                return False, LOOK_SECONDS  # the term starts once the daemon is gone
            if start is not None and not self._start_term(ledger, leadership, start):
                return False, PROOF_RETRY_SECONDS
            if changed:
                self._heartbeat.beat()
            carry_out_waivers(ledger, leadership)
            if halt is not None:
                return True, HALTED_LOOK_SECONDS
            seconds = ledger.seconds_until_due()
            if seconds > 0:
                if not self._collect(ledger, leadership, seconds):
                    return True, MORE_TO_COLLECT_SECONDS
                seconds = ledger.seconds_until_due()
            return True, min(seconds, LOOK_SECONDS)

    def _while_quiet(self, leadership: Leadership) -> None:
        """Checks what a paced cycle has charged so far, and collects debts, which needn't wait for the cycle's end."""
        self._guard.check(leadership)
        try:
            ledger = self._connect()
            with ledger.connection:
                self._collect(ledger, leadership, LONGEST_SECONDS)
        except (DeposedError, GenerationError):
            raise
        except (psycopg.Error, BillingError) as error:
            log.warning("collection.failed", error=one_line(error))

    def _collect(self, ledger: Ledger, leadership: Leadership, seconds: float) -> bool:
        """Collects debts for up to `seconds`. Returns False if some are left to collect."""
        collected = Collector(ledger, leadership, self._stop, seconds).collect()
        if collected.totals.instances:
            self._on_collected(collected.totals)
        return collected.complete

    @staticmethod
    def _told_to_step_down(ledger: Ledger, leadership: Leadership) -> bool:
        with ledger.fenced(leadership.term):
            given = control.take_step_down(ledger.connection)
        if given is not None:
            log.info("step_down.accepted", **given)
        return given is not None

    def _start_term(self, ledger: Ledger, leadership: Leadership, start: TermStart) -> bool:
        """Starts the heartbeat. After 90 minutes without a heartbeat, it first proves that billing works.

        Returns:
            True if this leader may bill. If not, it writes no heartbeat, and the application's own billing continues.
        """
        if start.silent and (reason := self._cycle.prove(leadership)) is not None:
            log.error("billing.unproven", error=reason, next_try_seconds=PROOF_RETRY_SECONDS)
            return False
        if start.silent or start.after_other:
            delay_seconds = self._takeover_delay_seconds if start.silent else 0
            with ledger.fenced(leadership.term):
                until = ledger.begin_takeover(delay_seconds)
            log.info("takeover.begun", delay_seconds=delay_seconds, until=until.isoformat(timespec="seconds"))
        elif start.waits_until is not None:
            log.info("takeover.inherited", until=start.waits_until.isoformat(timespec="seconds"))
        self._heartbeat.start_soon(leadership)
        return True

    def _report(self, notices: Sequence[Notice]) -> bool:
        """Logs notices that changed since the last check, and announces a halt. Returns True if something changed."""
        before, self._notices = self._notices, tuple(notices)
        changed = {each.kind: (each.halts, each.message) for each in before} != {
            each.kind: (each.halts, each.message) for each in notices
        }
        halted_before, halt = halting(before), halting(notices)
        if not changed:
            return False
        for notice in notices:
            write = log.error if notice.halts else log.warning
            write("billing.halted" if notice.halts else "billing.noticed", kind=notice.kind, reason=notice.message)
        if halted_before is not None and halt is None:
            log.info("billing.continued", after=halted_before.kind)
        if (halted_before and halted_before.message) != (halt and halt.message):
            self._on_halted(halt.public_message if halt else None)
        return True

    def _bill(self, leadership: Leadership) -> CycleResult:
        self._guard.unsuspend(leadership)
        log.info("cycle.started")
        result = self._cycle.run(leadership, looked=True, on_quiet=lambda: self._while_quiet(leadership))
        _log_result(result)
        self._on_cycle_ended(result)
        if self._stop.may_start_cycle():  # a drain leaves the check to the next leader
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
