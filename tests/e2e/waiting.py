"""The one way to wait: a look, again and again, until it finds what it looks for or its time is over.

A look that raises AssertionError, or a TransientError, has not found it yet; any other exception ends the wait at once.
All bounds are multiplied by E2E_TIMEOUT_SCALE, for clusters that are slow.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

SCALE: Final = float(os.environ.get("E2E_TIMEOUT_SCALE") or 1)
LOOK_AGAIN_SECONDS: Final = 0.5


class TransientError(Exception):
    """Something between us and the cluster failed; the next look may succeed."""


def scaled(seconds: float) -> float:
    """A bound on this cluster."""
    return seconds * SCALE


def duration(seconds: float) -> str:
    """A bound as kubectl and helm take it, scaled."""
    return f"{max(1, round(scaled(seconds)))}s"


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def eventually(
    look: Callable[[], T | None],
    what: str,
    within_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = _pause,
) -> T:
    """The first true value that the look gives.

    Raises:
        AssertionError: not within the bound; says what was seen last.
    """
    bound = scaled(within_seconds)
    deadline = clock() + bound
    while True:
        try:
            if found := look():
                return found
            seen = f"{found!r}"
        except (AssertionError, TransientError) as error:
            seen = str(error) or type(error).__name__
        if clock() >= deadline:
            raise AssertionError(f"not within {bound:g} s: {what}; last seen: {seen}")
        pause(LOOK_AGAIN_SECONDS)


def throughout(
    look: Callable[[], object],
    what: str,
    for_seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = _pause,
) -> None:
    """Looks until the time is over; what it finds must be true each time. Not scaled: it is how long to watch.

    Raises:
        AssertionError: once it was not.
    """
    deadline = clock() + for_seconds
    while clock() < deadline:
        try:
            found = look()
        except TransientError:
            found = True
        assert found, f"not throughout {for_seconds:g} s: {what}"
        pause(LOOK_AGAIN_SECONDS)
