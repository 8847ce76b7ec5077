"""What an election needs from the database: the interface between the elector and PostgreSQL."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class LockSessionError(Exception):
    """The lock session is no longer usable: lost, late or refused. Its owner closes it."""


@dataclass(frozen=True)
class Ping:
    """Answer to a ping.

    Attributes:
        held: True if the backend that took the lock still holds it.
        newest_command: number of the newest command of an operator; None if there has been none.
    """

    held: bool
    newest_command: int | None = None


@dataclass(frozen=True)
class Holder:
    """An idle session that holds the lock, as a standby with the same database role sees it.

    Two equal values mean that the holder has sent nothing between the two observations.

    Attributes:
        pid: process id of its backend; unique only together with `began_at`.
        spoke_at: when the server finished its last statement, by the server's wall clock. Compared, never subtracted.
        deadline_seconds: how long after sending its last ping it may believe that it leads, as the ping states it.
        instance: id of the replica; the beginning may be cut off.
    """

    pid: int
    began_at: datetime
    spoke_at: datetime
    deadline_seconds: float
    instance: str


@dataclass(frozen=True)
class Attempt:
    """Result of one wait for the lock.

    Attributes:
        taken: True if this session now holds the lock.
        holder: the session that holds it, if it can be watched and is not executing a statement.
        other_role: True if a session of another database role holds it, which this one may neither watch nor end.
        without_term: the session that holds it, if that session has not minted the newest term. A replica that has just
            been elected is in this state until it has minted its term.
    """

    taken: bool
    holder: Holder | None = None
    other_role: bool = False
    without_term: str | None = None


@dataclass(frozen=True)
class Predecessor:
    """The leader of the previous term: its id, and True if it resigned before it released the lock."""

    instance: str
    resigned: bool


class LockSession(Protocol):
    """A dedicated session. Every call is bounded in time, and every failure is a LockSessionError."""

    def contend(self, wait_seconds: float) -> Attempt:
        """Takes the lock if the server accepts writes and the lock is free, or becomes free within the wait.

        Args:
            wait_seconds: the longest wait; 0 only tries.

        Returns:
            The result, with the holder as the server sees it at the end of the wait. A `wake` ends the wait without
            the lock, and closes the session.
        """

    def evict(self, holder: Holder) -> bool:
        """Ends the holder's session if it still holds the lock and has sent nothing since it was seen.

        The session may end a little later than this call returns.

        Returns:
            True if the session was told to end.
        """

    def mint(self) -> int:
        """Increments the term and returns it. Once this has committed, the fence refuses older terms."""

    def predecessor(self) -> Predecessor | None:
        """Returns the leader that `mint` has found; None if no replica led before. Doesn't query the database."""

    def ping(self) -> Ping:
        """Asks the server if this session still holds the lock."""

    def wait(self, timeout_seconds: float) -> None:
        """Blocks for up to `timeout_seconds`; returns early on a `wake`.

        Raises:
            LockSessionError: the server has closed the session.
        """

    def wake(self) -> None:
        """Ends a `wait` or a `contend` in another thread. May be called at any time, even after `close`."""

    def resign(self) -> None:
        """Records the resignation, and releases the lock, however often this session has taken it."""

    def close(self) -> None:
        """Closes the session, which releases the lock. Never raises."""
