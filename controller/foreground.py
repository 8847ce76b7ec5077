"""`containerstacks-billing bill`: one cycle in the foreground, under the lock, with pings and heartbeats."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from queue import Empty, Queue
from typing import Final

import structlog

from controller import sql
from controller.app import STOP_SECONDS, Application
from controller.billing.cycle import Cycle
from controller.billing.errors import StoppedError
from controller.billing.other_billers import LOOK_SECONDS, look, refuse_if_halted
from controller.billing.values import BatchResult, CycleResult
from controller.election import Elector, Leadership
from controller.errors import AnotherLeaderError, BillingError, DatabaseUnreachableError
from controller.lifecycle.services import Service, Services
from controller.lifecycle.signals import Signals
from controller.lifecycle.stop import StopToken
from controller.postgres import migrations
from controller.postgres.claim import refuse_other_controller

#: How long `bill` waits for a lock that was just free.
ELECTION_SECONDS: Final = 5.0

log = structlog.get_logger(part="app")


class UnprovenError(BillingError):
    """No heartbeat was written for 90 minutes, and a trial shows that billing would fail."""


class LockHeldError(BillingError):
    """A session that has not minted the newest term holds the lock."""


class DryRunLeadership:
    """A dry run needs no leadership, because everything it writes is rolled back."""

    def __init__(self, term: int) -> None:
        self.term = term

    def still_leads(self) -> bool:
        return True


def bill(
    application: Application,
    signals: Signals,
    *,
    dry: bool,
    on_planned: Callable[[int], None],
    on_result: Callable[[BatchResult], None],
) -> CycleResult:
    """Runs one cycle. A signal stops it after the batch in hand. A dry run needs no lock and rolls everything back.

    Raises:
        AnotherLeaderError: a replica leads already.
        DatabaseUnreachableError: PostgreSQL can't be reached.
        SchemaError: the database has not been migrated.
    """
    stop = StopToken()
    cycle = application.cycle(stop)
    if dry:
        leadership = DryRunLeadership(application.current_term())
        application.assume_unsuspended = application.guard(stop).clean_suspended()
        with _stopped_by(signals, stop):
            return cycle.run(leadership, dry=True, on_planned=on_planned, on_result=on_result)
    guard = application.guard(stop)
    with _stopped_by(signals, stop), _leading(application, cycle, stop) as leading:
        guard.unsuspend(leading)
        result = cycle.run(leading, on_planned=on_planned, on_result=on_result)
        guard.check(leading)
        return result


@contextmanager
def _leading(application: Application, cycle: Cycle, stop: StopToken) -> Iterator[Leadership]:
    """Leads during a block, and pings and writes heartbeats as a replica does."""
    _refuse_if_led(application)
    elected: Queue[Leadership | BaseException] = Queue()
    elector = Elector(
        connect=application.open_lock_session,
        bounds=application.settings.bounds,
        clock=time.monotonic,
        on_elected=elected.put,
        on_ended=lambda _leadership, _reason: None,  # the cycle checks `still_leads` before each transaction
    )
    heartbeat = application.heartbeat()
    services = Services(lambda _name, error: elected.put(error))
    services.add(Service("elector", elector.run, elector.stop))
    services.add(Service("heartbeat", heartbeat.run, heartbeat.stop))
    services.start()
    try:
        leadership = _wait_for_election(elected, elector)
        ledger = application.ledger()
        with ledger.connection:
            with ledger.fenced(leadership.term):
                start = ledger.begin_term(application.settings.interval_minutes, application.settings.other_billers)
            refuse_if_halted(look(ledger, leadership.term))
            if start.silent:
                if (reason := cycle.prove(leadership)) is not None:
                    raise UnprovenError(f"billing would fail, so no organization was charged: {reason}")
                log.warning(
                    "takeover.undelayed",
                    remedy="there has been no heartbeat for 90 minutes: make sure that the application's own billing"
                    " is not running",
                )
            if start.silent or start.after_other:
                with ledger.fenced(leadership.term):
                    ledger.begin_takeover(delay_seconds=0)  # the operator decides when `bill` runs
        heartbeat.start(leadership)
        _wait_for_takeover(application, leadership, stop)
        yield leadership
        heartbeat.mark_stopped()
    finally:
        services.stop("elector", STOP_SECONDS)
        services.stop("heartbeat", STOP_SECONDS)


def _wait_for_takeover(application: Application, leadership: Leadership, stop: StopToken) -> None:
    """Waits for the end of a takeover that an earlier leader has begun.

    Raises:
        StoppedError: a signal ended the wait.
        HaltedError: billing is halted.
    """
    told: datetime | None = None
    while leadership.still_leads():
        ledger = application.ledger()
        with ledger.connection:
            refuse_if_halted(look(ledger, leadership.term))
            wait = ledger.takeover_wait()
        if wait is None:
            return
        if told != (told := wait.until):
            log.warning(
                "takeover.awaited",
                until=wait.until.isoformat(timespec="seconds"),
                reason="the application's own billing may be in the middle of a run",
            )
        stop.wait(min(wait.seconds, LOOK_SECONDS))
        if not stop.may_start_batch():
            raise StoppedError(f"stopped before the takeover delay had passed at {wait.until:%H:%M:%S} UTC")


def _refuse_if_led(application: Application) -> None:
    with application.direct.connect() as connection:
        migrations.check(connection)
        refuse_other_controller(connection, application.lock.name, application.lock.key)
        holder = sql.optional_row(connection, "lock_holder", **application.lock.catalog_key)
    if holder is not None and holder["without_term"]:
        raise LockHeldError(
            f"{holder['without_term']} holds the billing lock without a term, so no replica can lead; end that session,"
            " or try again if it is a replica that has just been elected"
        )
    if holder is not None:
        raise AnotherLeaderError(
            f"{holder['application_name'].rpartition(' ')[2]} leads and bills already;"
            " `containerstacks-billing trigger` makes it run a cycle now"
        )


def _wait_for_election(elected: "Queue[Leadership | BaseException]", elector: Elector) -> Leadership:
    try:
        leadership = elected.get(timeout=ELECTION_SECONDS)
    except Empty:
        if elector.trouble:
            raise DatabaseUnreachableError(elector.trouble) from None
        raise AnotherLeaderError("another replica took the lock first; see `containerstacks-billing status`") from None
    if isinstance(leadership, BaseException):
        raise leadership
    return leadership


@contextmanager
def _stopped_by(signals: Signals, stop: StopToken) -> Iterator[None]:
    """Stops batches when a signal arrives within the block."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if signals.wait(None):
                stop.stop_batches()

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signals.wake()
        watcher.join(STOP_SECONDS)
