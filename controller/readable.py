"""Waits for sockets. Uses `poll`, because `select` fails for descriptors above 1,023. Windows has only `select`."""

import selectors
from collections.abc import Iterable
from typing import Final

_SELECTOR: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


def readable(descriptors: Iterable[int], timeout_seconds: float | None) -> set[int]:
    """Blocks until a descriptor can be read or the timeout passes. Returns those that can be read.

    Raises:
        OSError, ValueError: a descriptor is closed.
    """
    with _SELECTOR() as selector:
        for descriptor in descriptors:
            selector.register(descriptor, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(timeout_seconds)}
