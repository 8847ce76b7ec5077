"""The pace of a cycle: workers pause between transactions, so that the application hardly notices a cycle.

A worker that works a share `s` of its time pauses for `(1 - s) / s` seconds after each second of work, but never for
more than 5 s at once. It holds no lock and no transaction while it pauses. Workers take turns, so that they never take
two of the server's cores at once.

A cycle is paced only if it began on time and can end within half of the interval at this pace. The second condition is
checked again after each transaction. A drain ends every pause, and the rest of the cycle runs at full speed. The rest
also runs at full speed if an operator's command waits for the end of the cycle.

A paced cycle is interrupted once a minute for the guard, which needs a moment without an open transaction. A drain
doesn't wait for the guard.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Final

from controller.lifecycle.stop import StopToken

#: A cycle that begins later than this is not paced.
ON_TIME_SECONDS: Final = 60.0
#: The longest pause. Operators' commands wait for it.
MOST_SECONDS: Final = 5.0
#: The share of the interval within which a paced cycle must end.
SHARE_OF_INTERVAL: Final = 0.5


class Pace:
    """The pace of one cycle. Its workers share it. Thread-safe.

    Args:
        share: the share of its time that each worker spends working; 1 never pauses.
        workers: how many workers share the work.
        instances: how many instances the cycle plans to charge.
        seconds: how long the cycle may take from now.
        guard_seconds: time between two interruptions for the guard.
        stop: ends pauses once no cycle may start.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        share: float,
        *,
        workers: int,
        instances: int,
        seconds: float,
        guard_seconds: float,
        stop: StopToken,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._workers = workers
        self._left = instances
        self._stop = stop
        self._clock = clock
        self._ends_at = clock() + seconds
        self._guard_seconds = guard_seconds
        self._guard_due_at = clock() + guard_seconds
        self._worked = 0.0
        self._pauses = 0.0  # seconds, as if the cycle had been paced all the time
        self._done = 0
        self._hurried = False
        self._full_speed = False
        self._lock = Lock()
        self._turn = Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits until no other worker of the cycle is in a transaction, unless the cycle runs at full speed."""
        if self._full_speed or not self._stop.may_start_cycle():
            yield
        else:
            with self._turn:
                yield

    def hurry(self) -> None:
        """Runs the rest of the cycle at full speed, after pauses that have begun."""
        with self._lock:
            self._hurried = self._full_speed = True

    def guard_due(self) -> bool:
        """Returns True if the workers should stop after the transaction in hand, so that the guard can run."""
        return self._clock() > self._guard_due_at and self._stop.may_start_cycle()

    def guard_begins(self) -> None:
        """Sets the time of the next interruption. Call it while no worker is running."""
        self._guard_due_at = self._clock() + self._guard_seconds

    def pause_after(self, worked: float, instances: int) -> float:
        """Returns how many seconds a worker should pause before its next transaction.

        Args:
            worked: seconds that its last transaction took.
            instances: how many the transaction processed.
        """
        with self._lock:
            pause = min(worked * (1 / self._share - 1), MOST_SECONDS)
            self._worked += worked
            self._pauses += pause
            self._done += instances
            self._left -= instances
            if not self._stop.may_start_cycle() or not self._done:
                return 0.0
            seconds = max(self._worked, (self._worked + self._pauses) / self._workers)
            self._full_speed = self._hurried or self._clock() + seconds * self._left / self._done > self._ends_at
            return 0.0 if self._full_speed else pause


def may_be_paced(late_seconds: float | None) -> bool:
    """Returns True if a cycle that begins this long after it was due may be paced.

    A triggered cycle begins before it is due. The first cycle of a database has no due time, and neither has one that
    continues an interrupted cycle.
    """
    return late_seconds is not None and 0 <= late_seconds <= ON_TIME_SECONDS
