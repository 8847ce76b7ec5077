"""How long the holder of the lock has said nothing, as a standby can know it. Pure.

A standby sees a mark that changes with everything that the holder says. The holder's last word lies further back than
the answer in which the standby first saw the present mark; it was sent earlier still, and the holder counts its
deadline from sending. So once the standby's own clock has counted that deadline since, it has passed by the holder's
own clock as well. No wall clock is involved.
"""

import math
from typing import Final

from controller.election.bounds import Clock
from controller.election.session import Holder

#: Two healthy clocks do not run at quite the same rate; of the deadline.
CLOCK_RATES: Final = 1.05


class Silence:
    """Of whoever was seen last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._holder: Holder | None = None
        self._since = clock()

    def observe(self, holder: Holder | None) -> None:
        """Call it once the answer is there. None: nobody whose silence means anything."""
        if holder != self._holder:
            self._holder, self._since = holder, self._clock()

    @property
    def seconds(self) -> float:
        """It has lasted so long at the least."""
        return self._clock() - self._since

    @property
    def remaining_seconds(self) -> float:
        """Until the holder has stopped leading by itself; infinite where there is none to watch."""
        if self._holder is None:
            return math.inf
        return self._holder.deadline_seconds * CLOCK_RATES - self.seconds

    @property
    def outlasted(self) -> Holder | None:
        """The holder, once it has been silent for longer than it may believe that it leads."""
        return self._holder if self.remaining_seconds <= 0 else None
