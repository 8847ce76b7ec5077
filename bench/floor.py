"""Runs floor.sql: the same charges as a cycle, by hand-written SQL in one session and one transaction."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

from bench.server import wal_bytes_since, wal_position

FLOOR: Final = Path(__file__).with_name("floor.sql")


@dataclass(frozen=True)
class FloorRun:
    """One run of floor.sql.

    Attributes:
        seconds: how long it took, without connecting but with the commit.
        statement_seconds: the seconds of each statement, by a label such as `update wallets`.
    """

    instances: int
    seconds: float
    wal_bytes: int
    statement_seconds: Mapping[str, float]


def run_floor(url: str, as_of: datetime) -> FloorRun:
    """Charges everything that was due at `as_of`."""
    moment = sql.Literal(as_of.isoformat()).as_string()
    statements = FLOOR.read_text("utf-8").replace(":'as_of'", moment).split(";\n")
    with psycopg.connect(url) as connection:
        position = wal_position(connection)
        connection.commit()
        statement_seconds: dict[str, float] = {}
        instances = 0
        began = time.perf_counter()
        for statement in statements:
            statement_began = time.perf_counter()
            instances = connection.execute(statement.encode()).rowcount
            statement_seconds[_label(statement)] = time.perf_counter() - statement_began
        connection.commit()
        seconds = time.perf_counter() - began
        return FloorRun(instances, seconds, wal_bytes_since(connection, position), statement_seconds)


def _label(statement: str) -> str:
    words = re.sub(r"--.*", "", statement).split()
    return " ".join(words[: 2 if words[0] == "update" else 3])
