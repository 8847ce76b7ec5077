"""Catches signals from the start of the process. Imports nothing heavy, because PID 1 has no default handlers.

A signal handler that takes a lock can deadlock with the code it interrupts. So the handlers do nothing: the interpreter
writes each signal's number to a socket, and the main thread reads it from there.
"""

import contextlib
import select
import signal
import socket
from typing import Final

STOPPING: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGBREAK") if hasattr(signal, name))
_WAKE: Final = 0


class Signals:
    """The signals that have arrived and have not been read yet. Only `wake` may be called from other threads."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous = [(number, signal.getsignal(number)) for number in STOPPING]
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in STOPPING:
            signal.signal(number, lambda _number, _frame: None)

    def wait(self, timeout_seconds: float | None) -> list[signal.Signals]:
        """Blocks until a signal arrives, `wake` is called, or the time is over.

        Returns:
            The signals, in the order in which they arrived.
        """
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
        """Ignores all further signals.

        Without this, an exiting interpreter restores the default handlers and a late signal kills it.
        """
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)

    def restore(self) -> None:
        """Restores the previous handlers and raises what has arrived. For commands that a signal may simply end."""
        for number, handler in self._previous:
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        for number in self.wait(0):
            signal.raise_signal(number)
