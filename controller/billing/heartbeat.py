"""The heartbeat: what tells the application that billing is alive. Written by the leader alone."""

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import psycopg
import structlog
from psycopg.types.json import Jsonb

from controller import sql
from controller.billing.values import Leadership
from controller.errors import BillingError

log = structlog.get_logger(part="heartbeat")


class Heartbeat:
    """Beats on a session of its own for as long as a leadership lasts, also while it drains.

    Args:
        connect: opens a session in autocommit mode.
        metadata: about this process; the term is added.
        retention_days: for the rows of replicas that are gone.
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
        self._started_at = datetime.now(UTC)  # for people; nothing is computed from it
        self._connection: sql.Connection | None = None
        self._leadership: Leadership | None = None
        self._use = threading.Lock()
        self._stopping = threading.Event()
        self._failing = False

    def start(self, leadership: Leadership) -> None:
        """Writes the first heartbeat, ends the rows of those who led before, and removes old ones."""
        self._leadership = leadership
        self._write(["heartbeat", "close_other_statuses", "prune_statuses"])

    def beat(self) -> bool:
        """Writes a heartbeat now, if this replica leads; whether it was written. Any thread."""
        return self._write(["heartbeat"])

    def mark_stopped(self) -> None:
        """Writes `stopped`, leaving the heartbeat's time as it is; nothing is written after it."""
        self._write(["mark_stopped"])
        self._leadership = None

    def run(self) -> None:
        """The loop, until `stop`."""
        while not self._stopping.wait(self._interval_seconds):
            self.beat()
        with self._use:
            self._disconnect()

    def stop(self) -> None:
        """Ends the loop."""
        self._stopping.set()

    def _write(self, statements: list[str]) -> bool:
        with self._use:
            leadership = self._leadership
            if leadership is None or not leadership.still_leads():
                self._disconnect()
                return False
            parameters = self._identity | {
                "term": leadership.term,
                "started_at": self._started_at,
                "metadata": Jsonb({**self._metadata, "term": leadership.term}),
                "retention_days": self._retention_days,
            }
            try:
                for name in statements:
                    if name == "heartbeat" and sql.optional_row(self._session(), name, **parameters) is None:
                        return False  # a newer term has begun
                    if name != "heartbeat":
                        sql.run(self._session(), name, **parameters)
            except (psycopg.Error, BillingError) as error:
                self._disconnect()
                tell = log.debug if self._failing else log.warning
                tell("heartbeat.failed", error=str(error).split("\n", 1)[0])
                self._failing = True
                return False
            self._failing = False
            return True

    def _session(self) -> sql.Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
