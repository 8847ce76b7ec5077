"""A database session of the application during a soak.

If a commit's answer is lost with its connection, the session checks whether the commit happened, as a real application
would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import psycopg
from psycopg.rows import dict_row

from tests.faults.soak_model import Acknowledged
from tests.support.waiting import eventually

SERVER_BACK_SECONDS: Final = 60.0
_OPTIONS: Final = "-c lock_timeout=1s -c statement_timeout=10s"

T = TypeVar("T")
Conn = psycopg.Connection[dict[str, Any]]


class Session:
    """A session that connects again when it has been lost. `looked_up` counts the commits whose answer was lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._conn: Conn | None = None
        self._backend_pid = 0
        self.looked_up = 0

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()

    def commit(
        self, act: Callable[[Conn], T | None], happened: str, *parameters: object
    ) -> tuple[T, Acknowledged] | None:
        """Runs one transaction; None if it did not happen. `happened` finds a row if it did."""
        asked_at = datetime.now(UTC)
        result: T | None = None
        try:
            conn = self.connection()
            with conn.transaction():
                result = act(conn)
        except psycopg.Error:
            if result is None:
                return None  # refused, or lost before the commit
            self.looked_up += 1
            if not self._look_up(happened, parameters):
                return None
        return None if result is None else (result, Acknowledged(asked_at, datetime.now(UTC)))

    def query(self, query: str, *parameters: object) -> list[dict[str, Any]]:
        """The rows of a query; none if the server can't be reached."""
        try:
            return self.connection().execute(query.encode(), parameters).fetchall()
        except psycopg.Error:
            return []

    def execute(self, statement: str, *parameters: object) -> None:
        self.connection().execute(statement.encode(), parameters)

    def connection(self) -> Conn:
        """The connection; a new one if it has been lost."""
        if self._conn is None or self._conn.closed:
            self._conn = psycopg.connect(
                self._url,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=5,
                options=_OPTIONS,
                application_name="customers",
            )
            self._backend_pid = self._conn.info.backend_pid
        return self._conn

    def _look_up(self, question: str, parameters: Sequence[object]) -> bool:
        """Waits until the lost session has ended, because its commit may still arrive. Then asks if it happened."""
        lost = self._backend_pid
        found: list[bool] = []

        def answered() -> bool:
            try:
                conn = self.connection()
                if conn.execute("select from pg_stat_activity where pid = %s", (lost,)).fetchone() is None:
                    found.append(conn.execute(question.encode(), parameters).fetchone() is not None)
            except psycopg.Error:
                return False
            return bool(found)

        self.close()
        eventually(answered, "the server is back", SERVER_BACK_SECONDS)
        return found[-1]
