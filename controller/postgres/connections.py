"""Opens sessions on PostgreSQL, with a bound on every wait.

The server's timeouts bound what the server waits for. `BoundedConnection` bounds what the client waits for, even if the
network drops every packet.
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
from controller.errors import DatabaseUnreachableError, SecretFileError, one_line
from controller.postgres.refusals import is_refusal

RV = TypeVar("RV")

CONNECT_TIMEOUT_SECONDS: Final = 5

#: Both ends drop a TCP connection whose peer has not answered for this long. Unix sockets ignore it.
TCP_SILENCE_SECONDS: Final = 6


class BoundedConnection(psycopg.Connection[DictRow]):
    """A connection that closes itself if the server does not answer in time."""

    reply_timeout_seconds: float = 30.0

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Waits as psycopg does, for `reply_timeout_seconds` unless the caller passes a timeout.

        Raises:
            psycopg.OperationalError: no answer in time. The connection is closed, because the answer may still arrive.
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
    """What one kind of session sets on the server, and how long it waits for an answer.

    Attributes:
        purpose: part of the session's name in `pg_stat_activity`.
        server: values by setting, as PostgreSQL writes them (`'5s'`). Settings that the server's version or operating
            system does not support are skipped.
        reply_timeout_seconds: the connection is closed if an answer takes longer.
    """

    purpose: str
    server: Mapping[str, str] = field(default_factory=dict)
    reply_timeout_seconds: float = 30.0


#: For every session. Compiling a statement (JIT) would take seconds, and no statement runs long enough to gain from it.
_EVERY_SESSION: Final = {
    "jit": "off",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": f"{TCP_SILENCE_SECONDS}s",
}

#: Workers run one short transaction after another. `client_connection_check_interval` ends the statement of a killed
#: client, which would otherwise delay the next leader's mint. The planner settings are there because the planner can't
#: know that a batch is small: no sequential scan over years of history, and one generic plan for every batch.
WORKER: Final = SessionSettings(
    "worker",
    _EVERY_SESSION
    | {
        "client_connection_check_interval": "500ms",
        "enable_seqscan": "off",
        "plan_cache_mode": "force_generic_plan",
    },
    reply_timeout_seconds=15.0,
)
#: The guard checks what batches have charged. It needs the same settings under another name.
GUARD: Final = replace(WORKER, purpose="guard")
#: The biller asks when the next cycle is due. The bounds are tight because no billing happens while it waits.
BILLER: Final = SessionSettings(
    "biller",
    _EVERY_SESSION | {"statement_timeout": "5s", "lock_timeout": "5s"},
    reply_timeout_seconds=8.0,
)
#: A cycle plans its batches and writes its run. Planning ten million instances takes a few seconds.
CYCLE: Final = SessionSettings("cycle", _EVERY_SESSION | {"lock_timeout": "5s"}, reply_timeout_seconds=15.0)
#: Commands that a person runs.
FOREGROUND: Final = SessionSettings("foreground", _EVERY_SESSION | {"lock_timeout": "5s"}, reply_timeout_seconds=600.0)
#: An index on years of rows takes long to build, so a role's time limits don't apply. There is no
#: `client_connection_check_interval`: if the command is killed, the build completes and the next command finds it.
MIGRATION: Final = SessionSettings(
    "migrate",
    _EVERY_SESSION | {"statement_timeout": "0", "transaction_timeout": "0", "idle_session_timeout": "0"},
    reply_timeout_seconds=3600.0,
)
HEARTBEAT: Final = SessionSettings(
    "heartbeat",
    _EVERY_SESSION | {"statement_timeout": "5s", "lock_timeout": "5s"},
    reply_timeout_seconds=8.0,
)


def lock_session_settings(bounds: Bounds) -> SessionSettings:
    """Returns the lock session's settings. The server ends the session after `session_timeout_seconds` of silence.

    The reply timeout gives up an unanswered ping by the leader's deadline.
    """
    return SessionSettings(
        "elector",
        _EVERY_SESSION
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
    """The address of a database, and this process's name there.

    Attributes:
        read_url: returns the connection string; called for each connection.
        setting: the environment variable that errors name.
        instance_id: of this process, part of each session's name in `pg_stat_activity`.
    """

    read_url: Callable[[], str]
    setting: str
    instance_id: str

    def connect(self, settings: SessionSettings = FOREGROUND, *, autocommit: bool = True) -> BoundedConnection:
        """Opens a session.

        Raises:
            DatabaseUnreachableError: the server can't be reached or refuses the connection, or the file with the
                connection string can't be read now. One line, no password.
        """
        try:
            url = self.read_url()
        except SecretFileError as error:
            raise DatabaseUnreachableError(str(error)) from None
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
                f"can't connect to PostgreSQL: {one_line(error)}; check {self.setting} and that the server is up",
                refused=is_refusal(error),
            ) from None
        connection.reply_timeout_seconds = settings.reply_timeout_seconds
        try:
            if is_pooled(connection):
                connection.prepare_threshold = None  # a prepared statement belongs to one backend
            set_session_settings(connection, settings.server)
        except psycopg.Error as error:
            connection.close()
            raise DatabaseUnreachableError(f"PostgreSQL closed a new session: {one_line(error)}") from None
        connection.autocommit = autocommit
        return connection


def application_name(purpose: str, instance_id: str) -> str:
    """Returns a session's name for `pg_stat_activity`. The server keeps 63 bytes, so a long id loses its beginning."""
    prefix = f"billing {purpose} "
    return prefix + instance_id[-(63 - len(prefix)) :]


def is_pooled(connection: sql.Connection) -> bool:
    """Returns True if a pooler (PgBouncer, Odyssey, pgcat) answers in place of the server."""
    return bool(sql.row(connection, "backend_pid")["pid"] != connection.info.backend_pid)


def set_session_settings(connection: BoundedConnection, settings: Mapping[str, str]) -> None:
    """Changes settings for the rest of the session. Skips settings that this server does not support."""
    try:
        _set(connection, settings)
    except errors.DataError:  # the operating system lacks one of them; set the others
        for name, value in settings.items():
            with suppress(errors.DataError):
                _set(connection, {name: value})


def _set(connection: BoundedConnection, settings: Mapping[str, str]) -> None:
    sql.run(connection, "set_session_settings", names=list(settings.keys()), settings=list(settings.values()))
