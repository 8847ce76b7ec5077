"""The composition root: puts a replica together, and the one-off commands. The only module that imports everything."""

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from queue import Empty, Queue
from typing import Any, Final

import structlog

from controller import __version__
from controller.billing.audit import AuditReport, audit
from controller.billing.biller import Biller
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.heartbeat import Heart
from controller.billing.ledger import Ledger
from controller.billing.values import Charged, CycleResult, Pricing
from controller.election import Elector, Leadership, LockSession, LockSessionError, Role
from controller.errors import AnotherLeaderError, BillingError, DatabaseUnreachableError
from controller.lifecycle import systemd
from controller.lifecycle.control import DRAIN_COMMAND, ControlSocket
from controller.lifecycle.drain import Drain, DrainSteps
from controller.lifecycle.services import Service, Services
from controller.lifecycle.signals import Signals
from controller.postgres import migrations, queries
from controller.postgres.connections import (
    FOREGROUND,
    HEARTBEAT,
    MIGRATION,
    WORKER,
    BoundedConnection,
    Database,
    SessionSettings,
)
from controller.postgres.lock_session import LockName, PostgresLockSession
from controller.postgres.overview import Overview, overview
from controller.settings import Settings

#: After a `drain` command the process waits so long for its SIGTERM, so that the command can answer first.
LINGER_SECONDS: Final = 5.0
#: A service that has been told to stop has this long; every wait in it is shorter.
STOP_SECONDS: Final = 10.0
#: For an elector that does not lead.
CONNECTING_SECONDS: Final = 0.5
#: For `bill`, to take a lock that was free a moment ago.
BILL_ELECTION_SECONDS: Final = 5.0

log = structlog.get_logger(part="app")


def instance_id() -> str:
    """`hostname-pid`, under which the status table knows this process."""
    return f"{socket.gethostname()}-{os.getpid()}"


class Application:
    """Everything that needs a database; nothing is connected before it is used."""

    def __init__(self, settings: Settings) -> None:
        settings.require_database()
        self.settings = settings
        self.instance_id = instance_id()
        self.statements = queries.load()
        self.lock = LockName(settings.lock_name)
        self.database = Database(settings.read_url, "DATABASE_URL", self.instance_id)
        self.direct = Database(settings.read_direct_url, settings.direct_url_setting, self.instance_id)
        self.pricing = Pricing(settings.default_monthly_price, settings.currency)

    def connect(self, kind: SessionSettings = FOREGROUND) -> BoundedConnection:
        """A session of a kind."""
        return self.database.connect(kind)

    def connect_patiently(self, seconds: float) -> BoundedConnection:
        """A foreground session on a server that may still be starting; the last error after `seconds`."""
        give_up_at = time.monotonic() + seconds
        while True:
            try:
                return self.connect(FOREGROUND)
            except DatabaseUnreachableError:
                if time.monotonic() >= give_up_at:
                    raise
            time.sleep(1)

    def ledger(self, kind: SessionSettings = FOREGROUND) -> Ledger:
        """The money, as seen from a session of a kind."""
        return Ledger(self.connect(kind), self.statements, self.pricing)

    def cycle(self, may_go_on: Callable[[], bool], pause: Callable[[float], None]) -> Cycle:
        """A cycle with this application's settings."""
        settings = CycleSettings(
            self.settings.workers,
            self.settings.batch_size,
            self.instance_id,
            self.settings.status_retention_days,
        )
        return Cycle(self.ledger, partial(self.ledger, WORKER), settings, may_go_on, pause)

    def heart(self) -> Heart:
        """The heartbeat of this process."""
        return Heart(
            connect=partial(self.connect, HEARTBEAT),
            statements=self.statements,
            instance_id=self.instance_id,
            metadata=self._metadata(),
            interval_seconds=self.settings.heartbeat_seconds,
            retention_days=self.settings.status_retention_days,
        )

    def open_lock_session(self) -> LockSession:
        """Connects for an election; a database that is not ready for billing is a reason to wait."""
        session = PostgresLockSession.open(self.direct, self.statements, self.lock, self.settings.bounds)
        try:
            session.check_schema()
        except BillingError as error:
            session.close()
            raise LockSessionError(str(error)) from None
        return session

    def migrate(self) -> list[str]:
        """Applies pending migrations; gives their names."""
        with self.direct.connect(MIGRATION) as connection:
            return migrations.migrate(connection)

    def check_schema(self) -> None:
        """Raises SchemaError unless billing can work on this database."""
        with self.connect() as connection:
            migrations.check(connection)

    def overview(self) -> Overview:
        """What `status` shows."""
        with self.connect() as connection:
            migrations.check(connection)
            return overview(connection, self.statements, self.lock, self.settings.interval_minutes)

    def history(self, limit: int) -> list[dict[str, Any]]:
        """The newest runs, newest first."""
        with self.connect() as connection:
            migrations.check(connection)
            return connection.execute(self.statements["history"].encode(), {"limit": limit}).fetchall()

    def audit(self) -> AuditReport:
        """Checks every invariant."""
        with self.connect() as connection:
            migrations.check(connection)
            return audit(connection, self.statements)

    def bill(
        self,
        signals: Signals,
        *,
        dry: bool,
        on_planned: Callable[[int], None],
        on_charged: Callable[[Charged], None],
    ) -> CycleResult:
        """One cycle, in the foreground. A dry one needs no lock and leaves no trace.

        Raises:
            AnotherLeaderError: a replica leads already.
        """
        stopping = threading.Event()

        def pause(seconds: float) -> None:
            stopping.wait(seconds)

        cycle = self.cycle(lambda: not stopping.is_set(), pause)
        if dry:
            with self.connect() as connection:
                migrations.check(connection)
                standing = _Standing(Ledger(connection, self.statements, self.pricing).current_term())
            with _stopped_by(signals, stopping):
                return cycle.run(standing, dry=True, on_planned=on_planned, on_charged=on_charged)
        with self._leading() as leadership, _stopped_by(signals, stopping):
            return cycle.run(leadership, on_planned=on_planned, on_charged=on_charged)

    @contextmanager
    def _leading(self) -> Iterator[Leadership]:
        """Leads for the length of a block, with pings and heartbeats as a replica does.

        Raises:
            AnotherLeaderError: the lock is taken.
            DatabaseUnreachableError, SchemaError: as they say.
        """
        with self.direct.connect() as connection:
            migrations.check(connection)
            holder = connection.execute(self.statements["lock_holder"].encode(), self.lock.halves).fetchone()
        if holder is not None:
            raise AnotherLeaderError(
                f"{holder['application_name'].rpartition(' ')[2]} leads and bills by itself;"
                " see `containerstacks-billing status`"
            )
        elected: Queue[Leadership] = Queue()
        elector = Elector(
            connect=self.open_lock_session,
            bounds=self.settings.bounds,
            clock=time.monotonic,
            on_elected=elected.put,
            on_deposed=lambda _leadership: None,
        )
        heart = self.heart()
        services = Services(
            [
                Service("elector", elector.run, elector.stop),
                Service("heart", heart.run, heart.stop),
            ],
            lambda name, error: log.error("service.crashed", service=name, error=str(error)),
        )
        services.start()
        try:
            try:
                leadership = elected.get(timeout=BILL_ELECTION_SECONDS)
            except Empty:
                raise AnotherLeaderError("another replica was faster; see `containerstacks-billing status`") from None
            ledger = self.ledger()
            with ledger.connection:
                if ledger.begin_takeover(leadership.term, 0):
                    log.warning(
                        "takeover.undelayed",
                        remedy="no heartbeat for 90 minutes: make sure that the"
                        " application's own billing is not in the middle of a run",
                    )
            heart.take_office(leadership)
            yield leadership
            heart.beat()
            heart.leave_office()
        finally:
            services.stop("elector", STOP_SECONDS)
            services.stop("heart", STOP_SECONDS)

    def _metadata(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "version": __version__,
            "os": platform.system(),
            "os_release": platform.release(),
            "python": platform.python_version(),
            "interval_minutes": settings.interval_minutes,
            **({"pod": settings.pod_name} if settings.pod_name else {}),
            **({"node": settings.node_name} if settings.node_name else {}),
        }


class _Standing:
    """The leadership of a dry run: it writes nothing that stays."""

    def __init__(self, term: int) -> None:
        self.term = term

    def still_leads(self) -> bool:
        return True


@contextmanager
def _stopped_by(signals: Signals, stopping: threading.Event) -> Iterator[None]:
    """Sets `stopping` when a signal arrives within the block: the cycle ends after the batch in hand."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if signals.wait(None):
                stopping.set()

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        signals.wake()
        watcher.join(STOP_SECONDS)


class Replica:
    """One controller process: contends, leads, bills, drains."""

    def __init__(self, application: Application, signals: Signals) -> None:
        settings = application.settings
        self.application = application
        self._signals = signals
        self._crash: BaseException | None = None
        self.heart = application.heart()
        self.biller = Biller(
            connect=application.ledger,
            make_cycle=lambda biller: application.cycle(biller.may_go_on, biller.pause),
            heart=self.heart,
            interval_minutes=settings.interval_minutes,
            takeover_delay_seconds=settings.takeover_delay_seconds,
            step_down=lambda seconds: self.elector.step_down(seconds),  # noqa: PLW0108 - made below
            on_cycle=lambda _result: None,
        )
        self.elector = Elector(
            connect=application.open_lock_session,
            bounds=settings.bounds,
            clock=time.monotonic,
            on_elected=self.biller.elected,
            on_deposed=self.biller.deposed,
        )
        self.drain = Drain(
            DrainSteps(
                refuse_traffic=lambda: None,
                finish_work=lambda seconds: self._services.stop("biller", seconds),
                stop_after_batch=self.biller.stop_after_batch,
                resign=self._resign,
            ),
            settings.drain_timeout_seconds,
            time.monotonic,
            on_asked=signals.wake,
        )
        services = [
            Service("elector", self.elector.run, self.elector.stop),
            Service("biller", self.biller.run, self.biller.drain),
            Service("heart", self.heart.run, self.heart.stop),
        ]
        if settings.control_socket is not None:
            control = ControlSocket(settings.control_socket, self.drain)
            services.append(Service("control", control.run, control.stop))
        self._services = Services(services, self._crashed)
        self._names = [service.name for service in services]

    def run(self) -> int:
        """Runs until it is asked to stop, and drains; the exit status."""
        log.info("controller.started", version=__version__, lock=self.application.lock.name)
        self._services.start()
        systemd.notify(self.application.settings.notify_socket, "READY=1")
        asked_by_signal = False
        while not self.drain.asked:
            for number in self._signals.wait(None):
                asked_by_signal = True
                self.drain.ask(number.name)
        systemd.notify(self.application.settings.notify_socket, "STOPPING=1")
        draining = threading.Thread(target=self.drain.carry_out, name="drain", daemon=True)
        draining.start()
        while draining.is_alive():
            for _number in self._signals.wait(0.1):
                if asked_by_signal:
                    self.drain.hurry()
                asked_by_signal = True
        if self.drain.reason == DRAIN_COMMAND and not asked_by_signal:
            self._signals.wait(LINGER_SECONDS)
        for name in reversed([name for name in self._names if name != "elector"]):
            if not self._services.stop(name, STOP_SECONDS):
                log.warning("service.stuck", service=name, waited_seconds=STOP_SECONDS)
        log.info("controller.stopped")
        return self._exit_status()

    def _resign(self, seconds: float) -> bool:
        """One that holds nothing may be in the middle of connecting, for which nobody has to wait."""
        return self._services.stop("elector", seconds if self.elector.role is Role.LEADER else CONNECTING_SECONDS)

    def _exit_status(self) -> int:
        if self._crash is None:
            return 0
        return self._crash.exit_status if isinstance(self._crash, BillingError) else 1

    def _crashed(self, name: str, error: BaseException) -> None:
        self._crash = self._crash or error
        self.drain.ask(f"{name} crashed")
        if isinstance(error, BillingError):
            log.error("service.crashed", service=name, error=str(error))
        else:
            log.error("service.crashed", service=name, exc_info=error)
