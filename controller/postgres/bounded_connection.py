"""A connection that bounds each wait for an answer, and can interrupt a long one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from socket import socket
from typing import TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.waiting import Ready, Wait

from controller import sql
from controller.readable import wait_for

RV = TypeVar("RV")


class InterruptedWaitError(Exception):
    """The wait for an answer was interrupted. The answer may still arrive, so the connection must be closed."""


class BoundedConnection(sql.Session):
    """A connection that closes itself if the server does not answer in time."""

    reply_timeout_seconds: float = 30.0
    _interrupt: socket | None = None
    _blocked_seconds: float = 0.0

    @contextmanager
    def interruptible(self, interrupt: socket, blocked_seconds: float) -> Iterator[None]:
        """Makes statements within the block interruptible.

        Args:
            interrupt: the wait for an answer ends when this socket can be read. Nothing is read from it.
            blocked_seconds: how long the statement may block on the server, on top of the reply timeout.

        Raises:
            InterruptedWaitError: a statement was interrupted.
        """
        self._interrupt, self._blocked_seconds = interrupt, blocked_seconds
        try:
            yield
        finally:
            self._interrupt, self._blocked_seconds = None, 0.0

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        """Waits as psycopg does, for `reply_timeout_seconds` unless the caller passes a timeout.

        Raises:
            psycopg.OperationalError: no answer in time. The connection is closed, because the answer may still arrive.
            InterruptedWaitError: as `interruptible` documents it.
        """
        if timeout is not None:
            return super().wait(gen, interval, timeout)
        try:
            if self._interrupt is not None:
                return self._wait_interruptibly(gen, self._interrupt.fileno())
            return super().wait(gen, interval, self.reply_timeout_seconds)
        except errors._WaitTimeout:  # noqa: SLF001 - psycopg documents it in wait() and exports no other name
            self.pgconn.finish()
            raise psycopg.OperationalError(
                f"no answer from the server within {self.reply_timeout_seconds:g} s"
            ) from None

    def _wait_interruptibly(self, gen: PQGen[RV], interrupt: int) -> RV:
        """Waits for the server and for the interrupt. Unlike psycopg's wait, it doesn't wake up ten times a second."""
        deadline = time.monotonic() + self._blocked_seconds + self.reply_timeout_seconds
        server = self.pgconn.socket
        try:
            wanted = next(gen)
            while True:
                ready = wait_for({server: wanted, interrupt: Wait.R}, deadline - time.monotonic())
                if interrupt in ready:
                    raise InterruptedWaitError
                if server not in ready:
                    raise errors._WaitTimeout  # noqa: SLF001 - as above
                wanted = gen.send(Ready(ready[server]))
        except StopIteration as done:
            result: RV = done.value
            return result
