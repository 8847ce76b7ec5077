"""Reads facts when a client asks, and keeps them for a few seconds. One read at a time; no client waits long."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from controller.errors import BillingError, one_line
from controller.log import WarnOnce

#: How long a snapshot is fresh. A failed read is kept as long, to spare a database in trouble.
FRESH_SECONDS: Final = 5.0
#: How long a request waits for a read, and how many requests may wait.
WAIT_SECONDS: Final = 2.0
MAX_WAITING: Final = 2
#: If too many requests are waiting, another request gets the last snapshot, which may be this old.
STALE_SECONDS: Final = 60.0

log = structlog.get_logger(part="web")

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Snapshot(Generic[Facts]):
    """The result of a read.

    Attributes:
        facts: the facts; None if the database could not be read.
        error: one line; None if the read succeeded.
        read_at: monotonic seconds.
        last_known: `facts`, or the facts of the newest read that succeeded; None if none has.
        age_seconds: the age of `last_known` when this snapshot was made.
    """

    facts: Facts | None
    error: str | None
    read_at: float
    last_known: Facts | None = None
    age_seconds: float = 0.0


class StatusCache(Generic[Facts]):
    """Starts a read, on a short-lived thread, if a client asks and the last snapshot is no longer fresh.

    Args:
        read: opens a session, reads, and closes it, in bounded time.
        clock: monotonic seconds.
        redact: removes secrets from an error.
        wait_seconds: how long a request waits for a read.
    """

    def __init__(
        self,
        read: Callable[[], Facts],
        clock: Callable[[], float],
        redact: Callable[[str], str] = str,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._read = read
        self._clock = clock
        self._redact = redact
        self._wait_seconds = wait_seconds
        self._changed = threading.Condition()
        self._last: Snapshot[Facts] | None = None
        self._succeeded: Snapshot[Facts] | None = None
        self._read_started_at: float | None = None  # None unless a read is in progress
        self._reads_finished = 0
        self._waiting = 0
        self._failures = WarnOnce(log, "status.failed", level="error")

    def get(self) -> Snapshot[Facts]:
        """Returns a fresh snapshot, or one that says why there is none. Any thread; waits at most `wait_seconds`."""
        with self._changed:
            if self._last is not None and self._is_fresh(self._last):
                return self._last
            self._start_read()
            if self._waiting >= MAX_WAITING:
                return self._last_or_timeout()
            awaited = self._reads_finished + 1
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._reads_finished >= awaited, self._wait_seconds)
            finally:
                self._waiting -= 1
            return self._last if self._last is not None and self._reads_finished >= awaited else self._timeout()

    def why_never_read(self) -> str | None:
        """Returns why no read has succeeded so far; None after the first success. Doesn't wait.

        Until then, it starts a read unless one is in progress or has just failed.
        """
        with self._changed:
            if self._succeeded is not None:
                return None
            if self._last is None or not self._is_fresh(self._last):
                self._start_read()
            return (self._last.error if self._last else None) or "the first attempt is in progress"

    def _is_fresh(self, snapshot: Snapshot[Facts]) -> bool:
        return self._clock() - snapshot.read_at < FRESH_SECONDS

    def _start_read(self) -> None:
        if self._read_started_at is None:
            self._read_started_at = self._clock()
            threading.Thread(target=self._run, name="status", daemon=True).start()

    def _last_or_timeout(self) -> Snapshot[Facts]:
        """Returns the last snapshot, unless it is old or the read in progress is late."""
        now = self._clock()
        late = self._read_started_at is not None and now - self._read_started_at > self._wait_seconds
        if self._last is not None and not late and now - self._last.read_at < STALE_SECONDS:
            return self._last
        return self._timeout()

    def _timeout(self) -> Snapshot[Facts]:
        return self._failed(f"the database has not answered within {self._wait_seconds:g} s; try again")

    def _failed(self, error: str) -> Snapshot[Facts]:
        now, known = self._clock(), self._succeeded
        if known is None:
            return Snapshot(None, error, now)
        return Snapshot(None, error, now, known.facts, now - known.read_at)

    def _run(self) -> None:
        snapshot: Snapshot[Facts] | None = None
        error = ""
        try:
            facts = self._read()
            snapshot = Snapshot(facts, None, self._clock(), facts)
        except Exception as failure:  # noqa: BLE001 - whatever failed, the next read must be able to start
            if not isinstance(failure, BillingError):
                self._failures.failed(exc_info=failure)
            error = self._redact(one_line(failure))
        else:
            self._failures.worked()
        with self._changed:
            self._succeeded = snapshot or self._succeeded
            self._last = snapshot or self._failed(error)
            self._reads_finished += 1
            self._read_started_at = None
            self._changed.notify_all()
