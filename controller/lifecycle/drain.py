"""The drain: finish the work in hand, resign, report. There is no other way to stop, and it always ends in time."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

from controller.lifecycle.stop import StopToken

Clock = Callable[[], float]

#: Allowed for the batch in hand once the deadline has passed, and again for resigning. Together they fill the
#: 30 seconds that the chart adds to the drain's timeout.
GRACE_SECONDS = 15.0
#: The longest wait before the drain looks again for an earlier deadline.
RECHECK_SECONDS = 0.2

log = structlog.get_logger(part="lifecycle")


class DrainOutcome(StrEnum):
    """How a drain ended."""

    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True)
class DrainSteps:
    """What a drain does, in this order; the composition root supplies the callables.

    Attributes:
        announce: tells the outside world that a drain has begun, with its reason. Must not block.
        wait_for_work: waits up to the given seconds for the cycle in hand; returns True if it has ended.
        resign: gives up the leadership and the lock session, within the given seconds; returns True once done.
    """

    announce: Callable[[str], None]
    wait_for_work: Callable[[float], bool]
    resign: Callable[[float], bool]


class Drain:
    """Requested by signals, the preStop hook or a crash; carried out once, by the thread that calls `carry_out`.

    Args:
        stop: the token that the workers check before they start anything.
        steps: what to do.
        timeout_seconds: allowed for the work in hand, unless a request says otherwise.
        clock: monotonic seconds.
        on_requested: called with every request, on its thread; wakes the thread that carries the drain out.
    """

    def __init__(
        self,
        stop: StopToken,
        steps: DrainSteps,
        timeout_seconds: float,
        clock: Clock,
        on_requested: Callable[[], None] = lambda: None,
    ) -> None:
        self._stop = stop
        self._steps = steps
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._on_requested = on_requested
        self._requested = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._deadline = float("inf")
        self.reason = ""
        self.outcome: DrainOutcome | None = None

    @property
    def requested(self) -> bool:
        """True once this replica has been told to stop."""
        return self._requested.is_set()

    def request(self, reason: str, timeout_seconds: float | None = None) -> None:
        """Requests a drain. A further request keeps the first reason and can only bring the deadline forward."""
        allowed = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        self._bring_forward(self._clock() + allowed)
        self.reason = self.reason or reason
        self._requested.set()
        self._on_requested()

    @property
    def bound_seconds(self) -> float:
        """The longest time from now until the drain is over."""
        return max(self._deadline - self._clock(), 0.0) + 2 * GRACE_SECONDS

    def cut_short(self) -> None:
        """Ends the time for the work in hand: it stops after its current batch. A second signal does this."""
        self._bring_forward(self._clock())

    def wait_until_done(self, timeout_seconds: float) -> bool:
        """Blocks for up to `timeout_seconds`; returns True once the drain is over."""
        return self._done.wait(timeout_seconds)

    def carry_out(self) -> DrainOutcome:
        """Drains. Blocks for at most the timeout and twice GRACE_SECONDS."""
        began = self._clock()
        log.info(
            "drain.started",
            reason=self.reason,
            timeout_seconds=round(max(self._deadline - began, 0.0), 1),
        )
        self._stop.stop_cycles()
        self._steps.announce(self.reason)
        finished = self._work_ended_in_time()
        if not finished:
            log.warning(
                "drain.timed_out",
                detail="stopping after the batch in hand; the next leader continues from there",
            )
            self._stop.stop_batches()
            self._steps.wait_for_work(GRACE_SECONDS)
        self._steps.resign(GRACE_SECONDS)
        self.outcome = DrainOutcome.COMPLETED if finished else DrainOutcome.TIMED_OUT
        log.info("drain.completed", outcome=str(self.outcome), seconds=round(self._clock() - began, 3))
        self._done.set()
        return self.outcome

    def _bring_forward(self, deadline: float) -> None:
        with self._lock:
            self._deadline = min(self._deadline, deadline)

    def _work_ended_in_time(self) -> bool:
        """Waits in short steps, because the deadline can be brought forward at any moment."""
        while (remaining := self._deadline - self._clock()) > 0:
            if self._steps.wait_for_work(min(remaining, RECHECK_SECONDS)):
                return True
        return self._steps.wait_for_work(0)
