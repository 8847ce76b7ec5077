"""The dedicated session of an election: it holds the advisory lock."""

import hashlib
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import psycopg
import structlog

from controller import sql
from controller.election import Attempt, Bounds, Holder, LockSessionError, Ping, Predecessor
from controller.errors import BillingError, SettingsError, one_line
from controller.generation import GENERATION, refuse_other_generation
from controller.postgres import migrations
from controller.postgres.bounded_connection import BoundedConnection, InterruptedWaitError
from controller.postgres.claim import SPACE, OtherControllerError, claim, refuse_other_controller
from controller.postgres.connections import (
    Database,
    application_name,
    lock_session_settings,
)
from controller.readable import readable

#: The record of a resignation only informs people. It must not delay the handover, and a crash may lose it.
RESIGNATION: Final = {"lock_timeout": "500ms", "synchronous_commit": "off"}
DEFAULT_LOCK_NAME: Final = "containerstacks-billing"
#: If the server would log even shorter waits, a standby doesn't wait on the server. It tries the lock at intervals.
SHORTEST_WAIT_SECONDS: Final = 0.2
#: Seconds between two such tries.
TRY_SECONDS: Final = 1.0

log = structlog.get_logger(part="election")


@dataclass(frozen=True)
class LockName:
    """The name of the advisory lock. Its key is the first 8 bytes of the name's SHA-256, as a signed integer.

    The key of the default name is 4124582811381579408.
    """

    name: str = DEFAULT_LOCK_NAME

    @property
    def key(self) -> int:
        """The key for `pg_try_advisory_lock(bigint)`."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "big", signed=True)

    @property
    def catalog_key(self) -> dict[str, int]:
        """The key as `pg_locks` shows it: classid and objid."""
        unsigned = self.key % 2**64
        return {"lock_high": unsigned >> 32, "lock_low": unsigned & 0xFFFF_FFFF}


class PostgresLockSession:
    """Implements `controller.election.LockSession`, which documents the methods.

    The connection is in autocommit mode, so that only a mint opens a transaction.
    """

    #: The server setting that was logged as the reason for not waiting. It is logged once per process.
    _logged_limit: str | None = None

    def __init__(
        self, connection: BoundedConnection, lock: LockName, holder: str, bounds: Bounds, pod: Mapping[str, str] | None
    ) -> None:
        self._connection = connection
        # A standby reads this comment in pg_stat_activity; see billing_contend.
        stated = f"/* leads for {bounds.leader_deadline_seconds} s from asking this */"
        self._ping = f"{stated} {sql.load()['ping']}"
        self._contend = f"{stated} {sql.load()['contend']}"
        self._longest_wait_seconds = bounds.wait_seconds
        self._lock = lock
        self._holder = holder
        self._pod = None if pod is None else json.dumps(pod)
        self._backend_pid: int | None = None
        self._watched_pid: int | None = None
        self._term: int | None = None
        self._predecessor: Predecessor | None = None
        self._awake, self._waker = socket.socketpair()
        self._waker.setblocking(False)

    @classmethod
    def open(cls, database: Database, lock: LockName, bounds: Bounds, pod: Mapping[str, str] | None = None) -> Self:
        """Connects, and finds out how long a standby may wait for the lock without filling the server's log.

        Args:
            database: the database, reached without a pooler.
            lock: the lock to contend for.
            bounds: the election's bounds.
            pod: the pod that this replica runs in; recorded with each term that it mints.

        Raises:
            LockSessionError: PostgreSQL can't be reached.
            PoolerError: a pooler moves sessions between backends.
        """
        try:
            connection = database.connect(lock_session_settings(bounds))
        except SettingsError:
            raise
        except BillingError as error:
            raise LockSessionError(str(error)) from None
        try:
            session = cls(connection, lock, database.instance_id, bounds, pod)
            session._limit_waits()
        except (psycopg.Error, OSError) as error:  # OSError: no file descriptor is free
            connection.close()
            raise LockSessionError(one_line(error)) from None
        return session

    def check_schema(self) -> None:
        """Checks that this replica may contend on this database.

        Raises:
            SchemaError: a migration is missing.
            OtherControllerError: a controller with another lock name bills the same instances.
            LockSessionError: the session is lost.
        """
        try:
            migrations.check(self._connection)
            refuse_other_controller(self._connection, self._lock.name, self._lock.key)
        except psycopg.Error as error:
            raise LockSessionError(one_line(error)) from None

    def contend(self, wait_seconds: float) -> Attempt:
        on_server = min(wait_seconds, self._longest_wait_seconds)
        if self._longest_wait_seconds < SHORTEST_WAIT_SECONDS:
            on_server = 0.0
            self.wait(min(wait_seconds, TRY_SECONDS))
        row = self._try(on_server)
        if row is None:
            return Attempt(taken=False)
        if row["locked"]:
            return Attempt(taken=True)
        if row["pid"] is None or row["without_term"] or (row["ours"] and row["deadline_seconds"] is None):
            # the holder is unknown, has gone, or does not lead
            found = self._optional_row("lock_holder", **self._lock.catalog_key)
            before, self._watched_pid = self._watched_pid, found["pid"] if found else None
            if self._watched_pid is None:
                return Attempt(taken=False)
            if self._watched_pid != before:
                return self.contend(0.0)
        watchable = row["ours"] and row["idle"] and row["deadline_seconds"] is not None
        return Attempt(
            taken=False,
            holder=_holder(row) if watchable else None,
            other_role=not row["ours"],
            without_term=row["without_term"],
        )

    def _try(self, wait_seconds: float) -> dict[str, Any] | None:
        """Waits on the server for the lock; returns None if `wake` ended the wait, which closes the session."""
        parameters = {
            "lock_key": self._lock.key,
            # a lock_timeout of zero would wait forever
            "wait_milliseconds": max(round(wait_seconds * 1000), 1) if wait_seconds > 0 else 0,
            "watched_pid": self._watched_pid,
        }
        try:
            with self._connection.interruptible(self._awake, blocked_seconds=wait_seconds):
                (row,) = sql.execute(self._connection, self._contend, parameters)
        except InterruptedWaitError:
            self._connection.close()
            return None
        except psycopg.Error as error:
            self._connection.close()  # the server may have granted the lock
            raise LockSessionError(one_line(error)) from None
        self._refuse_other_generation(row)
        if row["in_recovery"]:
            raise LockSessionError("the server is in recovery: a standby server can't elect a leader")
        return row

    def evict(self, holder: Holder) -> bool:
        row = self._optional_row(
            "evict", pid=holder.pid, began_at=holder.began_at, spoke_at=holder.spoke_at, **self._lock.catalog_key
        )
        return row is not None and bool(row["ended"])

    def mint(self) -> int:
        before = self._row("current_term")
        self._refuse_other_generation(before)
        try:
            claim(self._connection, self._lock.name, self._lock.key)
            if before["holder"] != self._holder:
                sql.run(self._connection, "end_orphaned_batches", former_holder=before["holder"])
            with sql.transaction(self._connection):
                sql.run(self._connection, "close_leadership")
                row = self._row(
                    "mint_term",
                    holder=self._holder,
                    lock_name=self._lock.name,
                    generation=GENERATION,
                    pod=self._pod,
                )
        except (psycopg.Error, OtherControllerError) as error:
            raise LockSessionError(one_line(error)) from None
        if row["former_holder"] is not None:
            self._predecessor = Predecessor(row["former_holder"], resigned=bool(row["former_resigned"]))
        self._term = int(row["term"])
        return self._term

    def predecessor(self) -> Predecessor | None:
        return self._predecessor

    def ping(self) -> Ping:
        try:
            (row,) = sql.execute(self._connection, self._ping, self._lock.catalog_key)
        except psycopg.Error as error:
            raise LockSessionError(one_line(error)) from None
        self._refuse_other_generation(row)
        if self._backend_pid is None:
            self._backend_pid = row["backend_pid"]
        return Ping(
            held=bool(row["held"]) and row["backend_pid"] == self._backend_pid, newest_command=row["newest_command"]
        )

    def wait(self, timeout_seconds: float) -> None:
        try:
            server, awake = self._connection.fileno(), self._awake.fileno()
            ready = readable([server, awake], timeout_seconds)
            if awake in ready:
                self._awake.recv(4096)
            if server in ready:  # a notice, or the end of the session
                for _ in self._connection.notifies(timeout=0):
                    pass
        except (psycopg.Error, OSError, ValueError) as error:
            raise LockSessionError(one_line(error)) from None

    def wake(self) -> None:
        with suppress(OSError):  # a full socket wakes it anyway; a closed one has no waiter
            self._waker.send(b"!")

    def resign(self) -> None:
        try:
            with sql.transaction(self._connection, settings=RESIGNATION):
                sql.run(self._connection, "record_resignation", term=self._term, holder=self._holder)
        except psycopg.Error as error:
            raise LockSessionError(one_line(error)) from None
        self._row("resign", space=SPACE)

    def close(self) -> None:
        with suppress(psycopg.Error, OSError):
            self._connection.close()
        self._awake.close()
        self._waker.close()

    def _limit_waits(self) -> None:
        """Keeps the waits shorter than what the server logs.

        Raises:
            psycopg.Error: the session is lost.
        """
        limit = sql.optional_row(self._connection, "wait_limits")
        if limit is None or limit["seconds"] >= self._longest_wait_seconds:
            return
        self._longest_wait_seconds = limit["seconds"]
        if limit["seconds"] < SHORTEST_WAIT_SECONDS and PostgresLockSession._logged_limit != limit["name"]:
            PostgresLockSession._logged_limit = limit["name"]
            log.warning(
                "lock_wait.disabled",
                reason=f"the server would log each wait for the lock, because of its setting {limit['name']}",
                consequence=f"a standby tries the lock every {TRY_SECONDS:g} s, which can delay a failover by as much",
            )

    def _refuse_other_generation(self, row: dict[str, Any]) -> None:
        if row["generation"] == GENERATION:
            return
        try:
            refuse_other_generation(self._connection)
        except (psycopg.Error, BillingError) as error:
            raise LockSessionError(one_line(error)) from None

    def _optional_row(self, name: str, **parameters: Any) -> dict[str, Any] | None:  # noqa: ANN401
        try:
            return sql.optional_row(self._connection, name, **parameters)
        except psycopg.Error as error:
            raise LockSessionError(one_line(error)) from None

    def _row(self, name: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401
        row = self._optional_row(name, **parameters)
        if row is None:
            raise LockSessionError("billing_leadership has no row; run `containerstacks-billing migrate`")
        return row


def _holder(row: dict[str, Any]) -> Holder:
    return Holder(
        pid=row["pid"],
        began_at=row["backend_start"],
        spoke_at=row["state_change"],
        deadline_seconds=row["deadline_seconds"],
        instance=row["application_name"].removeprefix(application_name("elector", "")),
    )
