"""What an election needs of the database: the door between the elector and PostgreSQL."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class LockSessionError(Exception):
    """The lock session is of no further use: lost, late, or refused. Whoever holds it closes it."""


@dataclass(frozen=True)
class Ping:
    """What a ping found: `held` on the very backend that took the lock."""

    held: bool


@dataclass(frozen=True)
class Holder:
    """An idle session that holds the lock, as a standby of the same role sees it. Equal to what was seen before: it has
    said nothing in between.

    Attributes:
        pid: of its backend; with `began_at` nobody else's.
        spoke_at: when the server had dealt with its last word. The server's wall clock: a mark, never reckoned with.
        deadline_seconds: for how long after its last ping was sent it may believe, by its own word.
        instance: `hostname-pid` of the replica, perhaps cut at the front.
    """

    pid: int
    began_at: datetime
    spoke_at: datetime
    deadline_seconds: float
    instance: str


@dataclass(frozen=True)
class Attempt:
    """What a try found.

    Attributes:
        taken: the lock is ours.
        holder: who has it, if it can be watched and is not in the middle of a statement.
        other_role: another role's session has it, which we may neither watch nor end.
    """

    taken: bool
    holder: Holder | None = None
    other_role: bool = False


class LockSession(Protocol):
    """A dedicated session. Every call is bounded in time; every failure is a LockSessionError."""

    def try_lock(self) -> Attempt:
        """Takes the lock if it is free and the server accepts writes. Never waits for it."""

    def evict(self, holder: Holder) -> bool:
        """Ends the holder's session if it is still the one, holds the lock and has said nothing since; whether so.

        Its end may come a little later.
        """

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
