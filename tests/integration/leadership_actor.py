"""A replica of the executable model. It uses real sessions and the real statements, and the model drives each step.

It behaves as badly as a process can: it never checks before a step that it may still believe that it leads, it pauses
for any time between two steps, and then continues as if no time had passed. It uses the model's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from controller.billing.errors import DeposedError
from controller.billing.ledger import Ledger
from controller.billing.values import Pricing
from controller.election import Bounds, Leadership, LockSessionError, Silence
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.connections import Database, SessionSettings
from controller.postgres.lock_session import LockName, PostgresLockSession
from tests.integration.intercept import intercept

BOUNDS: Final = Bounds()
LOCK: Final = LockName("model")
#: A mint that has to wait for a batch gives up after this time instead of ten seconds, and contends again.
MINT_WAITS: Final = b"set lock_timeout = '20ms'"
WORKER: Final = SessionSettings("worker")

#: Charges the next uncharged unit of work. Only the fence keeps two replicas from charging the same unit.
CHARGE: Final = b"""
insert into model_charges (example, unit, term)
select %(example)s, coalesce(max(unit), 0) + 1, %(term)s from model_charges where example = %(example)s
returning unit
"""


@dataclass
class Clock:
    """A clock that the model advances, in seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Actor:
    """A replica. After it dies, it stands for a new process with the same name."""

    def __init__(
        self, name: str, url: str, clock: Clock, statements: Mapping[str, str], silence: type[Silence] = Silence
    ) -> None:
        self.name = name
        self._clock = clock
        self._database = Database(lambda: url, "DATABASE_URL", name)
        self._statements = statements
        self._silence_class = silence
        self.session: PostgresLockSession | None = None
        self._spare: PostgresLockSession | None = None
        self._worker: BoundedConnection | None = None
        #: Process ids of backends that its last step told to end.
        self.ending: list[int] = []
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.silence = self._silence_class(self._clock)
        self.frozen = False
        self.took_lock_at: float | None = None
        self.leadership: Leadership | None = None
        self._transaction: AbstractContextManager[None] | None = None
        self.unit: int | None = None
        self.term = 0

    def _open(self) -> PostgresLockSession:
        session = PostgresLockSession.open(self._database, LOCK, BOUNDS)
        session._connection.execute(MINT_WAITS)
        return session

    # --- state

    @property
    def contends(self) -> bool:
        return not self.frozen and self.took_lock_at is None and not self.in_batch

    @property
    def wins(self) -> bool:
        """True if it has the lock but no term yet."""
        return not self.frozen and self.took_lock_at is not None and self.leadership is None

    @property
    def leads(self) -> bool:
        """True if it remembers a leadership, even one past its deadline."""
        return not self.frozen and self.leadership is not None

    @property
    def in_batch(self) -> bool:
        return self._transaction is not None

    @property
    def lock_pid(self) -> int | None:
        """Process id of its lock session's backend."""
        return self.session._connection.info.backend_pid if self.session else None

    @property
    def worker_pid(self) -> int | None:
        """Process id of its worker session's backend."""
        return self._worker.info.backend_pid if self._worker else None

    # --- steps

    def contend(self) -> bool:
        """Tries the lock once. Returns True if it took it."""
        sent_at = self._clock()
        try:
            if self.session is None:
                self.session, self._spare = self._spare or self._open(), None
            attempt = self.session.contend(0)
        except LockSessionError:
            self.leave()
            return False
        self.silence.observe(attempt.holder)
        if attempt.taken:
            self.took_lock_at = sent_at
        return attempt.taken

    def mint(self) -> int | None:
        """Mints a term and returns it; None if a batch blocks the mint or the session has been lost."""
        assert self.session is not None
        assert self.took_lock_at is not None
        try:
            self.term = self.session.mint()
        except LockSessionError:
            self.leave()
            return None
        self.leadership = Leadership(self.term, self._clock, BOUNDS.leader_deadline_seconds, self.took_lock_at)
        return self.term

    def ping(self) -> bool:
        """Pings. Returns True if it still leads."""
        assert self.session is not None
        assert self.leadership is not None
        sent_at = self._clock()
        with suppress(LockSessionError):
            if self.session.ping().held and self.leadership.extend(sent_at):
                return True
        self.leave()
        return False

    def begin(self) -> bool:
        """Begins a batch's transaction with the ledger's own fence. Returns True if the fence let it pass."""
        if self._worker is None or self._worker.closed:
            self._worker = self._database.connect(WORKER)
            intercept(self._worker, lambda name, _text: self._statements[name])
        ledger = Ledger(self._worker, Pricing(None, "USD"), self.name)
        transaction = ledger.fenced(self.term)
        try:
            transaction.__enter__()
        except DeposedError:
            self.leave()
            return False
        self._transaction = transaction
        return True

    def write(self, example: int) -> int | None:
        """Charges a unit and returns its number; None if the server has ended the transaction."""
        assert self._worker is not None
        try:
            row = self._worker.execute(CHARGE, {"example": example, "term": self.term}).fetchone()
        except psycopg.OperationalError as error:
            self._end(error)
            return None
        assert row is not None
        self.unit = row["unit"]
        return self.unit

    def commit(self) -> bool:
        """Commits the batch. Returns True if the server committed."""
        transaction, self._transaction, self.unit = self._transaction, None, None
        assert transaction is not None
        try:
            transaction.__exit__(None, None, None)
        except psycopg.OperationalError:
            return False
        return True

    def resign(self) -> None:
        """Gives up the leadership on purpose. No batch may be in progress."""
        assert self.session is not None
        with suppress(LockSessionError):
            self.session.resign()
        self.leave()

    def leave(self) -> None:
        """Closes the lock session and ends the leadership. A batch continues, as on another thread."""
        if self.session is not None:
            self.ending.append(self.session._connection.info.backend_pid)
            self.session.close()
        if self.leadership is not None:
            self.leadership.end()
        self.session, self.leadership, self.took_lock_at = None, None, None

    def die(self) -> None:
        """Ends the process and begins a new one."""
        self.leave()
        if self._worker is not None:
            self.ending.append(self._worker.info.backend_pid)
            self._worker.close()
            self._end(psycopg.OperationalError("closed"))
        self._worker = None
        self._begin_anew()

    def rest(self) -> None:
        """Resets everything between two histories. It keeps a session without locks, because opening one is slow."""
        self._end(psycopg.OperationalError("over"))
        if self.session is not None and self._spare is None:
            with suppress(psycopg.OperationalError):
                self.session._connection.execute("select pg_advisory_unlock_all()")
                self.session._watched_pid = None
                self._spare, self.session = self.session, None
        self.leave()
        self._begin_anew()

    def close(self) -> None:
        """Closes every session."""
        self.die()
        if self._spare is not None:
            self._spare.close()

    def _end(self, error: psycopg.OperationalError) -> None:
        """Abandons the open transaction, if there is one."""
        transaction, self._transaction, self.unit = self._transaction, None, None
        if transaction is not None:
            with suppress(psycopg.OperationalError):
                transaction.__exit__(type(error), error, None)

    def __repr__(self) -> str:
        return self.name


def facts(row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Returns the row. Fails if there is none."""
    assert row is not None
    return row
