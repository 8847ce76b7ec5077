"""What the checks examine: the settings, and the sessions that a check has opened for the later ones."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final

from controller import sql
from controller.app import Application
from controller.billing.status import Status, read_status
from controller.errors import DatabaseUnreachableError
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.connections import FOREGROUND

#: A check must not wait long.
SESSION: Final = replace(FOREGROUND, purpose="doctor", server={"statement_timeout": "60s"}, reply_timeout_seconds=65.0)


class Patient:
    """The installation under examination.

    Args:
        application: the application, built from the installation's settings.
        sessions: closes the sessions that the checks have opened.
    """

    def __init__(self, application: Application, sessions: ExitStack) -> None:
        self.application = application
        self._sessions = sessions
        self._session: BoundedConnection | None = None
        self._status: Status | None = None

    def connect(self) -> BoundedConnection:
        """Opens the session that the other checks use. Raises DatabaseUnreachableError."""
        self._session = self._sessions.enter_context(self.application.connect(SESSION))
        return self._session

    @property
    def session(self) -> BoundedConnection:
        """The session. Raises DatabaseUnreachableError if it was lost or never opened."""
        if self._session is None or self._session.closed:
            raise DatabaseUnreachableError("the session was lost")
        return self._session

    @property
    def lost(self) -> bool:
        """True if the session was opened and has ended."""
        return self._session is not None and self._session.closed

    @contextmanager
    def reading(self) -> Iterator[BoundedConnection]:
        """A read-only transaction on the session, so that no check can write."""
        with sql.transaction(self.session, keep=False, access="read only"):
            yield self.session

    def status(self) -> Status:
        """The state of billing, read once. Raises psycopg.Error."""
        if self._status is None:
            with self.reading() as connection:
                self._status = read_status(connection)
        return self._status

    def redact(self, text: str) -> str:
        """Masks the passwords of the settings."""
        return self.application.redact(text)
