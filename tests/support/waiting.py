"""Waits for conditions, with a bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

LOOK_AGAIN_SECONDS = 0.02


def eventually(
    condition: Callable[[], bool], what: str, within: float = 30.0, every: float = LOOK_AGAIN_SECONDS
) -> None:
    """Blocks until the condition holds. Raises: AssertionError after `within` seconds."""
    deadline = time.monotonic() + within
    nothing = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {within:g} s: {what}"
        nothing.wait(every)


def through(url: str, port: int) -> str:
    """The URL with another port: that of a proxy or a pooler."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
