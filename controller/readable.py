"""Waits for sockets. `select` fails for descriptors above 1,023; it remains where there is no `poll` (Windows)."""

import selectors
from collections.abc import Iterable
from typing import Final

_SELECTOR: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


def readable(descriptors: Iterable[int], timeout_seconds: float | None) -> set[int]:
    """Blocks until one of the descriptors can be read or the time is over; returns those that can be read.

    Raises:
        OSError, ValueError: a descriptor is closed.
    """
    with _SELECTOR() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(timeout_seconds)}
