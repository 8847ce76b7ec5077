"""One leadership: how long this replica may believe that it leads. Pure, except for waking the elector."""

import threading
from collections.abc import Callable

from controller.election.bounds import Clock


class Leadership:
    """One term of this replica. Everything that works under it asks `still_leads()` before each step.

    Args:
        term: the term that was minted for it.
        clock: monotonic seconds.
        deadline_seconds: how long after sending its last good ping this replica may believe that it leads.
        since: when the statement that took the lock was sent, on that clock.
        wake: ends the elector's wait between two pings.
    """

    def __init__(
        self,
        term: int,
        clock: Clock,
        deadline_seconds: float,
        since: float,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.term = term
        #: Until when this replica may believe that it leads without another good ping; monotonic seconds.
        self.deadline = since + deadline_seconds
        #: How long this replica must not contend after the end.
        self.back_off_seconds = 0.0
        self._clock = clock
        self._deadline_seconds = deadline_seconds
        self._wake = wake
        self._over = False
        self._stepping_down = threading.Event()
        self._lock = threading.Lock()

    def still_leads(self) -> bool:
        """True until the deadline passes or the leadership ends; False forever after.

        It turns False at the deadline even while the elector's thread is blocked.
        """
        with self._lock:
            return self._still_leads()

    def extend(self, sent_at: float) -> bool:
        """Counts a good ping from the moment it was sent, because the lock may have been lost after the answer.

        A ping that came back after the deadline has no effect.

        Returns:
            True if it came back in time.
        """
        with self._lock:
            if not self._still_leads():
                return False
            self.deadline = max(self.deadline, sent_at + self._deadline_seconds)
            return True

    def end(self) -> None:
        """Ends the leadership for good."""
        with self._lock:
            self._over = True

    def step_down(self, back_off_seconds: float) -> None:
        """Asks the elector to resign, and then not to contend for `back_off_seconds`. The work must have stopped.

        Has no effect once the leadership has ended.
        """
        self.back_off_seconds = back_off_seconds
        self._stepping_down.set()
        if self.still_leads():
            self._wake()  # else it would interrupt a wait for the lock

    @property
    def stepping_down(self) -> bool:
        """True once `step_down` has been called."""
        return self._stepping_down.is_set()

    def _still_leads(self) -> bool:
        # Once a thread has seen the end, the end is final, even if this process was frozen and a ping arrives late.
        self._over = self._over or self._clock() >= self.deadline
        return not self._over
