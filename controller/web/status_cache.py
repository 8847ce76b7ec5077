"""What the database says, read on demand and kept for some seconds: one reader at a time, and nobody waits for long."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog

from controller.billing.status import Status
from controller.errors import BillingError, one_line
from controller.log import WarnOnce

#: A reading is good for so long; a failed one too, so that a database in trouble is left alone.
FRESH_SECONDS: Final = 5.0
#: A request waits so long for a reading, and no more than MAX_WAITING requests at once.
WAIT_SECONDS: Final = 2.0
MAX_WAITING: Final = 2
#: While a reading is under way, those for whom there is no place to wait get the last one if it is not older.
STALE_SECONDS: Final = 60.0

log = structlog.get_logger(part="web")


@dataclass(frozen=True)
class Snapshot:
    """What was read, or why nothing was.

    Attributes:
        status: None when the database could not be read.
        runs: the newest cycles, newest first, as `history` gives them.
        error: one line; None when it was read.
        read_at: monotonic seconds.
    """

    status: Status | None
    runs: Sequence[Mapping[str, Any]]
    error: str | None
    read_at: float


class StatusCache:
    """Reads when somebody asks and the last reading is no longer fresh, on a thread of its own that then ends.

    Args:
        read: opens a session, reads, closes it; bounded in time by its own session's settings.
        clock: monotonic seconds.
        redact: removes secrets from a text that comes from elsewhere.
    """

    def __init__(
        self,
        read: Callable[[], tuple[Status, Sequence[Mapping[str, Any]]]],
        clock: Callable[[], float],
        redact: Callable[[str], str] = str,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._read = read
        self._clock = clock
        self._redact = redact
        self._wait_seconds = wait_seconds
        self._changed = threading.Condition()
        self._last: Snapshot | None = None
        self._began_at: float | None = None  # of the reading under way
        self._finished = 0
        self._waiting = 0
        self._succeeded = False
        self._failures = WarnOnce(log, "status.failed", level="error")

    def get(self) -> Snapshot:
        """A fresh reading where one can be had in time; otherwise one that says why not. Any thread; bounded."""
        with self._changed:
            if self._is_fresh():
                return self._newest()
            self._begin()
            if self._waiting >= MAX_WAITING:
                return self._meanwhile()
            awaited = self._finished + 1
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._finished >= awaited, self._wait_seconds)
            finally:
                self._waiting -= 1
            return self._newest() if self._finished >= awaited else self._late()

    def why_unproven(self) -> str | None:
        """Why it is not known that the database can be read at all; None from the first success on. Waits for nothing.

        Until then it asks the database, as often as FRESH_SECONDS allows.
        """
        with self._changed:
            if self._succeeded:
                return None
            if not self._is_fresh():
                self._begin()
            return (self._last.error if self._last else None) or "it is being tried"

    def _is_fresh(self) -> bool:
        return self._last is not None and self._clock() - self._last.read_at < FRESH_SECONDS

    def _newest(self) -> Snapshot:
        return self._last or self._late()

    def _begin(self) -> None:
        if self._began_at is None:
            self._began_at = self._clock()
            threading.Thread(target=self._run, name="status", daemon=True).start()

    def _meanwhile(self) -> Snapshot:
        """For those who can't wait: the last reading, unless it is old or the one under way is late."""
        now = self._clock()
        late = self._began_at is not None and now - self._began_at > self._wait_seconds
        if self._last is not None and not late and now - self._last.read_at < STALE_SECONDS:
            return self._last
        return self._late()

    def _late(self) -> Snapshot:
        return Snapshot(
            None, (), f"the database has not answered within {self._wait_seconds:g} s; try again", self._clock()
        )

    def _run(self) -> None:
        reading: Snapshot
        try:
            status, runs = self._read()
            reading = Snapshot(status, tuple(self._redacted(run) for run in runs), None, self._clock())
        except Exception as error:  # noqa: BLE001 - whatever it is, the next reading must be able to begin
            if not isinstance(error, BillingError):
                self._failures.failed(exc_info=error)
            reading = Snapshot(None, (), self._redact(one_line(error)), self._clock())
        else:
            self._failures.worked()
        with self._changed:
            self._last = reading
            self._succeeded = self._succeeded or reading.status is not None
            self._finished += 1
            self._began_at = None
            self._changed.notify_all()

    def _redacted(self, run: Mapping[str, Any]) -> Mapping[str, Any]:
        error = run.get("error")
        return {**run, "error": self._redact(str(error))} if error else run
