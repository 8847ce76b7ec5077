"""The heartbeat, which tells the application that billing is alive. Only the leader writes it."""

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from psycopg.types.json import Jsonb

from controller import sql
from controller.billing.values import Leadership
from controller.errors import BillingError, one_line
from controller.generation import GENERATION
from controller.log import WarnOnce

log = structlog.get_logger(part="heartbeat")


class Heartbeat:
    """Writes a heartbeat at a fixed interval for as long as a leadership lasts, even during a drain.

    Args:
        connect: opens a session in autocommit mode.
        instance_id: the key of this process's row in `billing_daemon_status`.
        metadata: describes this process in that row; the term is added.
        interval_seconds: time between two heartbeats.
        retention_days: how long the rows of other replicas are kept.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], sql.Connection],
        instance_id: str,
        metadata: Mapping[str, Any],
        interval_seconds: float,
        retention_days: int,
    ) -> None:
        self._connect = connect
        self._identity = {"instance_id": instance_id}
        self._metadata = metadata
        self._interval_seconds = interval_seconds
        self._retention_days = retention_days
        self._started_at = datetime.now(UTC)  # this process's clock: shown to people, never used in a computation
        self._leadership: Leadership | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._failures = WarnOnce(log, "heartbeat.failed")
        self._withheld = WarnOnce(log, "heartbeat.withheld")

    def start(self, leadership: Leadership) -> None:
        """Writes the first heartbeat of a term, closes the rows of earlier leaders, and deletes old rows."""
        self._leadership = leadership
        self._write_first()

    def start_soon(self, leadership: Leadership) -> None:
        """Makes the thread in `run` do what `start` does, and returns at once.

        The first charge needn't wait for this heartbeat, because the transaction that begins a run writes one too.
        """
        self._leadership = leadership
        self._wake.set()

    def beat(self) -> bool:
        """Writes a heartbeat now if this replica leads and billing is less than 90 minutes overdue. Any thread.

        Returns:
            True if it was written.
        """
        return self._write(["heartbeat"])

    def mark_stopped(self) -> None:
        """Sets the status to `stopped` without refreshing the heartbeat, and writes nothing afterwards."""
        self._write(["mark_stopped"])
        self._leadership = None

    def run(self) -> None:
        """Writes heartbeats until `stop` is called."""
        while True:
            woken = self._wake.wait(self._interval_seconds)
            self._wake.clear()
            if self._stopping.is_set():
                return
            if woken:
                self._write_first()
            else:
                self.beat()

    def stop(self) -> None:
        """Ends the loop. Any thread."""
        self._stopping.set()
        self._wake.set()

    def _write_first(self) -> None:
        self._write(["close_other_statuses", "heartbeat", "prune_statuses"])

    def _write(self, statements: list[str]) -> bool:
        with self._lock:
            leadership = self._leadership
            if leadership is None or not leadership.still_leads():
                return False
            parameters = self._identity | {
                "term": leadership.term,
                "generation": GENERATION,
                "started_at": self._started_at,
                "metadata": Jsonb({**self._metadata, "term": leadership.term}),
                "retention_days": self._retention_days,
            }
            try:
                # The server may end a session that is idle until the next heartbeat. Each statement is a transaction,
                # so that old rows that can't be deleted don't cost the heartbeat.
                with self._connect() as connection:
                    for name in statements:
                        if name != "heartbeat":
                            sql.run(connection, name, **parameters)
                        elif sql.optional_row(connection, name, **parameters) is None:
                            self._report_withheld(connection, parameters)
                            return False
            except (psycopg.Error, BillingError) as error:
                self._failures.failed(error=one_line(error))
                return False
            self._failures.worked()
            self._withheld.worked()
            return True

    def _report_withheld(self, connection: sql.Connection, parameters: Mapping[str, Any]) -> None:
        """Warns that billing is overdue. Logs nothing if a newer term has begun."""
        row = sql.row(connection, "heartbeat_withheld", **parameters)
        if (minutes := row["overdue_minutes"]) is not None:
            self._withheld.failed(
                overdue_minutes=round(minutes),
                reason="the next cycle is 90 minutes overdue, so the application's own billing must be able to start",
            )
