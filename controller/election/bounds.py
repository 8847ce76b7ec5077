"""Time in an election: the three bounds and their order, and a deadline on a monotonic clock. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from controller.errors import SettingsError

Clock = Callable[[], float]
"""Returns seconds on a monotonic clock."""


class BoundsError(SettingsError):
    """The three bounds are in the wrong order, or too close together."""


@dataclass(frozen=True)
class Bounds:
    """The three bounds of a leadership, and how often a standby tries for the lock; all in seconds.

    Attributes:
        ping_interval_seconds: between two pings of a leader.
        leader_deadline_seconds: how long after sending its last good ping a leader may believe that it leads.
        session_timeout_seconds: when the server ends a silent lock session.
        poll_interval_seconds: between two tries of a standby, before jitter.

    Raises:
        BoundsError: `ping_interval < leader_deadline < session_timeout` does not hold with room to act in between.
    """

    ping_interval_seconds: float = 2.0
    leader_deadline_seconds: float = 6.0
    session_timeout_seconds: float = 10.0
    poll_interval_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.ping_interval_seconds * 2 > self.leader_deadline_seconds:
            raise BoundsError(
                f"BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} must be at least twice"
                f" BILLING_PING_INTERVAL_SECONDS={self.ping_interval_seconds:g}; otherwise one late ping deposes"
                " the leader"
            )
        if self.leader_deadline_seconds + 1 > self.session_timeout_seconds:
            raise BoundsError(
                f"BILLING_SESSION_TIMEOUT_SECONDS={self.session_timeout_seconds:g} must exceed"
                f" BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} by at least a second; otherwise"
                " the server could free the lock while the leader still believes that it holds it"
            )


class Deadline:
    """The moment until which a leader may believe that it leads.

    Args:
        clock: monotonic seconds.
        seconds: how long a good ping counts.
        since: when the statement that took the lock was sent.
    """

    def __init__(self, clock: Clock, seconds: float, since: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._expires_at = since + seconds

    def extend(self, sent_at: float) -> None:
        """Counts a good ping from the moment it was sent, because the lock may have been lost after the answer."""
        self._expires_at = max(self._expires_at, sent_at + self._seconds)

    def remaining_seconds(self) -> float:
        """Seconds until the deadline; negative once it has passed."""
        return self._expires_at - self._clock()

    @property
    def passed(self) -> bool:
        """True once the deadline has passed."""
        return self.remaining_seconds() <= 0
