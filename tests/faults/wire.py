"""What a proxy has to understand of PostgreSQL's protocol: start-up packets, and where a client's statement ends."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Final

_PROTOCOL_3: Final = 196608
_ROUND_TRIP_ENDS: Final = {b"Q", b"S"}  # a simple query; a Sync, which ends what Parse, Bind and Execute began


@dataclass(frozen=True)
class Statement:
    """One round trip that a client asks for.

    Attributes:
        number: 1 for the session's first.
        sql: its text, on one line; that of its preparation where it was prepared before.
    """

    number: int
    sql: str

    @property
    def label(self) -> str:
        """Enough of it to know it by."""
        words = re.sub(r"--.*", "", self.sql).split()
        return " ".join(words[:4])


class ClientStream:
    """Splits what a client sends into whole round trips; each comes out as its bytes and what they ask for."""

    def __init__(self) -> None:
        self._buffer = b""
        self._trip = b""
        self._sql = ""
        self._prepared: dict[bytes, str] = {}
        self._number = 0
        self._started = False
        self.application_name = ""

    def feed(self, data: bytes) -> list[tuple[bytes, Statement | None]]:
        """Gives what can be passed on now: a start-up packet or a message outside a round trip has no statement."""
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
            elif kind in {b"p", b"X", b"H", b"d", b"c"}:  # nor has what flows in a COPY, such as replication
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
            return  # asks for encryption, which is answered with one byte; the start-up packet follows
        self._started = True
        words = [word.decode() for word in packet[8:].split(b"\0")]
        self.application_name = dict(zip(words[::2], words[1::2], strict=False)).get("application_name", "")

    def _note(self, kind: bytes, message: bytes) -> None:
        if kind == b"Q":
            self._sql = _one_line(message[5:].rstrip(b"\0"))
        elif kind == b"P":
            name, sql, _ = message[5:].split(b"\0", 2)
            self._sql = self._prepared[name] = _one_line(sql)
        elif kind == b"B":
            _, name, _ = message[5:].split(b"\0", 2)
            self._sql = self._prepared.get(name, self._sql)


def _one_line(sql: bytes) -> str:
    lines = [line.split("--", 1)[0] for line in sql.decode(errors="replace").splitlines()]
    return " ".join(" ".join(lines).split())
