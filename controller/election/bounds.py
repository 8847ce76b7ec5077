"""Time, as an election sees it: three bounds in their order, and a deadline on a monotonic clock. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from controller.errors import SettingsError

Clock = Callable[[], float]
"""Seconds on a monotonic clock."""


class BoundsError(SettingsError):
    """The three bounds are not in their order."""


@dataclass(frozen=True)
class Bounds:
    """How often a leader pings, how long it believes, and when the server gives it up; seconds.

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
                f" BILLING_PING_INTERVAL_SECONDS={self.ping_interval_seconds:g}, or one late ping deposes the leader"
            )
        if self.leader_deadline_seconds + 1 > self.session_timeout_seconds:
            raise BoundsError(
                f"BILLING_SESSION_TIMEOUT_SECONDS={self.session_timeout_seconds:g} must exceed"
                f" BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} by a second or more,"
                " or the server could free the lock while the leader still believes in it"
            )


class Deadline:
    """Until when a leader may believe that it leads."""

    def __init__(self, clock: Clock, seconds: float, since: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._expires_at = since + seconds

    def extend(self, sent_at: float) -> None:
        """A good ping counts from when it was sent; anything may have happened since."""
        self._expires_at = max(self._expires_at, sent_at + self._seconds)

    def remaining_seconds(self) -> float:
        """Negative when it has passed."""
        return self._expires_at - self._clock()

    @property
    def passed(self) -> bool:
        """Whether it has."""
        return self.remaining_seconds() <= 0
