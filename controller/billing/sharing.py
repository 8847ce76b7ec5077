"""How many instances share a transaction.

Organizations that share a transaction wait for each other: while it charges one whose rows are slow, perhaps because
of a trigger, it holds the wallets of the others. So once a transaction of several organizations has been slow, fewer
share one. When all transactions are fast again, more do.
"""

from threading import Lock
from typing import Final

#: The longest that a transaction of several organizations should take.
SLOW_SECONDS: Final = 1.0
#: After a slow transaction, only this fraction of the instances may share one.
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
        """Returns the limit for a new cycle. It doubles if every transaction of the last cycle was fast."""
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
