"""Waits for sockets. Uses `poll`, because `select` fails for descriptors above 1,023. Windows has only `select`."""

import selectors
from collections.abc import Iterable, Mapping
from typing import Final

_SELECTOR: Final = getattr(selectors, "PollSelector", selectors.SelectSelector)


def readable(descriptors: Iterable[int], timeout_seconds: float | None) -> set[int]:
    """Blocks until a descriptor can be read or the timeout passes. Returns those that can be read.

    Raises:
        OSError, ValueError: a descriptor is closed.
    """
    return set(wait_for(dict.fromkeys(descriptors, selectors.EVENT_READ), timeout_seconds))


def wait_for(wanted: Mapping[int, int], timeout_seconds: float | None) -> dict[int, int]:
    """Blocks until a descriptor is ready or the timeout passes.

    Args:
        wanted: what to wait for, by descriptor: `selectors.EVENT_READ`, `EVENT_WRITE` or both.
        timeout_seconds: None waits forever, and a negative number not at all.

    Returns:
        What each ready descriptor is ready for.

    Raises:
        OSError, ValueError: a descriptor is closed.
    """
    with _SELECTOR() as selector:
        for descriptor, events in wanted.items():
            selector.register(descriptor, events)
        return {key.fd: events for key, events in selector.select(timeout_seconds)}
