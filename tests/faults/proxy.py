"""A TCP proxy between a replica and PostgreSQL that fails as a network does.

It cuts connections, falls silent in one or both directions without a FIN or RST, and refuses new connections. It can
also hold one statement of a session: before the server gets it, or before the client gets the answer.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Literal, Self

from tests.faults.wire import ClientStream, Statement

WAIT_SECONDS: Final = 30.0
_CHUNK: Final = 65536

Way = Literal["up", "down"]
When = Literal["before", "after"]


@dataclass
class Hold:
    """A statement that the proxy holds.

    Attributes:
        session: a part of the session's `application_name`, such as ` worker `.
        matches: chooses the statement; the proxy holds the first match only.
        when: hold it before the server gets it, or after the server's answer.
        reached: set once the statement is held.
        statement: the held statement.
    """

    session: str
    matches: Callable[[Statement], bool]
    when: When = "before"
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    statement: Statement | None = None

    def wait(self, timeout_seconds: float = WAIT_SECONDS) -> Statement:
        """Blocks until the statement is held."""
        assert self.reached.wait(timeout_seconds), f"no statement of {self.session!r} was held in {timeout_seconds} s"
        assert self.statement is not None
        return self.statement

    def release(self) -> None:
        """Passes the statement on."""
        self.released.set()


class Link:
    """One connection through the proxy: two sockets and two threads."""

    def __init__(self, proxy: Proxy, client: socket.socket, number: int) -> None:
        self._proxy = proxy
        self._client = client
        self._server: socket.socket | None = None
        self._stream = ClientStream()
        self._answers = threading.Event()  # cleared while an answer is held
        self._answers.set()
        self._held: Hold | None = None
        self.statements: list[Statement] = []
        self.silent: set[Way] = set()
        self.closed = False
        self._thread = threading.Thread(target=self._run, name=f"proxy-{number}", daemon=True)
        self._thread.start()

    @property
    def application_name(self) -> str:
        """The name in the client's start-up packet."""
        return self._stream.application_name

    def cut(self) -> None:
        """Resets both connections."""
        self.closed = True
        self._proxy.changed()
        self._answers.set()
        for side in (self._client, self._server):
            if side is not None:
                with contextlib.suppress(OSError):
                    side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    side.shutdown(socket.SHUT_RDWR)
                side.close()

    def join(self) -> None:
        """Waits for the threads."""
        self._thread.join(WAIT_SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            self._proxy.wait_to_pass(self, "up")
            if not self.closed:
                self._server = socket.create_connection(self._proxy.target, 10)
                self._server.settimeout(None)
                down = threading.Thread(target=self._pump_down, args=(self._server,), daemon=True)
                down.start()
                self._pump_up(self._server)
                down.join(WAIT_SECONDS)
        self.cut()
        self._proxy.forget(self)

    def _pump_up(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(_CHUNK):
                for chunk, statement in self._stream.feed(data):
                    self._send_up(server, chunk, statement)
        self._end(server, "up")

    def _send_up(self, server: socket.socket, chunk: bytes, statement: Statement | None) -> None:
        hold = None
        if statement is not None:
            self.statements.append(statement)
            hold = self._proxy.hold_for(self.application_name, statement)
        if hold is not None:
            hold.statement = statement
            if hold.when == "before":
                hold.reached.set()
                hold.released.wait(WAIT_SECONDS)
            else:
                self._held = hold
                self._answers.clear()
        self._proxy.wait_to_pass(self, "up")
        if not self.closed:
            server.sendall(chunk)

    def _pump_down(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(_CHUNK):
                if not self._answers.is_set() and (hold := self._held) is not None:
                    hold.reached.set()
                    hold.released.wait(WAIT_SECONDS)
                    self._answers.set()
                self._proxy.wait_to_pass(self, "down")
                if self.closed:
                    return
                self._client.sendall(data)
        self._end(self._client, "down")

    def _end(self, side: socket.socket, way: Way) -> None:
        """Closes the other direction of a connection whose peer has closed, once traffic may pass."""
        if not self.closed:
            self._proxy.wait_to_pass(self, way)
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_WR)


class Proxy:
    """Listens on 127.0.0.1 and forwards to `target`."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self._state = threading.Condition()
        self._links: set[Link] = set()
        self._silent: set[Way] = set()
        self._holds: list[Hold] = []
        self._numbers = 0
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None
        self.port = 0
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def accept(self) -> None:
        """Accepts new connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._accepting = threading.Thread(target=self._accept, args=(listener,), name="proxy", daemon=True)
        self._accepting.start()

    def refuse(self) -> None:
        """Refuses new connections."""
        if self._listener is not None and self._accepting is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._accepting.join(WAIT_SECONDS)
            self._listener = None

    def cut(self, session: str = "") -> int:
        """Resets the connections of a session, or all; returns how many."""
        links = self.links(session)
        for link in links:
            link.cut()
        return len(links)

    def stall(self, *ways: Way) -> None:
        """Stops all traffic in the given directions, on new connections too."""
        with self._state:
            self._silent |= set(ways or ("up", "down"))

    def stall_present(self, session: str = "") -> None:
        """Silences the current connections for good. New ones pass."""
        with self._state:
            for link in self._links:
                if session in link.application_name:
                    link.silent |= {"up", "down"}

    def resume(self) -> None:
        """Lets all traffic pass again."""
        with self._state:
            self._silent.clear()
            for link in self._links:
                link.silent.clear()
            self._state.notify_all()

    @contextlib.contextmanager
    def hold(self, session: str, matches: Callable[[Statement], bool], when: When = "before") -> Iterator[Hold]:
        """Holds the first matching statement; releases it when the context ends."""
        hold = Hold(session, matches, when)
        with self._state:
            self._holds.append(hold)
        try:
            yield hold
        finally:
            hold.release()
            with self._state:
                if hold in self._holds:
                    self._holds.remove(hold)

    def links(self, session: str = "") -> list[Link]:
        """The current connections of a session, or all."""
        with self._state:
            return [link for link in self._links if session in link.application_name]

    def hold_for(self, application_name: str, statement: Statement) -> Hold | None:
        """The hold for this statement, if one matches. It doesn't match again."""
        with self._state:
            for hold in self._holds:
                if hold.session in application_name and hold.matches(statement):
                    self._holds.remove(hold)
                    return hold
        return None

    def wait_to_pass(self, link: Link, way: Way) -> None:
        """Blocks while this direction is silent."""
        with self._state:
            self._state.wait_for(lambda: link.closed or (way not in self._silent and way not in link.silent))

    def changed(self) -> None:
        """Wakes the threads that wait to pass."""
        with self._state:
            self._state.notify_all()

    def forget(self, link: Link) -> None:
        """Removes a connection that has ended."""
        with self._state:
            self._links.discard(link)

    def close(self) -> None:
        """Closes every connection and the listener."""
        self.refuse()
        with self._state:
            holds, self._holds = self._holds, []
            links = list(self._links)
        for hold in holds:
            hold.release()
        for link in links:
            link.cut()
        for link in links:
            link.join()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._state:
                self._numbers += 1
                link = Link(self, client, self._numbers)
                self._links.add(link)
