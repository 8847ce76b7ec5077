"""Catches signals from the start of the process. Imports nothing heavy, because PID 1 has no default handlers.

A signal handler that takes a lock can deadlock with the code it interrupts. So the handlers do nothing: the interpreter
writes each signal's number to a socket, and the main thread reads it from there.
"""

import contextlib
import os
import signal
import socket
from typing import Final, NoReturn

from controller.readable import readable


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Returns the signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


#: Each of these signals drains a controller and interrupts a one-off command.
STOPPING: Final = _known("SIGTERM", "SIGINT", "SIGBREAK", "SIGHUP", "SIGQUIT")
#: These signals are ignored. Their default action would end the process without a drain.
IGNORED: Final = _known("SIGUSR1", "SIGUSR2")
_WAKE: Final = 0


class Signals:
    """The signals that have arrived and have not been read yet. Only `wake` may be called from other threads."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._previous = [(number, signal.getsignal(number)) for number in STOPPING]
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        #: The signal that interrupted a one-off command.
        self.interrupted_by = signal.SIGINT
        for number, previous in self._previous:
            if number.name != "SIGHUP" or previous is not signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, lambda _number, _frame: None)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)

    def wait(self, timeout_seconds: float | None) -> list[signal.Signals]:
        """Blocks until a signal arrives, `wake` is called, or the time is over.

        Returns:
            The signals, in the order that they arrived.
        """
        readable([self._reader.fileno()], timeout_seconds)
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
        """Lets every signal, even one that has already arrived, raise KeyboardInterrupt. For commands without a drain.

        The kernel doesn't apply a signal's default action to PID 1, and a Python handler can't interrupt a call into C.
        As PID 1, the command therefore continues in a child, and this process forwards signals to it.
        """
        if os.getpid() == 1 and hasattr(os, "fork") and (child := os.fork()):
            self._stand_in_for(child)
        for number, handler in self._previous:
            signal.signal(number, signal.SIG_IGN if handler is signal.SIG_IGN else self._interrupt)
        signal.set_wakeup_fd(-1)
        for number in self.wait(0):
            signal.raise_signal(number)

    def _interrupt(self, number: int, _frame: object) -> NoReturn:
        self.interrupted_by = signal.Signals(number)
        raise KeyboardInterrupt

    def _stand_in_for(self, child: int) -> NoReturn:
        """Forwards signals to the child and exits with its status, encoded as a shell does."""

        def pass_on(number: int, _frame: object = None) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

        for number in STOPPING:
            signal.signal(number, pass_on)
        signal.set_wakeup_fd(-1)
        for number in self.wait(0):  # the child shares this socket, so only one of the two reads an early signal
            pass_on(number)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        os._exit(code if code >= 0 else 128 - code)
