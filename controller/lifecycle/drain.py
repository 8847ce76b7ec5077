"""The one way to stop: finish, resign, close. Idempotent, bounded, the same for every reason."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog

Clock = Callable[[], float]

#: What is left for the batch in hand once the deadline has passed, and for resigning; below the 30 seconds that the
#: chart adds to the drain's timeout.
GRACE_SECONDS = 15.0

log = structlog.get_logger(part="lifecycle")


class DrainOutcome(StrEnum):
    """How a drain ended."""

    COMPLETED = "completed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True)
class DrainSteps:
    """What a drain does, in this order. The callables are given by the composition root.

    Attributes:
        refuse_traffic: not ready from now on.
        finish_work: starts no new cycle, waits up to so many seconds for the one in hand; whether it has ended.
        stop_after_batch: starts no new batch either.
        resign: gives the leadership up, waits up to so many seconds.
    """

    refuse_traffic: Callable[[], None]
    finish_work: Callable[[float], bool]
    stop_after_batch: Callable[[], None]
    resign: Callable[[float], bool]


class Drain:
    """Asked for by signals, by the preStop hook, and by a crash; carried out once, by whoever calls `carry_out`.

    Args:
        steps: what to do.
        timeout_seconds: for the work in hand, where whoever asks does not say.
        clock: monotonic seconds.
        on_asked: wakes whoever carries it out.
    """

    def __init__(
        self,
        steps: DrainSteps,
        timeout_seconds: float,
        clock: Clock,
        on_asked: Callable[[], None] = lambda: None,
    ) -> None:
        self._steps = steps
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._on_asked = on_asked
        self._asked = threading.Event()
        self._hurry = threading.Event()
        self._done = threading.Event()
        self.reason = ""
        self._deadline = float("inf")
        self.outcome: DrainOutcome | None = None

    @property
    def asked(self) -> bool:
        """Whether this replica is to stop."""
        return self._asked.is_set()

    def ask(self, reason: str, timeout_seconds: float | None = None) -> None:
        """Asks for a drain; a further call can only bring its deadline forward. Any thread."""
        allowed = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        self._deadline = min(self._deadline, self._clock() + allowed)
        self.reason = self.reason or reason
        self._asked.set()
        self._on_asked()

    def hurry(self) -> None:
        """A second signal: stop after the batch in hand."""
        self._deadline = self._clock()
        self._hurry.set()

    def wait_until_done(self, timeout_seconds: float) -> bool:
        """Blocks; whether it is done."""
        return self._done.wait(timeout_seconds)

    def carry_out(self) -> DrainOutcome:
        """Drains. Blocks until it is done, at most the timeout and twice GRACE_SECONDS."""
        began = self._clock()
        log.info(
            "drain.started",
            reason=self.reason,
            timeout_seconds=round(max(self._deadline - began, 0.0), 1),
        )
        self._steps.refuse_traffic()
        finished = self._finish_in_time()
        if not finished:
            log.warning(
                "drain.timed_out",
                detail="stopping after the batch in hand; the successor goes on from there",
            )
            self._steps.stop_after_batch()
            self._steps.finish_work(GRACE_SECONDS)
        self._steps.resign(GRACE_SECONDS)
        self.outcome = DrainOutcome.COMPLETED if finished else DrainOutcome.TIMED_OUT
        log.info("drain.completed", outcome=str(self.outcome), seconds=round(self._clock() - began, 3))
        self._done.set()
        return self.outcome

    def _finish_in_time(self) -> bool:
        """In short waits, since a second signal or a second request may bring the deadline forward."""
        while (remaining := self._deadline - self._clock()) > 0 and not self._hurry.is_set():
            if self._steps.finish_work(min(remaining, 0.2)):
                return True
        return self._steps.finish_work(0)
