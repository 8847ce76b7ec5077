"""Waits for conditions by polling.

A check that raises AssertionError or TransientError counts as not yet fulfilled. Any other exception ends the wait.
E2E_TIMEOUT_SCALE multiplies all time limits, for slow clusters.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

SCALE: Final = float(os.environ.get("E2E_TIMEOUT_SCALE") or 1)
POLL_SECONDS: Final = 0.5


class TransientError(Exception):
    """The connection to the cluster failed; the next check may succeed."""


def scaled(seconds: float) -> float:
    """A time limit, scaled for this cluster."""
    return seconds * SCALE


def duration(seconds: float) -> str:
    """A scaled time limit in the format of kubectl and helm."""
    return f"{max(1, round(scaled(seconds)))}s"


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def eventually(
    check: Callable[[], T | None],
    what: str,
    within_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = _pause,
) -> T:
    """Waits for the first truthy result of the check and returns it.

    Raises:
        AssertionError: the time limit has passed; the message contains the last result.
    """
    limit = scaled(within_seconds)
    deadline = clock() + limit
    while True:
        try:
            if found := check():
                return found
            last = f"{found!r}"
        except (AssertionError, TransientError) as error:
            last = str(error) or type(error).__name__
        if clock() >= deadline:
            raise AssertionError(f"not within {limit:g} s: {what}; last result: {last}")
        pause(POLL_SECONDS)


def throughout(
    check: Callable[[], object],
    what: str,
    for_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = _pause,
) -> None:
    """Polls for the given time, which isn't scaled. Every result must be truthy.

    Raises:
        AssertionError: a result was falsy.
    """
    deadline = clock() + for_seconds
    while clock() < deadline:
        try:
            found = check()
        except TransientError:
            found = True
        assert found, f"not true throughout {for_seconds:g} s: {what}"
        pause(POLL_SECONDS)
