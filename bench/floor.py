"""Runs floor.sql, the yardstick: hand-written SQL in one session and one transaction."""

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

from bench.wal import wal_bytes_since, wal_position

FLOOR: Final = Path(__file__).with_name("floor.sql")


@dataclass(frozen=True)
class FloorRun:
    """What it charged and took.

    Attributes:
        steps: seconds of each statement, by what it does.
    """

    instances: int
    seconds: float
    wal_bytes: int
    steps: Mapping[str, float]


def run_floor(url: str, as_of: datetime, script: Path = FLOOR) -> FloorRun:
    """Charges everything that was due at a moment; the connection is not part of the time."""
    moment = sql.Literal(as_of.isoformat()).as_string()
    statements = script.read_text("utf-8").replace(":'as_of'", moment).split(";\n")
    with psycopg.connect(url) as connection:
        before = wal_position(connection)
        connection.commit()
        steps: dict[str, float] = {}
        began = ended = time.perf_counter()
        instances = 0
        for statement in statements:
            instances = connection.execute(statement.encode()).rowcount
            began_it, ended = ended, time.perf_counter()
            steps[_label(statement)] = ended - began_it
        connection.commit()
        seconds = time.perf_counter() - began
        return FloorRun(instances, seconds, wal_bytes_since(connection, before), steps)


def _label(statement: str) -> str:
    """What it does, and to which table."""
    words = re.sub(r"--.*", "", statement).split()
    return " ".join(words[: 2 if words[0] == "update" else 3])
