"""The three bounds of a leadership, and their order. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from controller.errors import SettingsError

Clock = Callable[[], float]
"""Returns seconds on a monotonic clock."""


class BoundsError(SettingsError):
    """The three bounds are in the wrong order, or too close together."""


@dataclass(frozen=True)
class Bounds:
    """The three bounds of a leadership, and a standby's longest wait for the lock; all in seconds.

    Attributes:
        ping_interval_seconds: time between two pings of a leader.
        leader_deadline_seconds: how long after sending its last good ping a leader may believe that it leads.
        session_timeout_seconds: when the server ends a silent lock session.
        wait_seconds: how long a standby blocks on the server before it looks at the holder and waits again. Below a
            second, because the wait holds a snapshot, and the server logs waits of a second.

    Raises:
        BoundsError: `ping_interval < leader_deadline < session_timeout` does not hold with room to act in between.
    """

    ping_interval_seconds: float = 2.0
    leader_deadline_seconds: float = 5.0
    session_timeout_seconds: float = 10.0
    wait_seconds: float = 0.9

    def __post_init__(self) -> None:
        if self.ping_interval_seconds * 2 > self.leader_deadline_seconds:
            raise BoundsError(
                f"BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} must be at least twice"
                f" BILLING_PING_INTERVAL_SECONDS={self.ping_interval_seconds:g}; otherwise one late ping deposes"
                " the leader"
            )
        if self.wait_seconds + self.ping_interval_seconds >= self.leader_deadline_seconds:
            raise BoundsError(
                f"BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} must exceed"
                f" BILLING_PING_INTERVAL_SECONDS={self.ping_interval_seconds:g} by more than {self.wait_seconds:g} s,"
                " a standby's wait for the lock; otherwise a new leader could be deposed before its first ping"
            )
        if self.leader_deadline_seconds + 1 > self.session_timeout_seconds:
            raise BoundsError(
                f"BILLING_SESSION_TIMEOUT_SECONDS={self.session_timeout_seconds:g} must exceed"
                f" BILLING_LEADER_DEADLINE_SECONDS={self.leader_deadline_seconds:g} by at least a second; otherwise"
                " the server could free the lock while the leader still believes that it holds it"
            )
