"""Waits for a database that isn't ready, so that a pod doesn't wait out a crash-loop back-off.

Failures that usually end soon are retried every second: an unreachable server, a file that is missing or wrong, a
server that is read-only during a failover. Failures that a person has to fix are retried every 30 seconds, because each
attempt leaves a line in the server's log: a refused login, a missing right, missing tables. Any other failure is final.
"""

import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg
from psycopg import errors

from controller.errors import BillingError, DatabaseUnreachableError, SecretFileError, one_line
from controller.postgres.migrations import REPORT_SECONDS, ForeignDatabaseError, PendingMigrationsError

T = TypeVar("T")

SOON_SECONDS: Final = 1.0
LATER_SECONDS: Final = 30.0


def patiently(
    attempt: Callable[[], T],
    seconds: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Calls `attempt` until it returns, and returns its result.

    Args:
        attempt: opens its own session; it may be called repeatedly.
        seconds: how long to repeat it after failures that may end; 0 raises the first failure unchanged.
        progress: called with the reason for waiting, when it changes and every REPORT_SECONDS.
        clock: monotonic seconds.
        sleep: blocks for the given seconds.

    Raises:
        DatabaseUnreachableError: the time is over; the text gives the last reason.
        BillingError, psycopg.Error: waiting doesn't help.
    """
    give_up_at = clock() + seconds
    reported, report_at = "", 0.0
    while True:
        try:
            return attempt()
        except (BillingError, psycopg.Error) as error:
            pause = retry_seconds(error)
            if pause is None or not seconds:
                raise
            reason, now = one_line(error), clock()
            remaining = give_up_at - now
            if remaining <= 0:
                raise DatabaseUnreachableError(f"gave up after {seconds:g} s: {reason}") from None
            if reason != reported or now >= report_at:
                progress(f"waiting for up to {remaining:.0f} s: {reason}")
                reported, report_at = reason, now + REPORT_SECONDS
            sleep(min(pause, remaining))


def retry_seconds(error: Exception) -> float | None:
    """Returns how long to wait before the next attempt; None if waiting doesn't help."""
    cause = error if isinstance(error, psycopg.Error) else error.__cause__
    if isinstance(error, DatabaseUnreachableError):
        return LATER_SECONDS if error.refused else SOON_SECONDS
    if isinstance(error, ForeignDatabaseError) or isinstance(cause, errors.InsufficientPrivilege):
        return LATER_SECONDS
    soon = SecretFileError, PendingMigrationsError, psycopg.OperationalError
    if isinstance(error, soon) or isinstance(cause, errors.ReadOnlySqlTransaction):
        return SOON_SECONDS
    return None
