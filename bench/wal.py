"""How much write-ahead log was made: of the whole server, which is the benchmark's alone."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import tuple_row


def wal_position(connection: psycopg.Connection[Any]) -> str:
    """Where the log ends now."""
    ((position,),) = _ask(connection, "select pg_current_wal_insert_lsn()::text")
    return str(position)


def wal_bytes_since(connection: psycopg.Connection[Any], position: str) -> int:
    """How many bytes have been added."""
    ((added,),) = _ask(connection, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint", position)
    return int(added)


def _ask(connection: psycopg.Connection[Any], query: str, *parameters: object) -> list[tuple[Any, ...]]:
    return connection.cursor(row_factory=tuple_row).execute(query.encode(), parameters).fetchall()
