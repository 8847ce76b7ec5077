"""Signals, from the process's first instruction on. Imports nothing heavy: PID 1 has no default handlers.

A handler that took a lock could deadlock with the very code it interrupts, so nothing happens in one: the interpreter
writes the signal's number to a socket, and the main thread reads it there.
"""

import contextlib
import select
import signal
import socket
from typing import Final

STOPPING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name))
_WAKE: Final = 0


class Signals:
    """What has arrived and not been read. Of the main thread, but for `wake`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous = [(number, signal.getsignal(number)) for number in STOPPING]
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            signal.signal(number, lambda _number, _frame: None)

    def wait(self, timeout_seconds: float | None) -> list[signal.Signals]:
        """Blocks until a signal arrives, `wake` is called or the time is over; gives the signals, in their order."""
        select.select([self._reader], [], [], timeout_seconds)
        numbers = b""
        with contextlib.suppress(BlockingIOError):
            numbers = self._reader.recv(4096)
        return [signal.Signals(number) for number in numbers if number in STOPPING]

    def wake(self) -> None:
        """Ends a `wait`. Any thread."""
        with contextlib.suppress(OSError):
            self._writer.send(bytes([_WAKE]))

    def ignore(self) -> None:
        """At the end: an exiting interpreter gives the default handlers back, and a late signal would kill it."""
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Gives the handlers back, with what has arrived: for commands that end at once when they are interrupted."""
        for number, handler in self._previous:
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        for number in self.wait(0):
            signal.raise_signal(number)
