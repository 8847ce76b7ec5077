"""The composition root: what every command is made of. With `replica`, the only module that imports everything."""

import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from queue import Empty, Queue
from typing import Any, Final

import psycopg
import structlog

from controller import __version__, sql
from controller.billing.audit import AuditReport, audit
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.status import Status, read_history, read_status
from controller.billing.values import BatchResult, CycleResult, Pricing
from controller.election import Elector, Leadership, LockSession, LockSessionError
from controller.errors import AnotherLeaderError, BillingError, DatabaseUnreachableError
from controller.k8s import Pod, find_pod
from controller.lifecycle.services import Service, Services
from controller.lifecycle.signals import Signals
from controller.postgres import migrations
from controller.postgres.connections import (
    BILLER,
    CYCLE,
    FOREGROUND,
    GUARD,
    HEARTBEAT,
    MIGRATION,
    WORKER,
    BoundedConnection,
    Database,
    SessionSettings,
    one_line,
)
from controller.postgres.lock_session import LockName, PostgresLockSession
from controller.settings import Settings

#: A service that has been told to stop has this long; every wait in it is shorter.
STOP_SECONDS: Final = 10.0
#: For `bill`, to take a lock that was free a moment ago.
BILL_ELECTION_SECONDS: Final = 5.0
#: The status page and the metrics read on a session of this kind; a person's `status` may take longer.
STATUS: Final = replace(HEARTBEAT, purpose="status")
#: On the status page.
SHOWN_RUNS: Final = 10

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
        self.lock = LockName(settings.lock_name)
        self.database = Database(settings.read_url, "DATABASE_URL", self.instance_id)
        self.direct = Database(settings.read_direct_url, settings.direct_url_setting, self.instance_id)
        self.pricing = Pricing(settings.default_monthly_price, settings.currency)
        self.on_fenced: Callable[[], None] = lambda: None

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

    def ledger(self, kind: SessionSettings = BILLER) -> Ledger:
        """The money, as seen from a session of a kind."""
        return self._ledger(self.connect(kind))

    def cycle(self, may_go_on: Callable[[], bool], pause: Callable[[float], None]) -> Cycle:
        """A cycle with this application's settings."""
        settings = CycleSettings(
            self.settings.workers,
            self.settings.batch_size,
            self.settings.status_retention_days,
        )
        return Cycle(partial(self.ledger, CYCLE), partial(self.ledger, WORKER), settings, may_go_on, pause)

    def guard(self, may_go_on: Callable[[], bool]) -> Guard:
        """Looks at what cycles have charged."""
        return Guard(partial(self.ledger, GUARD), may_go_on)

    def heartbeat(self) -> Heartbeat:
        """The heartbeat of this process."""
        return Heartbeat(
            connect=partial(self.connect, HEARTBEAT),
            instance_id=self.instance_id,
            metadata=self._metadata(),
            interval_seconds=self.settings.heartbeat_seconds,
            retention_days=self.settings.status_retention_days,
        )

    def open_lock_session(self) -> LockSession:
        """Connects for an election; a database that is not ready for billing is a reason to wait."""
        session = PostgresLockSession.open(self.direct, self.lock, self.settings.bounds)
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

    def status(self) -> Status:
        """Reads what `status` shows."""
        with self.connect() as connection:
            migrations.check(connection)
            return read_status(connection)

    def read_for_web(self) -> tuple[Status, list[dict[str, Any]]]:
        """Reads what the status page and the metrics show: the status and the newest runs. Bounded in time.

        Raises:
            DatabaseUnreachableError: it can't be read; one line.
        """
        try:
            with self.connect(STATUS) as connection:
                return read_status(connection), read_history(connection, SHOWN_RUNS)
        except psycopg.Error as error:
            raise DatabaseUnreachableError(one_line(error)) from None

    def redact(self, text: str) -> str:
        """A text from elsewhere without our passwords."""
        for secret in self.settings.secrets():
            text = text.replace(secret, "***")
        return text

    def place(self) -> Pod | str:
        """The pod that this process runs in, or why nothing is told to Kubernetes."""
        settings = self.settings
        if settings.kubernetes == "off":
            return "switched off"
        return find_pod(
            {"KUBERNETES_SERVICE_HOST": settings.kubernetes_service_host or ""},
            namespace=settings.pod_namespace,
            pod=settings.pod_name,
            pod_uid=settings.pod_uid,
            deployment=settings.deployment_name,
        )

    def history(self, limit: int) -> list[dict[str, Any]]:
        """The newest runs, newest first."""
        with self.connect() as connection:
            migrations.check(connection)
            return read_history(connection, limit)

    def audit(self) -> AuditReport:
        """Checks every invariant."""
        with self.connect() as connection:
            migrations.check(connection)
            return audit(connection)

    def bill(
        self,
        signals: Signals,
        *,
        dry: bool,
        on_planned: Callable[[int], None],
        on_charged: Callable[[BatchResult], None],
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
                standing = DryRunLeadership(self._ledger(connection).current_term())
            with _stopped_by(signals, stopping):
                return cycle.run(standing, dry=True, on_planned=on_planned, on_charged=on_charged)
        guard = self.guard(lambda: not stopping.is_set())
        with self._leading() as leadership, _stopped_by(signals, stopping):
            guard.release(leadership)
            result = cycle.run(leadership, on_planned=on_planned, on_charged=on_charged)
            guard.look(leadership)
            return result

    @contextmanager
    def _leading(self) -> Iterator[Leadership]:
        """Leads for the length of a block, with pings and heartbeats as a replica does.

        Raises:
            AnotherLeaderError: the lock is taken.
            DatabaseUnreachableError, SchemaError: as they say.
        """
        with self.direct.connect() as connection:
            migrations.check(connection)
            holder = sql.optional_row(connection, "lock_holder", **self.lock.catalog_key)
        if holder is not None:
            raise AnotherLeaderError(
                f"{holder['application_name'].rpartition(' ')[2]} leads and bills by itself;"
                " see `containerstacks-billing status`"
            )
        elected: Queue[Leadership | BaseException] = Queue()
        elector = Elector(
            connect=self.open_lock_session,
            bounds=self.settings.bounds,
            clock=time.monotonic,
            on_elected=elected.put,
            on_deposed=lambda _leadership: None,
        )
        heartbeat = self.heartbeat()
        services = Services(
            [
                Service("elector", elector.run, elector.stop),
                Service("heartbeat", heartbeat.run, heartbeat.stop),
            ],
            lambda _name, error: elected.put(error),
        )
        services.start()
        try:
            try:
                leadership = elected.get(timeout=BILL_ELECTION_SECONDS)
                if isinstance(leadership, BaseException):
                    raise leadership
            except Empty:
                if elector.trouble:
                    raise DatabaseUnreachableError(elector.trouble) from None
                raise AnotherLeaderError("another replica was faster; see `containerstacks-billing status`") from None
            ledger = self.ledger()
            with ledger.connection:
                with ledger.fenced(leadership.term):
                    takeover = ledger.begin_term(self.settings.interval_minutes, 0)
                if takeover:
                    log.warning(
                        "takeover.undelayed",
                        remedy="no heartbeat for 90 minutes: make sure that the"
                        " application's own billing is not in the middle of a run",
                    )
            heartbeat.start(leadership)
            yield leadership
            heartbeat.mark_stopped()
        finally:
            services.stop("elector", STOP_SECONDS)
            services.stop("heartbeat", STOP_SECONDS)

    def _ledger(self, connection: BoundedConnection) -> Ledger:
        return Ledger(connection, self.pricing, self.instance_id, self.on_fenced)

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


class DryRunLeadership:
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
