"""An ephemeral PostgreSQL: an installed or the embedded one, in a temporary folder of its own."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from controller.demo.installation import (
    REMEDY,
    WINDOWS,
    Account,
    Installation,
    ServerError,
    copy_installation,
    find_installations,
)

__all__ = ["Account", "Installation", "Server", "ServerError", "StopMode", "find_installations"]

# Below every system's range of ephemeral ports. In that range a client that retries while the
# server restarts can be given the very port it calls, and then is connected to itself.
PORTS: Final = range(15000, 32000)
KEEPER: Final = Path(__file__).with_name("keeper.py")
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0

DEFAULT_OPTIONS: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}

StopMode = Literal["fast", "immediate"]


class Server:
    """One PostgreSQL of our own, on 127.0.0.1 and, except on Windows, a Unix socket in its folder.

    As a context manager it is started on entry, and on exit stopped and removed. A small companion
    process removes it also when this process is killed, `kill -9` included; only when both are
    killed at once does anything stay behind. Local connections are trusted without a password:
    it is for throw-away data.

    Args:
        installation: the programs to use; the first of `find_installations()` if not given.
        options: server settings on top of `DEFAULT_OPTIONS`.

    Raises:
        ServerError: no installation, or the server did not start; says what to do.
    """

    def __init__(
        self,
        installation: Installation | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        if installation is None:
            installation = next(iter(find_installations()), None)
        if installation is None:
            raise ServerError(f"no PostgreSQL found: {REMEDY}")
        self.installation = installation
        self.options: Mapping[str, str] = {**DEFAULT_OPTIONS, **(options or {})}
        self.port = 0
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._account = Account.unprivileged()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def folder(self) -> Path:
        """The temporary folder: data, log and socket. Raises: ServerError before `start()`."""
        if self._folder is None:
            raise ServerError("the ephemeral PostgreSQL has not been started")
        return self._folder

    @property
    def log_path(self) -> Path:
        return self.folder / "postgres.log"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises: ServerError when it does not run."""
        if self._process is None or not self.running:
            raise ServerError("the ephemeral PostgreSQL does not run")
        return self._process.pid

    def url(self, dbname: str = "postgres", user: str = "postgres", *, socket: bool = False) -> str:
        """A connection URL by TCP loopback, or by the Unix socket."""
        user, dbname = quote(user, safe=""), quote(dbname, safe="")
        if socket:
            host = quote(str(self.folder), safe="")
            return f"postgresql://{user}@/{dbname}?host={host}&port={self.port}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{dbname}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create the database, empty or a copy of `template`; its URL."""
        names = sql.Identifier(name), sql.Identifier(template or "template1")
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(sql.SQL("create database {} template {}").format(*names))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop the database if it exists, ending its sessions."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            conn.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start and wait until it takes connections; the first time, make the data folder.

        A start after `stop` finds its data and its port again. Raises: ServerError.
        """
        if self.running:
            return
        first = self._folder is None
        try:
            if first:
                self._prepare()
            self._launch()
        except BaseException:
            if first:
                self.remove()
            else:
                self.stop("immediate")
            raise

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop and wait for the exit, at most 20 s, then kill; the data stays until `remove`.

        `fast` ends sessions and writes a checkpoint; `immediate` is a crash.
        """
        process = self._process
        if process is None or os.getpid() != self._owner:
            return
        if process.poll() is None:
            self._signal(process.pid, mode)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(STOP_SECONDS)
        self._process = None
        self._tell_keeper(0)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again on the same port and data. Raises: ServerError."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop and leave nothing behind. Harmless when called twice."""
        if os.getpid() != self._owner:
            return  # a forked child: not its server
        atexit.unregister(self.remove)
        self.stop("immediate")
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            self._keeper.wait(STOP_SECONDS)
            self._keeper = None

    def _prepare(self) -> None:
        self._folder = self._account.make_folder()
        atexit.register(self.remove)
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            start_new_session=not WINDOWS,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        if not self._account.reaches(Path(self.installation.program("postgres"))):
            self.installation = copy_installation(self.installation, self._folder / "programs")
            self._account.own(self._folder / "programs")
        self._make_data(self._folder / "data")

    def _make_data(self, data: Path) -> None:
        """Fill the data folder, which is not there yet. Raises: ServerError."""
        status, text = self._account.output(
            self.installation.program("initdb"),
            f"--pgdata={data}",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        )
        if status != 0:
            raise ServerError(f"initdb of {self.installation.title} failed: {_tail(text)}")
        settings = {"listen_addresses": "127.0.0.1", **self.options}
        settings["unix_socket_directories"] = "" if WINDOWS else str(self.folder)
        with (data / "postgresql.conf").open("a", encoding="utf-8") as file:
            for key, value in settings.items():
                quoted = value.replace("'", "''")
                file.write(f"{key} = '{quoted}'\n")

    def _launch(self) -> None:
        start = self.log_path.stat().st_size if self.log_path.exists() else 0
        for port in [self.port] if self.port else islice(_free_ports(), 3):
            if self._launched_on(port):
                self.port = port
                return
            if self.running:
                break  # slow or stuck, and no other port would help
        text = self.log_path.read_bytes()[start:].decode(errors="replace")
        raise ServerError(f"{self.installation.title} did not start: {_tail(text)}")

    def _launched_on(self, port: int) -> bool:
        data = self.folder / "data"
        with self.log_path.open("ab") as log:
            process = self._account.popen(
                [self.installation.program("postgres"), "-D", str(data), "-p", str(port)],
                stdout=log.fileno(),
            )
        self._process = process
        self._tell_keeper(process.pid)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
                return False
            with contextlib.suppress(OSError):
                words = (data / "postmaster.pid").read_text().split("\n")
                # Line 1 is the process, line 8 its state; a crash may have left an older file.
                if words[0] == str(process.pid) and words[7:8] and words[7].strip() == "ready":
                    return True
        return False

    def _signal(self, pid: int, mode: StopMode) -> None:
        if sys.platform == "win32":
            name = "INT" if mode == "fast" else "QUIT"
            self._account.output(self.installation.program("pg_ctl"), "kill", name, str(pid))
        else:
            os.kill(pid, signal.SIGINT if mode == "fast" else signal.SIGQUIT)
            os.kill(pid, signal.SIGCONT)  # a test may have frozen it

    def _tell_keeper(self, pid: int) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self._keeper.stdin.write(f"{pid}\n".encode())
                self._keeper.stdin.flush()


def _free_ports() -> Iterator[int]:
    for port in random.SystemRandom().sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-3:]) or "it said nothing"
