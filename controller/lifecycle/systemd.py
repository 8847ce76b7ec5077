"""Notifies systemd of the process's state, for a unit of `Type=notify`. The protocol is one datagram."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from controller.log import WarnOnce

#: A sign of life may be late or lost twice before systemd ends the process.
SIGNS_PER_TIMEOUT: Final = 3

log = structlog.get_logger(part="lifecycle")


def notify(address: str | None, state: str) -> None:
    """Sends a state such as `READY=1`. Does nothing if there is no socket, or if it is gone.

    Args:
        address: the value of `NOTIFY_SOCKET`; a leading @ names an abstract socket.
        state: the state, as sd_notify(3) defines it.
    """
    if not address or not hasattr(socket, "AF_UNIX"):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
        peer.connect("\0" + address[1:] if address.startswith("@") else address)
        peer.send(state.encode())


class Watchdog:
    """Sends signs of life while the process is live. Without them, systemd kills the process and starts it again.

    Args:
        address: the value of `NOTIFY_SOCKET`.
        timeout_seconds: systemd kills a process that has sent no sign for this long (`WatchdogSec`).
        why_not_live: returns the failed checks of `/livez`; none if the process is live.
    """

    def __init__(self, address: str, timeout_seconds: float, why_not_live: Callable[[], Sequence[str]]) -> None:
        self._address = address
        self._interval_seconds = timeout_seconds / SIGNS_PER_TIMEOUT
        self._why_not_live = why_not_live
        self._stopping = threading.Event()
        self._failures = WarnOnce(log, "watchdog.starved", level="error")

    def run(self) -> None:
        """Sends a sign at each third of the timeout until `stop` is called."""
        while not self._stopping.wait(self._interval_seconds):
            self.feed()

    def feed(self) -> bool:
        """Sends a sign if the process is live; returns True if it did."""
        if reasons := self._why_not_live():
            self._failures.failed(reason="; ".join(reasons))
            return False
        self._failures.worked()
        notify(self._address, "WATCHDOG=1")
        return True

    def stop(self) -> None:
        """Ends the loop. Any thread."""
        self._stopping.set()
