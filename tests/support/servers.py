"""The PostgreSQL servers that tests run against, and databases on them that take milliseconds to make.

Each test gets a copy of a template that holds the sample ContainerStacks schema and this project's migrations.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from controller.demo.sample import create_schema
from controller.demo.server import EphemeralServer, Installation, ServerError, find_installations
from controller.postgres.connections import MIGRATION, Database
from controller.postgres.migrations import migrate
from tests.support.waiting import eventually

Origin = Literal["installed", "embedded"]
StopMode = Literal["fast", "immediate"]
ORIGINS: Final[tuple[Origin, ...]] = ("installed", "embedded")
TEMPLATE: Final = "migrated_template"

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - `mkdtemp` makes the folders in it
#: What the servers of all xdist workers take at most, and what must stay free beside them.
SERVERS_BYTES: Final = 3 << 30
SPARE_BYTES: Final = 1 << 30

_numbers = itertools.count(1)


class Server(EphemeralServer):
    """An ephemeral server that tests can stop, restart, freeze and kill.

    Args:
        installation: the programs to use; by default the first that is found.
        options: server settings on top of the demo's and of UTC as the time zone.
    """

    def __init__(self, installation: Installation | None = None, options: Mapping[str, str] | None = None) -> None:
        super().__init__(installation)
        self.options |= {"timezone": "UTC", "log_timezone": "UTC", **(options or {})}

    @property
    def log_path(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises: ServerError if it doesn't run."""
        if self._process is None or not self.running:
            raise ServerError("the ephemeral PostgreSQL does not run")
        return self._process.pid

    def socket_url(self, dbname: str = "postgres", user: str = "postgres") -> str:
        """A connection URL through the Unix socket."""
        names = quote(user, safe=""), quote(dbname, safe=""), quote(str(self.folder), safe="")
        return "postgresql://{}@/{}?host={}&port={}".format(*names, self.port)

    def create_database(self, name: str, template: str = "template1") -> str:
        """Creates the database by copying files if PostgreSQL can: half the time of copying through the WAL."""
        strategy = sql.SQL(" strategy file_copy" if self.installation.version >= 15 else "")
        with psycopg.connect(self.url(), autocommit=True) as conn:
            names = map(sql.Identifier, (name, template))
            conn.execute(sql.SQL("create database {} template {}").format(*names) + strategy)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drops the database if it exists, and ends its sessions.

        It first waits until they have ended: `drop database` looks again only after 100 ms.
        """
        with psycopg.connect(self.url(), autocommit=True) as conn:
            ended = "select pg_terminate_backend(pid) from pg_stat_activity where datname = %s"
            with suppress(AssertionError):  # a frozen session delays `drop database` too, which then fails
                eventually(lambda: not conn.execute(ended, [name]).fetchall(), "sessions end", within=1, every=0.001)
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Starts the server; after `stop` on the same port and with the same data."""
        if not self.folder.name:
            super().start()
        elif not self.running:
            self._launch()

    def stop(self, mode: StopMode = "fast") -> None:
        """Stops the server, which keeps its data. `fast` writes a checkpoint; `immediate` is a crash."""
        self._stop(signal.SIGINT if mode == "fast" else signal.SIGQUIT)

    def restart(self, mode: StopMode = "fast") -> None:
        self.stop(mode)
        self.start()

    def _stop(self, number: signal.Signals) -> None:
        if self._process is not None:  # a test may have frozen it; the pending signal comes first when it continues
            self._process.send_signal(number)  # sends nothing to a process that has ended
            self._process.send_signal(signal.SIGCONT)
        super()._stop(number)


def shared_server(installation: Installation) -> Server:
    """A server for many tests. It is in memory if there is room: on a disk, most tests wait for their database's files.

    Its default is not to compile queries: the controller's sessions state `jit = off` themselves, and the sessions of
    tests would spend much of their time on it.

    Tests that crash a server, fill its disk or restart it have their own servers on the disk.
    """
    server = Server(installation, {"jit": "off"})
    server.parent = _memory()
    return server


@cache
def _memory() -> Path | None:
    """The file system in memory if there is one with enough room; else None."""
    try:
        volume = os.statvfs(MEMORY)
        available = re.search(r"^MemAvailable: +(\d+) kB$", Path("/proc/meminfo").read_text("utf-8"), re.MULTILINE)
    except (AttributeError, OSError):  # Windows, macOS
        return None
    if available is None or volume.f_flag & os.ST_NOEXEC:  # root may have to copy the programs there
        return None
    enough = shutil.disk_usage(MEMORY).free > SERVERS_BYTES and int(available[1]) << 10 > SERVERS_BYTES + SPARE_BYTES
    return MEMORY if enough else None


def installation_of(origin: Origin) -> Installation | None:
    """The newest installation of this origin, if there is one."""
    return next((each for each in find_installations() if each.origin == origin), None)


def chosen_installation(config: pytest.Config, *, newest: bool = False) -> Installation:
    """One installation that `--postgres` allows, for tests to which the version makes no difference, or a skip."""
    found = chosen_installations(config)
    if not found:
        pytest.skip("no PostgreSQL")
    return max(found, key=lambda each: each.version) if newest else found[0]


def chosen_installations(config: pytest.Config) -> list[Installation]:
    """The installations that `--postgres` allows."""
    chosen = config.getoption("--postgres")
    return [each for each in map(installation_of, ORIGINS) if each and chosen in (each.origin, "all")]


def migrate_url(url: str) -> None:
    """Applies this project's migrations to the database at `url`."""
    with Database(lambda: url, "DATABASE_URL", "migrate").connect(MIGRATION) as connection:
        migrate(connection)


def prepare_template(url: str) -> None:
    """Creates the application's sample schema and applies this project's migrations."""
    with psycopg.connect(url, autocommit=True) as conn:
        create_schema(conn)
    migrate_url(url)


def create_template(server: Server) -> str:
    """Makes the template database on a server that has none, and returns its name."""
    prepare_template(server.create_database(TEMPLATE))
    return TEMPLATE


@contextmanager
def temporary_database(server: Server, template: str = "template1") -> Iterator[str]:
    """The URL of a database that is dropped at the end, with its sessions."""
    name = f"test_{os.getpid()}_{next(_numbers)}"
    url = server.create_database(name, template)
    try:
        yield url
    finally:
        if server.running:
            server.drop_database(name)


@contextmanager
def migrated_database(server: Server) -> Iterator[str]:
    """As `temporary_database`, with the sample schema, migrated, without rows; for a server without a template."""
    with temporary_database(server) as url:
        prepare_template(url)
        yield url
