"""Sessions that a standby keeps open, so that it can charge soon after it is elected.

Opening a session takes milliseconds, and its first statements take several times as long as later ones, because the
server reads its catalogs for them. A standby does both in advance: it opens one session of each kind that the first
cycle needs, and lets the server plan the statements that the session is for. Nothing is executed, locked or written.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import psycopg
import structlog

from controller import sql
from controller.errors import BillingError, one_line
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.connections import Database, SessionSettings
from controller.readable import readable

_PARAMETER: Final = re.compile(r"%\((\w+)\)s")

log = structlog.get_logger(part="app")


class SpareSessions:
    """At most one spare session of each kind. Thread-safe.

    Args:
        database: where to open them.
        statements: the names of the statements that the server plans in advance, and the kind of session they are for.
    """

    def __init__(self, database: Database, statements: Sequence[tuple[SessionSettings, Sequence[str]]]) -> None:
        self._database = database
        self._statements = statements
        self._spares: dict[str, BoundedConnection] = {}
        self._lock = threading.Lock()

    def take(self, kind: SessionSettings) -> BoundedConnection | None:
        """Returns the spare session of a kind, or None. The caller closes it."""
        with self._lock:
            spare = self._spares.pop(kind.purpose, None)
        return spare if spare is not None and _is_usable(spare) else None

    def fill(self, wanted: Callable[[], bool]) -> None:
        """Opens the sessions that are missing or lost. A session that can't be opened stays missing.

        Args:
            wanted: checked before each step; False ends the work, so that it doesn't delay a new leader.
        """
        for kind, names in self._statements:
            with self._lock:
                if (spare := self._spares.pop(kind.purpose, None)) is not None and _is_usable(spare):
                    self._spares[kind.purpose] = spare
                    continue
            try:
                self._open(kind, names, wanted)
            except (psycopg.Error, BillingError) as error:
                log.debug("spare_session.failed", session=kind.purpose, error=one_line(error))
                return
            if not wanted():
                return

    def close(self) -> None:
        """Closes every spare session."""
        with self._lock:
            spares, self._spares = self._spares, {}
        for spare in spares.values():
            _close(spare)

    def _open(self, kind: SessionSettings, names: Sequence[str], wanted: Callable[[], bool]) -> None:
        """Opens a session and plans its statements. It becomes a spare even if `wanted` returns False meanwhile."""
        connection = self._database.connect(kind)
        try:
            for name in names:
                if wanted():  # a transaction each, so that no table stays locked
                    statement = sql.load()[name]
                    sql.execute(connection, f"explain {statement}", _nulls(statement))
        except BaseException:
            _close(connection)
            raise
        with self._lock:
            self._spares[kind.purpose] = connection


def _nulls(statement: str) -> Mapping[str, None]:
    return dict.fromkeys(_PARAMETER.findall(statement))


def _is_usable(connection: BoundedConnection) -> bool:
    """Returns False, and closes the session, if the server has ended it. An idle session has nothing to read."""
    with suppress(psycopg.Error, OSError, ValueError):
        if not connection.closed and not readable([connection.fileno()], 0):
            return True
    _close(connection)
    return False


def _close(connection: BoundedConnection) -> None:
    with suppress(psycopg.Error, OSError):
        connection.close()
