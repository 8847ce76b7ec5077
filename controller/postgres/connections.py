"""Opens sessions on PostgreSQL, with a bound on every wait.

The server's timeouts bound what the server waits for. `BoundedConnection` bounds what the client waits for, even if the
network drops every packet.

Every setting that a session relies on is stated here, in `STATED` and in the kinds of sessions below it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from controller import sql
from controller.election import Bounds
from controller.errors import DatabaseUnreachableError, SecretFileError, SettingsError, one_line
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.refusals import is_refusal

CONNECT_TIMEOUT_SECONDS: Final = 5

#: One probe is not enough, because another replica may get the backend that would reveal the pooler at the same moment.
POOLER_PROBES: Final = 10

#: Both ends drop a TCP connection whose peer has not answered for this long. Unix sockets ignore it.
TCP_SILENCE_SECONDS: Final = 6


class PoolerError(SettingsError):
    """A pooler moves sessions between backends. A session lock would be stranded, and settings would leak."""


@dataclass(frozen=True)
class SessionSettings:
    """What one kind of session states to the server, and how long it waits for an answer.

    Attributes:
        purpose: part of the session's name in `pg_stat_activity`.
        server: the settings that only this kind of session states, and those that it states differently.
        reply_timeout_seconds: the connection is closed if an answer takes longer.
        direct: True states the settings once, for the whole session. A pooler must not share its backend, because the
            next user would inherit them. False states them in each transaction.
    """

    purpose: str
    server: sql.Settings = field(default_factory=dict)
    reply_timeout_seconds: float = 30.0
    direct: bool = False


#: What every session states. Our statements and psycopg rely on these values, so no other source may change them: the
#: role, the database, the server's configuration, the environment, or another user of a pooled backend.
STATED: Final[sql.Settings] = {
    # how values and identifiers are read and written
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "array_nulls": "on",
    "standard_conforming_strings": "on",
    "quote_all_identifiers": "off",
    "transform_null_equals": "off",
    # our role, and what it sees
    "role": None,
    "row_security": "on",
    "exit_on_error": "off",
    # transactions; a session that isn't direct states these when it begins one
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "synchronous_commit": None,
    # timeouts; each kind of session has tighter ones
    "statement_timeout": "0",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
    "idle_session_timeout": "0",
    "transaction_timeout": "0",
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": f"{TCP_SILENCE_SECONDS}s",
    "client_connection_check_interval": "0",
    # the planner. Compiling a statement (JIT) would take seconds, and no statement runs long enough to gain from it.
    "jit": "off",
    "plan_cache_mode": "auto",
    "geqo": "on",
    "from_collapse_limit": "8",
    "join_collapse_limit": "8",
    **dict.fromkeys(
        (
            "enable_bitmapscan", "enable_hashagg", "enable_hashjoin", "enable_incremental_sort", "enable_indexonlyscan",
            "enable_indexscan", "enable_material", "enable_memoize", "enable_mergejoin", "enable_nestloop",
            "enable_partition_pruning", "enable_seqscan", "enable_sort",
        ),
        "on",
    ),
    **dict.fromkeys(
        (
            "seq_page_cost", "random_page_cost", "cpu_tuple_cost", "cpu_index_tuple_cost", "cpu_operator_cost",
            "effective_cache_size", "work_mem", "hash_mem_multiplier", "max_parallel_workers_per_gather",
        )
    ),
}  # fmt: skip

#: Workers run one short transaction after another. `client_connection_check_interval` ends the statement of a killed
#: client, which would otherwise delay the next leader's mint. The planner settings are there because the planner can't
#: know that a batch is small: no sequential scan over years of history, and one generic plan for every batch.
WORKER: Final = SessionSettings(
    "worker",
    {
        "statement_timeout": "14s",
        "client_connection_check_interval": "500ms",
        "enable_seqscan": "off",
        "plan_cache_mode": "force_generic_plan",
    },
    reply_timeout_seconds=15.0,
)
#: The guard checks what batches have charged. It needs the same settings under another name.
GUARD: Final = replace(WORKER, purpose="guard")
#: The biller asks when the next cycle is due. The bounds are tight because no billing happens while it waits.
BILLER: Final = SessionSettings("biller", {"statement_timeout": "5s"}, reply_timeout_seconds=8.0)
#: A cycle plans its batches and writes its run. Planning ten million instances takes a few seconds.
CYCLE: Final = SessionSettings("cycle", {"statement_timeout": "14s"}, reply_timeout_seconds=15.0)
#: Commands that a person runs.
FOREGROUND: Final = SessionSettings("foreground", {"statement_timeout": "590s"}, reply_timeout_seconds=600.0)
#: Building an index on years of rows takes a long time. There is no `client_connection_check_interval`: if the command
#: is killed, the build completes and the next command finds it.
MIGRATION: Final = SessionSettings("migrate", reply_timeout_seconds=3600.0, direct=True)
HEARTBEAT: Final = SessionSettings("heartbeat", {"statement_timeout": "5s"}, reply_timeout_seconds=8.0)


def lock_session_settings(bounds: Bounds) -> SessionSettings:
    """Returns the lock session's settings. The server ends the session after `session_timeout_seconds` of silence.

    The reply timeout gives up an unanswered ping by the leader's deadline.
    """
    return SessionSettings(
        "elector",
        {
            "idle_session_timeout": f"{round(bounds.session_timeout_seconds * 1000)}ms",
            "idle_in_transaction_session_timeout": "5s",
            "statement_timeout": "10s",
            "lock_timeout": "10s",
        },
        reply_timeout_seconds=bounds.leader_deadline_seconds - bounds.ping_interval_seconds,
        direct=True,
    )


@dataclass(frozen=True)
class Database:
    """The address of a database, and this process's name there.

    Attributes:
        read_url: returns the connection string; called for each connection.
        setting: the environment variable that errors name.
        instance_id: this process's id, part of each session's name in `pg_stat_activity`.
    """

    read_url: Callable[[], str]
    setting: str
    instance_id: str

    def connect(self, settings: SessionSettings = FOREGROUND) -> BoundedConnection:
        """Opens a session, in autocommit mode.

        Raises:
            DatabaseUnreachableError: the server can't be reached or refuses the connection, or the file with the
                connection string can't be read now. One line, no password.
            PoolerError: the session must be direct, and a pooler moves it between backends.
        """
        connection = self._open(settings)
        stated = {**STATED, **settings.server}
        try:
            if is_pooled(connection):
                connection.prepare_threshold = None  # a prepared statement belongs to one backend
                if settings.direct:
                    self._refuse_moving_pooler(connection, settings)
            if settings.direct:
                state(connection, stated)
            else:
                connection.local_settings = stated
        except psycopg.Error as error:
            connection.close()
            raise DatabaseUnreachableError(f"PostgreSQL closed a new session: {one_line(error)}") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, settings: SessionSettings) -> BoundedConnection:
        """Opens a session that has stated nothing yet."""
        try:
            url = self.read_url()
        except SecretFileError as error:
            raise DatabaseUnreachableError(str(error)) from None
        try:
            given = conninfo_to_dict(url)
            connection = BoundedConnection.connect(
                url,
                autocommit=True,
                row_factory=dict_row,
                application_name=application_name(settings.purpose, self.instance_id),
                connect_timeout=CONNECT_TIMEOUT_SECONDS,
                client_encoding="utf8",
                # keeps PGOPTIONS out, but not the options of a service file
                options=given.get("options", None if "service" in given else ""),
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
        return connection

    def _refuse_moving_pooler(self, connection: BoundedConnection, settings: SessionSettings) -> None:
        """Accepts a pooler that gives each session its own backend, and refuses one that moves sessions.

        Runs before the session states anything. A second session occupies a backend by opening a transaction. If it
        gets the backend that the first session just used, or if the first session then moves to another backend,
        sessions don't keep their backends. Poolers reuse the most recently returned backend first, so the first session
        sends a statement right before the second one begins.

        Raises:
            PoolerError: the pooler moves sessions between backends.
        """
        before = _backend_pid(connection)
        with self._open(settings) as other:
            for _ in range(POOLER_PROBES):
                moved = _backend_pid(connection) != before
                with sql.transaction(other, keep=False):
                    if moved or _backend_pid(other) == before or _backend_pid(connection) != before:
                        raise PoolerError(
                            f"{self.setting} points to a pooler in transaction mode, where a session lock is stranded;"
                            " set DATABASE_DIRECT_URL to PostgreSQL itself, or use session pooling"
                        )


def application_name(purpose: str, instance_id: str) -> str:
    """Returns a session's name for `pg_stat_activity`. The server keeps 63 bytes, so a long id loses its beginning."""
    prefix = f"billing {purpose} "
    return prefix + instance_id[-(63 - len(prefix)) :]


def is_pooled(connection: sql.Connection) -> bool:
    """Returns True if a pooler (PgBouncer, Odyssey, pgcat) answers in place of the server."""
    return _backend_pid(connection) != connection.info.backend_pid


def state(connection: sql.Connection, settings: sql.Settings) -> None:
    """Changes settings for the rest of a direct session."""
    sql.run(connection, "state_settings", local=False, settings=json.dumps(dict(settings)))


def _backend_pid(connection: sql.Connection) -> int:
    return int(sql.row(connection, "backend_pid")["pid"])
