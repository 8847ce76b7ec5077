"""What an election needs of the database: the door between the elector and PostgreSQL."""

from dataclasses import dataclass
from typing import Protocol


class LockSessionError(Exception):
    """The lock session is of no further use: lost, late, or refused. Whoever holds it closes it."""


@dataclass(frozen=True)
class Ping:
    """What a ping found: `held` on the very backend that took the lock."""

    held: bool


class LockSession(Protocol):
    """A dedicated session. Every call is bounded in time; every failure is a LockSessionError."""

    def try_lock(self) -> bool:
        """Takes the lock if it is free and the server accepts writes. Never waits for it."""

    def mint(self) -> int:
        """Raises the term and gives the new one; from its commit on older terms are fenced."""

    def ping(self) -> Ping:
        """Asks the server whether this session still holds the lock."""

    def wait(self, timeout_seconds: float) -> None:
        """Returns after `timeout_seconds`, when a resignation is heard of, or when `wake` is called.

        Raises:
            LockSessionError: the server has closed the session.
        """

    def wake(self) -> None:
        """Ends a `wait` in another thread. May be called at any time, also after `close`."""

    def resign(self) -> None:
        """Frees the lock and tells the standbys."""

    def close(self) -> None:
        """Frees whatever is held, at once where the server can be reached. Never fails."""
