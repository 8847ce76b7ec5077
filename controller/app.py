"""The composition root: builds, from the settings, the parts that the commands use.

`replica` and `foreground` put these parts together: a controller process, and the command `bill`.
"""

import getpass
import os
import platform
import secrets
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final
from uuid import UUID

import psycopg

from controller import __version__, sql
from controller.billing import access, adoption
from controller.billing.audit import AuditReport, audit
from controller.billing.backlog import read_unrecorded
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.guard import Guard
from controller.billing.heartbeat import Heartbeat
from controller.billing.ledger import Ledger
from controller.billing.status import Status, read_history, read_status
from controller.billing.values import Pricing
from controller.election import LockSession, LockSessionError
from controller.errors import BillingError, DatabaseUnreachableError, one_line
from controller.generation import GENERATION
from controller.k8s import Pod, find_pod
from controller.lifecycle.stop import StopToken
from controller.postgres import migrations, state_tables
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.certificates import use_system_certificates
from controller.postgres.connections import (
    BILLER,
    CYCLE,
    FOREGROUND,
    GUARD,
    HEARTBEAT,
    MIGRATION,
    WORKER,
    Database,
    SessionSettings,
)
from controller.postgres.lock_session import LockName, PostgresLockSession
from controller.postgres.patience import patiently
from controller.postgres.spare_sessions import SpareSessions
from controller.settings import Settings
from controller.web_reader import WebReader

#: How long a service may take to end after it is told to. Every wait inside a service is shorter.
STOP_SECONDS: Final = 10.0
#: The session of the status page and the metrics. A person's `status` may take longer.
STATUS: Final = replace(HEARTBEAT, purpose="status")
#: The migration that adopts the wallets.
ADOPTION: Final = "015_billing_wallet_baselines"
#: The sessions that a new leader needs for its first charge, with the statements that it executes on each.
FIRST_STATEMENTS: Final = (
    (
        BILLER,
        (
            *("fence", "begin_term", "observe_daemons", "extend_takeover", "record_foreign_periods"),
            *("prune_foreign_periods", "notices", "seconds_until_due"),
        ),
    ),
    (HEARTBEAT, ("close_other_statuses", "heartbeat", "prune_statuses")),
    (GUARD, ("suspended_organizations",)),
    (
        CYCLE,
        (
            *("not_tables", "missing_rights", "hidden_rows", "unfit_columns", "unknown_price_columns"),
            *(
                "fence",
                "observe_daemons",
                "extend_takeover",
                "record_foreign_periods",
                "prune_foreign_periods",
                "notices",
            ),
            *("close_abandoned_runs", "record_prices", "begin_run", "begin_heartbeat", "plan_cycle", "record_plan"),
        ),
    ),
    (
        WORKER,
        (
            *("fence", "charge_covered", "charge_wallets", "lock_organizations", "adopt_wallets", "reckon_ordered"),
            *("clear_open_rows", "settle_periods", "settle_wallets"),
        ),
    ),
)


def instance_id(pod_name: str | None = None) -> str:
    """Names this process in logs, terms and `billing_daemon_status`: `pod:suffix` in Kubernetes, else `hostname-pid`.

    In a container the pid is always 1, and the hostname may cut off a long pod name. The suffix is random, so a
    restarted container gets a new id. The separator is a colon because a pod's name can't contain one, and because a
    double click selects the text before it.
    """
    return storable(f"{pod_name[:240]}:{_suffix()}" if pod_name else f"{socket.gethostname()}-{os.getpid()}")


@cache
def _suffix() -> str:
    return secrets.token_hex(2)


def storable(text: str) -> str:
    """Replaces bytes of the environment that are not UTF-8, because PostgreSQL refuses them."""
    return text.encode("utf-8", "replace").decode()


def _user() -> str:
    """Returns the name of the operating system's user, or the uid if it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


class Application:
    """Builds the objects that need a database. Building them opens no connection and reads no file with a URL."""

    def __init__(self, settings: Settings) -> None:
        use_system_certificates(os.environ)
        self.settings = settings
        self.instance_id = instance_id(settings.pod_name)
        self.lock = LockName(settings.lock_name)
        self.database = Database(settings.read_url, "DATABASE_URL", self.instance_id)
        self.direct = Database(settings.read_direct_url, settings.direct_url_setting, self.instance_id)
        self.pricing = Pricing(
            settings.default_monthly_price, settings.currency, settings.accepted_columns, settings.max_backlog_hours
        )
        #: `connect` takes a session from here before it opens one. Only a standby fills them.
        self.spare_sessions = SpareSessions(self.database, FIRST_STATEMENTS)
        #: Called for each transaction that the fence refuses.
        self.on_fenced: Callable[[], None] = lambda: None
        #: Organizations that a dry run charges although they are suspended, as the next cycle will.
        self.assume_unsuspended: tuple[UUID, ...] = ()

    # --- the parts of a replica

    def cycle(self, stop: StopToken, *, paced: bool = False) -> Cycle:
        """Returns the object that runs cycles. Only a replica's cycles are paced; `bill` runs at full speed."""
        settings = CycleSettings(
            workers=self.settings.workers,
            batch_size=self.settings.batch_size,
            retention_days=self.settings.status_retention_days,
            pace=self.settings.pace if paced else 1.0,
            interval_minutes=self.settings.interval_minutes,
        )
        return Cycle(partial(self.ledger, CYCLE), partial(self.ledger, WORKER), settings, stop)

    def guard(self, stop: StopToken) -> Guard:
        return Guard(partial(self.ledger, GUARD), stop)

    def heartbeat(self) -> Heartbeat:
        return Heartbeat(
            connect=partial(self.connect, HEARTBEAT),
            instance_id=self.instance_id,
            metadata=self._metadata(),
            interval_seconds=self.settings.heartbeat_seconds,
            retention_days=self.settings.status_retention_days,
        )

    def open_lock_session(self) -> LockSession:
        """Opens a lock session, and checks that this replica could bill.

        Raises:
            LockSessionError: PostgreSQL can't be reached, or is not ready for billing yet; try again.
            SettingsError: the session would go through a pooler that moves it between backends.
        """
        session = PostgresLockSession.open(self.direct, self.lock, self.settings.bounds, self._recorded_pod())
        try:
            session.check_schema()
            with self.connect(BILLER) as connection:  # through the workers' connection string
                access.check(connection, self.pricing.accepted_columns)
        except (BillingError, psycopg.Error) as error:
            session.close()
            raise LockSessionError(one_line(error)) from None
        return session

    def pod(self) -> Pod | str:
        """Returns the pod that this process runs in, or the reason why nothing is sent to Kubernetes."""
        settings = self.settings
        if settings.kubernetes == "off":
            return "switched off"
        return find_pod(
            {"KUBERNETES_SERVICE_HOST": settings.kubernetes_service_host or ""},
            namespace=settings.pod_namespace,
            name=settings.pod_name,
            uid=settings.pod_uid,
            deployment=settings.deployment_name,
        )

    def former_leader_pods(self, term: int) -> list[Pod]:
        """Reads the pods that led before a term, newest first. The call is bounded in time.

        Raises:
            DatabaseUnreachableError: they can't be read.
        """
        try:
            with self.connect(STATUS) as connection:
                rows = sql.rows(connection, "former_leader_pods", term=term, uid=self.settings.pod_uid)
        except psycopg.Error as error:
            raise DatabaseUnreachableError(one_line(error)) from None
        return [Pod(row["namespace"], row["name"], row["uid"]) for row in rows]

    def _recorded_pod(self) -> dict[str, str] | None:
        """Returns what is recorded with each term, so that a successor can remove the role label from this pod."""
        pod = self.pod()
        if isinstance(pod, str) or pod.uid is None:
            return None
        return {"namespace": pod.namespace, "name": pod.name, "uid": pod.uid}

    def redact(self, text: str) -> str:
        """Masks this process's database passwords in a text from outside."""
        for secret in self.settings.secrets():
            text = text.replace(secret, "***")
        return text

    def _redacted(self, run: dict[str, Any]) -> dict[str, Any]:
        return {**run, "error": run["error"] and self.redact(run["error"])}

    # --- sessions

    def connect(self, kind: SessionSettings = FOREGROUND) -> BoundedConnection:
        """Takes a spare session of this kind if there is one, and opens one otherwise."""
        return self.spare_sessions.take(kind) or self.database.connect(kind)

    def connect_patiently(self, seconds: float, progress: Callable[[str], None]) -> BoundedConnection:
        """Opens a foreground session; waits for a database that isn't ready, as `migrate` does."""
        return patiently(self.connect, seconds, lambda line: progress(self.redact(line)))

    def ledger(self, kind: SessionSettings = BILLER) -> Ledger:
        """Opens a session and wraps it in a ledger."""
        return self._ledger(self.connect(kind))

    # --- one read or write for a command or a page

    def migrate(self, progress: Callable[[str], None], wait_seconds: float = 0) -> list[str]:
        """Applies pending migrations and repairs state tables that were emptied or doubled.

        Returns:
            One line for each step; none if there was nothing to do. The first migration of a database with rows adds
            what it found.

        Args:
            progress: called with one line for each step that may take long.
            wait_seconds: how long to wait for a database that isn't ready; see `postgres.patience`.
        """

        def attempt() -> list[str]:
            with self.direct.connect(MIGRATION) as connection:
                applied = migrations.migrate(connection, progress)
                repaired = state_tables.repair(connection, generation=GENERATION, version=__version__)
                report = self._adoption_report(connection) if ADOPTION in applied else []
            done = (("applied", applied), ("repaired", repaired))
            return [*(f"{what} {', '.join(names)}" for what, names in done if names), *report]

        return patiently(attempt, wait_seconds, lambda line: progress(self.redact(line)))

    def _adoption_report(self, connection: BoundedConnection) -> list[str]:
        """Returns the lines of the report. The migration has succeeded, so a failure only adds a line."""
        try:
            return list(adoption.lines(adoption.read_adoption(connection, self.pricing)))
        except psycopg.Error as error:
            return [f"could not read what the database holds: {one_line(error)}"]

    def check_schema(self, progress: Callable[[str], None], wait_seconds: float = 0) -> None:
        """Raises SchemaError unless billing can work on this database. The arguments are those of `migrate`."""

        def attempt() -> None:
            with self.connect() as connection:
                migrations.check(connection)

        patiently(attempt, wait_seconds, lambda line: progress(self.redact(line)))

    def status(self) -> Status:
        """Reads what `status` shows."""
        with self.connect() as connection:
            migrations.check(connection)
            status = read_status(connection)
        return replace(status, last_run=status.last_run and self._redacted(status.last_run))

    def web_reader(self) -> WebReader:
        """Returns the reader of what the HTTP servers show."""
        return WebReader(partial(self.connect, STATUS), self.pricing, self.redact)

    def unrecorded(self) -> list[dict[str, Any]]:
        """Reads the instances with many unrecorded hours, for a dry run."""
        with self.connect() as connection:
            return read_unrecorded(connection, self.pricing)

    def operator(self, name: str | None) -> str:
        """Returns who is giving a command, and from where, for the record.

        Args:
            name: the person's name; None for the operating system's user.
        """
        pod = self.settings.pod_name
        return storable(f"{name or _user()} {f'in pod {pod}' if pod else f'on {socket.gethostname()}'}")

    def history(self, limit: int) -> list[dict[str, Any]]:
        """Reads the newest runs, newest first."""
        with self.connect() as connection:
            migrations.check(connection)
            return [self._redacted(run) for run in read_history(connection, limit)]

    def audit(self) -> AuditReport:
        with self.connect() as connection:
            migrations.check(connection)
            return audit(connection)

    def current_term(self) -> int:
        """Reads the newest term."""
        with self.connect() as connection:
            migrations.check(connection)
            return self._ledger(connection).current_term()

    def _ledger(self, connection: BoundedConnection) -> Ledger:
        return Ledger(connection, self.pricing, self.instance_id, self.on_fenced, self.assume_unsuspended)

    def _metadata(self) -> dict[str, Any]:
        settings = self.settings
        values = {
            "version": __version__,
            "os": platform.system(),
            "os_release": platform.release(),
            "python": platform.python_version(),
            "interval_minutes": settings.interval_minutes,
            **({"pod": settings.pod_name} if settings.pod_name else {}),
            **({"node": settings.node_name} if settings.node_name else {}),
        }
        return {key: storable(value) if isinstance(value, str) else value for key, value in values.items()}
