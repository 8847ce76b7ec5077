"""The PostgreSQL server that a suite measures: its settings, its write-ahead log and its log file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from tests.support.servers import ORIGINS, Server, installation_of

_MEMORY: Final = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
#: Commits survive a power cut. Shared buffers get a quarter of the memory, as PostgreSQL's manual advises.
DURABLE: Final = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": f"{_MEMORY // 4 // 2**20}MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "wal_compression": "off",
}


def durable_server(origin: str | None) -> Server:
    """A server that the caller must start.

    Args:
        origin: `installed` or `embedded`; None takes the first that is available.
    """
    return Server(next((installation_of(each) for each in ORIGINS if each == origin), None), DURABLE)


def durable_servers(origin: str | None) -> list[Server]:
    """The servers to measure side by side, which the caller must start: `origin`, or all that are available.

    Raises:
        SystemExit: none is available.
    """
    wanted = [each for each in ORIGINS if each == (origin or each)]
    servers = [Server(found, DURABLE) for found in map(installation_of, wanted) if found is not None]
    if not servers:
        raise SystemExit(f"no {' or '.join(wanted)} PostgreSQL was found")
    return servers


@contextmanager
def changed_settings(server: Server, settings: Mapping[str, str]) -> Iterator[None]:
    """Changes settings for all sessions until the block ends. Works for settings that a reload can change."""
    with psycopg.connect(server.url(), autocommit=True) as admin:
        try:
            for name, value in settings.items():
                admin.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            admin.execute("select pg_reload_conf()")
            yield
        finally:
            for name in settings:
                admin.execute(sql.SQL("alter system reset {}").format(sql.Identifier(name)))
            admin.execute("select pg_reload_conf()")


class LogTail:
    """The text that the server appends to its log file from now on."""

    def __init__(self, server: Server) -> None:
        self._path = server.log_path
        self._start = self._path.stat().st_size

    def read(self) -> str:
        with self._path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")


def wal_position(connection: psycopg.Connection[Any]) -> str:
    """The current end of the write-ahead log."""
    return str(_value(connection, "select pg_current_wal_insert_lsn()::text"))


def wal_bytes_since(connection: psycopg.Connection[Any], position: str) -> int:
    """Bytes that the whole server has added to its write-ahead log since a position."""
    return int(_value(connection, "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::bigint", position))


def _value(connection: psycopg.Connection[Any], query: str, *parameters: object) -> Any:  # noqa: ANN401 - any column
    ((value,),) = connection.cursor(row_factory=tuple_row).execute(query.encode(), parameters).fetchall()
    return value
