"""How many instances share a transaction.

Organizations that share a transaction wait for each other. While it charges an organization with slow rows, perhaps
because of a trigger, it keeps rows of the others locked. So after a slow transaction of several organizations, the next
ones hold fewer instances. Once all transactions are fast again, the number grows.
"""

from threading import Lock
from typing import Final

#: The longest that a transaction of several organizations should take.
SLOW_SECONDS: Final = 1.0
#: After a slow transaction, its number of instances divided by this is the new limit.
FEWER: Final = 4


class Sharing:
    """The most instances that may share a transaction. Thread-safe.

    Args:
        most: the limit while no transaction is slow.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._instances = most
        self._slowest = 0.0
        self._lock = Lock()

    def begin_cycle(self) -> int:
        """Returns the limit for a new cycle. It doubles if the last cycle's slowest transaction was fast."""
        with self._lock:
            if self._slowest < SLOW_SECONDS / 2:
                self._instances = min(self._most, 2 * self._instances)
            self._slowest = 0.0
            return self._instances

    def observe(self, seconds: float, instances: int) -> None:
        """Records how long a transaction of several organizations took.

        Args:
            seconds: how long it took.
            instances: how many shared it.
        """
        with self._lock:
            self._slowest = max(self._slowest, seconds)
            if seconds > SLOW_SECONDS:
                self._instances = max(1, min(self._instances, instances // FEWER))

    def parts(self, instances: int) -> int:
        """Returns the number of transactions into which a planned batch should be divided."""
        with self._lock:
            return -(-instances // self._instances)
