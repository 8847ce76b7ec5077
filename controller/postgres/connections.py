"""Sessions on PostgreSQL, each with a bound on every wait.

The server's own timeouts end what the server waits for; `BoundedConnection` ends what the client waits for, also when
the network swallows every packet and no timeout of the server can reach us.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.rows import DictRow, dict_row

from controller import sql
from controller.election import Bounds
from controller.errors import DatabaseUnreachableError, one_line

RV = TypeVar("RV")

CONNECT_TIMEOUT_SECONDS: Final = 5

# The kernel gives up a peer that is silent for this long; both ends set it, and Unix sockets ignore it.
TCP_SILENCE_SECONDS: Final = 6


class BoundedConnection(psycopg.Connection[DictRow]):
    """A connection that closes itself, and says so, when the server does not answer in time."""

    reply_timeout_seconds: float = 30.0

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """As psycopg's own, with `reply_timeout_seconds` where the caller names no timeout.

        Raises:
            psycopg.OperationalError: no answer in time; the connection is closed, since an answer may still arrive.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            return super().wait(gen, interval, self.reply_timeout_seconds)
        except errors._WaitTimeout:  # noqa: SLF001 - psycopg documents it in wait() and exports no other name
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"no answer from the server within {self.reply_timeout_seconds:g} s"
            ) from None


@dataclass(frozen=True)
class SessionSettings:
    """What a kind of session sets on the server, and how long it waits for an answer.

    `server` holds setting names and values as PostgreSQL takes them (`'5s'`); those that the server does not know
    (an older version, another operating system) are left out.
    """

    purpose: str
    server: Mapping[str, str] = field(default_factory=dict)
    reply_timeout_seconds: float = 30.0


_TCP_SERVER: Final = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": f"{TCP_SILENCE_SECONDS}s",
}

#: A worker's sessions: one short transaction after the other. `client_connection_check_interval` ends a statement whose
#: client has been killed, so that it does not hold the next leader's mint until it ends. The planner can't know that a
#: batch is small: without sequential scans it does not read years of history for it, a generic plan does not change
#: with the batch, and compiling the one large statement (JIT) would take longer than running it.
WORKER: Final = SessionSettings(
    "worker",
    _TCP_SERVER
    | {
        "client_connection_check_interval": "500ms",
        "enable_seqscan": "off",
        "jit": "off",
        "plan_cache_mode": "force_generic_plan",
    },
    reply_timeout_seconds=15.0,
)
#: The guard's, which looks again at what a batch has charged; `pg_stat_activity` tells the two apart.
GUARD: Final = replace(WORKER, purpose="guard")
#: The biller's question when a cycle is due. Bounded tightly: while it waits for an answer, nobody bills.
BILLER: Final = SessionSettings(
    "biller",
    _TCP_SERVER | {"statement_timeout": "5s", "lock_timeout": "5s"},
    reply_timeout_seconds=8.0,
)
#: A cycle's plan and history; a plan of ten million instances takes some seconds.
CYCLE: Final = SessionSettings("cycle", _TCP_SERVER | {"lock_timeout": "5s"}, reply_timeout_seconds=15.0)
#: Everything a person asks for.
FOREGROUND: Final = SessionSettings("foreground", _TCP_SERVER | {"lock_timeout": "5s"}, reply_timeout_seconds=600.0)
#: Migrations: an index on years of rows takes its time.
MIGRATION: Final = SessionSettings("migrate", _TCP_SERVER, reply_timeout_seconds=3600.0)
#: The heartbeat's session.
HEARTBEAT: Final = SessionSettings(
    "heartbeat",
    _TCP_SERVER | {"statement_timeout": "5s", "lock_timeout": "5s"},
    reply_timeout_seconds=8.0,
)


def lock_session_settings(bounds: Bounds) -> SessionSettings:
    """The lock session's: the server ends it after `session_timeout_seconds` of silence.

    A ping that is not answered while the leader may still believe is given up by the deadline.

    On PostgreSQL 13, which has no `idle_session_timeout`, the TCP settings alone bound a frozen leader.
    """
    return SessionSettings(
        "elector",
        _TCP_SERVER
        | {
            "idle_session_timeout": f"{round(bounds.session_timeout_seconds * 1000)}ms",
            "idle_in_transaction_session_timeout": "5s",
            "statement_timeout": "10s",
            "lock_timeout": "10s",
        },
        reply_timeout_seconds=bounds.leader_deadline_seconds - bounds.ping_interval_seconds,
    )


@dataclass(frozen=True)
class Database:
    """Where PostgreSQL is, and under which name we appear there.

    Attributes:
        read_url: gives the connection string; called for each connection.
        setting: the environment variable to name when it is wrong.
        instance_id: `hostname-pid`, shown in `pg_stat_activity`.
    """

    read_url: Callable[[], str]
    setting: str
    instance_id: str

    def connect(self, settings: SessionSettings = FOREGROUND, *, autocommit: bool = True) -> BoundedConnection:
        """Opens a session.

        Raises:
            DatabaseUnreachableError: the server is away or refuses us; one line, without the password.
            SettingsError: the connection string can't be read.
        """
        url = self.read_url()
        try:
            connection = BoundedConnection.connect(
                url,
                autocommit=True,
                row_factory=dict_row,
                application_name=application_name(settings.purpose, self.instance_id),
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                client_encoding="utf8",
                keepalives_idle=2,
                keepalives_interval=1,
                keepalives_count=4,
                tcp_user_timeout=TCP_SILENCE_SECONDS * 1000,
            )
        except psycopg.Error as error:
            raise DatabaseUnreachableError(
                f"can't connect to PostgreSQL: {one_line(error)}; check {self.setting} and that the server is up"
            ) from None
        connection.reply_timeout_seconds = settings.reply_timeout_seconds
        try:
            if is_pooled(connection):
                connection.prepare_threshold = None  # a prepared statement stays on the backend that it was made on
            _apply(connection, settings.server)
        except psycopg.Error as error:
            connection.close()
            raise DatabaseUnreachableError(f"PostgreSQL closed a new session: {one_line(error)}") from None
        connection.autocommit = autocommit
        return connection


def application_name(purpose: str, instance_id: str) -> str:
    """A session's name in `pg_stat_activity`. The server keeps 63 bytes; an id's end tells more than its begin."""
    prefix = f"billing {purpose} "
    return prefix + instance_id[-(63 - len(prefix)) :]


def is_pooled(connection: sql.Connection) -> bool:
    """Whether something between us and the server answered the start-up for it (PgBouncer, Odyssey, pgcat)."""
    return bool(sql.row(connection, "backend_pid")["pid"] != connection.info.backend_pid)


def _apply(connection: BoundedConnection, server: Mapping[str, str]) -> None:
    """Sets what the server knows; where it refuses one (another operating system), the others all the same."""
    try:
        _set(connection, server)
    except errors.DataError:
        for name, value in server.items():
            with suppress(errors.DataError):
                _set(connection, {name: value})


def _set(connection: BoundedConnection, server: Mapping[str, str]) -> None:
    sql.run(connection, "set_session_settings", names=list(server.keys()), settings=list(server.values()))
