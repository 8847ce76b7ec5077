"""`make run`: one controller in the foreground until Ctrl-C, on DATABASE_URL or on a sample of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import psycopg

from controller import settings
from controller.demo import sample
from controller.demo.installation import WINDOWS
from controller.demo.processes import COMMAND, Leash, own_group, terminate, with_package
from controller.demo.server import Server
from controller.demo.teller import Teller

#: What differs on the sample from a controller that bills for real, unless it is set: no other billing to wait for, and
#: a cycle every minute, so that there is something to see.
SAMPLE_SETTINGS: Final = {
    "takeover_delay_seconds": ("BILLING_TAKEOVER_DELAY_SECONDS", "0"),
    "interval_minutes": ("BILLING_INTERVAL_MINUTES", "1"),
}
POLL_SECONDS: Final = 0.5
PATIENCE: Final = 3
CHECKOUT: Final = Path(__file__).resolve().parents[2]


def keep_running() -> int:
    """Migrates, and runs a controller with logs for people until Ctrl-C or SIGTERM, which drain it.

    Returns:
        The controller's exit status, 0 after a drain; that of `migrate` when it fails.

    Raises:
        SettingsError: a variable is wrong.
        ServerError: there is no PostgreSQL for a sample.
    """
    teller = Teller()
    loaded = settings.load()
    chosen = {} if "log_format" in loaded.model_fields_set else {"LOG_FORMAT": "console"}
    with _interrupted_by_sigterm():
        try:
            if loaded.database_url is not None or loaded.database_url_file is not None:
                teller.plain("One controller on the database of DATABASE_URL, until Ctrl-C.", "bold")
                return _migrate_and_run(teller, {**os.environ, **chosen})
            unset = SAMPLE_SETTINGS.keys() - loaded.model_fields_set
            chosen |= dict(SAMPLE_SETTINGS[name] for name in unset)
            with Server() as server:
                teller.plain(f"One controller on sample data, on {server.installation.title}, until Ctrl-C.", "bold")
                url = server.create_database("containerstacks")
                with psycopg.connect(url, autocommit=True) as connection:
                    sample.create_schema(connection)
                    sample.create_data(connection)
                # none of the variables that would lead elsewhere
                kept = {name: text for name, text in os.environ.items() if not name.startswith(("DATABASE_", "PG"))}
                return _migrate_and_run(teller, {**kept, **chosen, "DATABASE_URL": url}, server)
        except KeyboardInterrupt:  # before there was a controller
            return 0


def commands() -> list[tuple[str, str]]:
    """What to try next, and what it is; as it is typed here."""
    if (CHECKOUT / "Makefile").is_file() and (CHECKOUT / "docs").is_dir():
        return [
            ("make run", "keep a controller running on sample data, and look at it"),
            ("make test", "all tests, on two versions of PostgreSQL"),
            ("docs/", "how leadership, money and the drain work"),
        ]
    name = command_name()
    return [
        (f"{name} demo run", "keep a controller running on sample data, and look at it"),
        (f"{name} --help", "all commands, and the settings that matter"),
    ]


def command_name() -> str:
    """The program as this process was started with it."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{Path(sys.executable).name} -m controller"
    found = shutil.which(program.name)
    if found and Path(found).resolve() == program.resolve():
        return program.name
    try:
        return shlex.quote(str(program.resolve().relative_to(Path.cwd())))
    except ValueError:
        return shlex.quote(str(program))


def _migrate_and_run(teller: Teller, variables: Mapping[str, str], sample_server: Server | None = None) -> int:
    variables = with_package(variables)
    migrated = subprocess.run([*COMMAND, "migrate"], env=variables, stdin=subprocess.DEVNULL, check=False)
    if migrated.returncode != 0:
        return migrated.returncode
    _say_how_to_look(teller, variables, sample_server)
    with Leash("SIGTERM") as leash:
        if sample_server is not None and "BILLING_CONTROL_SOCKET" not in variables:
            variables["BILLING_CONTROL_SOCKET"] = "none" if WINDOWS else str(leash.folder / "control.sock")
        process = subprocess.Popen([*COMMAND, "run"], env=variables, stdin=subprocess.DEVNULL, **own_group())
        leash.hold(process.pid)
        status = _until_ended(process)
        leash.release(process.pid)
    return status


def _say_how_to_look(teller: Teller, variables: Mapping[str, str], sample_server: Server | None) -> None:
    teller.plain("In another terminal:")
    psql = shutil.which("psql")
    if sample_server is not None:
        teller.plain(f"  export DATABASE_URL={variables['DATABASE_URL']}")
        psql = psql or shutil.which(sample_server.installation.program("psql"))
    for command in ("status", "history", "audit"):
        teller.plain(f"  {command_name()} {command}")
    if psql and "DATABASE_URL" in variables:
        name = "psql" if psql == shutil.which("psql") else shlex.quote(psql)
        teller.plain(f'  {name} "$DATABASE_URL" -c "table billing_daemon_status"')
    teller.plain()


def _until_ended(process: subprocess.Popen[bytes]) -> int:
    """Waits for its exit status. Ctrl-C is handed on: the first drains, the second hurries, the third kills."""
    interrupts = 0
    while True:
        try:
            return process.wait(POLL_SECONDS)  # Windows can't interrupt a wait without an end
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts < PATIENCE:
                terminate(process)
            else:
                process.kill()


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
