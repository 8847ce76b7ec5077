"""How long the holder of the lock has been silent, as far as a standby can prove it. Pure.

With every try for the lock, a standby sees a mark that changes whenever the holder sends something. Three events happen
in this order: the holder sends its last statement, the server finishes it, and the standby first sees the resulting
mark. The holder counts its deadline from the first event and the standby from the third. So once the standby's clock
has counted the holder's whole deadline, that deadline has passed by the holder's clock too. No wall clock is involved.
"""

import math
from typing import Final

from controller.election.bounds import Clock
from controller.election.session import Holder

#: The standby counts this much more than the deadline, because no two clocks run at exactly the same rate.
CLOCK_RATE_MARGIN: Final = 1.05


class Silence:
    """Measures the silence of the holder seen last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holder: Holder | None = None
        self._since = clock()

    def observe(self, holder: Holder | None) -> None:
        """Records what a try has found. Call it after the answer has arrived.

        Args:
            holder: None if there is no holder to watch.
        """
        if holder != self._holder:
            self._holder, self._since = holder, self._clock()

    @property
    def seconds(self) -> float:
        """The shortest time that the silence can have lasted."""
        return self._clock() - self._since

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the holder has certainly stopped leading; infinite if there is no holder to watch."""
        if self._holder is None:
            return math.inf
        return self._holder.deadline_seconds * CLOCK_RATE_MARGIN - self.seconds

    @property
    def expired_holder(self) -> Holder | None:
        """The holder, once it has been silent for longer than it may believe that it leads; else None."""
        return self._holder if self.remaining_seconds <= 0 else None
