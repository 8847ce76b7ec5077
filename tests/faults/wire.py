"""The part of PostgreSQL's protocol that the proxy needs: start-up packets, and where a client's statement ends."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controller.sql import load

_PROTOCOL_3: Final = 196608
_ROUND_TRIP_ENDS: Final = {b"Q", b"S"}  # a simple query, and the Sync that ends Parse, Bind and Execute


@dataclass(frozen=True)
class Statement:
    """One round trip of a client.

    Attributes:
        number: 1 for the session's first.
        sql: the statement on one line; for a prepared one, the text that was prepared.
    """

    number: int
    sql: str

    @property
    def label(self) -> str:
        """The start of the statement, enough to recognize it."""
        words = re.sub(r"--.*", "", self.sql).split()
        return " ".join(words[:4])


class ClientStream:
    """Splits what a client sends into whole round trips: their bytes and statements."""

    def __init__(self) -> None:
        self._buffer = b""
        self._trip = b""
        self._sql = ""
        self._prepared: dict[bytes, str] = {}
        self._number = 0
        self._started = False
        self.application_name = ""

    def feed(self, data: bytes) -> list[tuple[bytes, Statement | None]]:
        """Returns what can be passed on now. Start-up packets and messages outside a round trip have no statement."""
        self._buffer += data
        out: list[tuple[bytes, Statement | None]] = []
        while (message := self._next_message()) is not None:
            if not self._started:
                self._read_startup(message)
                out.append((message, None))
                continue
            self._trip += message
            kind = message[:1]
            self._note(kind, message)
            if kind in _ROUND_TRIP_ENDS:
                self._number += 1
                out.append((self._trip, Statement(self._number, self._sql)))
                self._trip, self._sql = b"", ""
            elif kind in {b"p", b"X", b"H", b"d", b"c"}:  # COPY data, such as replication, has no statement either
                out.append((self._trip, None))
                self._trip = b""
        return out

    def _next_message(self) -> bytes | None:
        start = 1 if self._started else 0
        if len(self._buffer) < start + 4:
            return None
        length = start + int(struct.unpack_from("!i", self._buffer, start)[0])
        if len(self._buffer) < length:
            return None
        message, self._buffer = self._buffer[:length], self._buffer[length:]
        return message

    def _read_startup(self, packet: bytes) -> None:
        if struct.unpack_from("!i", packet, 4)[0] != _PROTOCOL_3:
            return  # a request for encryption: the server answers one byte, and the start-up packet follows
        self._started = True
        words = [word.decode() for word in packet[8:].split(b"\0")]
        self.application_name = dict(zip(words[::2], words[1::2], strict=False)).get("application_name", "")

    def _note(self, kind: bytes, message: bytes) -> None:
        if kind == b"Q":
            self._sql = one_line(message[5:].rstrip(b"\0").decode(errors="replace"))
        elif kind == b"P":
            name, sql, _ = message[5:].split(b"\0", 2)
            self._sql = self._prepared[name] = one_line(sql.decode(errors="replace"))
        elif kind == b"B":
            _, name, _ = message[5:].split(b"\0", 2)
            self._sql = self._prepared.get(name, self._sql)


def one_line(sql: str) -> str:
    """Joins the lines of a statement and leaves its comments out."""
    lines = [line.split("--", 1)[0] for line in sql.splitlines()]
    return " ".join(" ".join(lines).split())


def starts_with(sql: str) -> Callable[[Statement], bool]:
    """Matches a statement. Fails at once if the controller has none that starts like this."""
    known = ["BEGIN", "COMMIT", *(one_line(each) for each in load().values())]
    assert any(each.startswith(sql) for each in known), f"no statement starts with {sql!r}"

    def matches(statement: Statement) -> bool:
        return statement.sql.startswith(sql)

    return matches
