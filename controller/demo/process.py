"""The command line as a separate process: a controller whose log is read as it is written, or a one-off command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, cast

import controller
from controller.demo.cleanup import end_with_us, has_ended, start
from controller.errors import BillingError

COMMAND: Final = (sys.executable, "-m", "controller")
WAIT_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.005
#: What a controller or libpq reads. A process started here gets only those variables that its caller names.
_PREFIXES: Final = ("BILLING_", "DATABASE_", "KUBERNETES_", "LOG_", "NODE_NAME", "NOTIFY_", "PG", "POD_", "WATCHDOG_")
#: No delay before the first cycle, and no port that two processes would contend for.
_SETTINGS: Final = {
    "BILLING_TAKEOVER_DELAY_SECONDS": "0",
    "BILLING_HTTP_ADDRESS": "none",
    "BILLING_PAGE_ADDRESS": "none",
    "BILLING_KUBERNETES": "off",
}


class ExpectationError(BillingError):
    """Something that should have happened did not. The logs of `processes` may tell why."""

    def __init__(self, message: str, *processes: ControllerProcess) -> None:
        super().__init__(message)
        self.processes = processes


@dataclass(frozen=True)
class LogLine:
    """One event of a controller's log, and when this process read it (monotonic seconds)."""

    event: str
    fields: dict[str, Any]
    read_at: float

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - a log line may hold any value
        return self.fields[key]


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, with `settings` instead of everything that a controller or libpq reads."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_PREFIXES)}
    package = str(Path(controller.__file__).resolve().parents[1])
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (package, kept.get("PYTHONPATH")))), **settings}


def run_command(*arguments: str, folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs a one-off command to its end, in `folder` and without a terminal."""
    command, null, variables = [*COMMAND, *arguments], subprocess.DEVNULL, clean_environment(settings)
    return subprocess.run(
        command, stdin=null, capture_output=True, text=True, cwd=folder, env=variables, timeout=60, check=False
    )


class ControllerProcess:
    """`containerstacks-billing run` on the database at `url`. It never outlives this process, even after `kill -9`.

    `launcher` is a command that becomes the controller, such as one that enters a network namespace. `settings` are
    environment variables.
    """

    def __init__(self, url: str, *launcher: str, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="csb-"))  # it holds no .env
        end_with_us(self.folder)
        socket_path = str(self.folder / "control.sock") if os.name == "posix" else "none"
        defaults = {**_SETTINGS, "LOG_FORMAT": "json", "DATABASE_URL": url, "BILLING_CONTROL_SOCKET": socket_path}
        self.environment = clean_environment(defaults | settings)
        self.log: list[LogLine] = []
        self.other_output: list[str] = []
        command = [*launcher, *COMMAND, "run"]
        self._process = start(command, stdout=subprocess.PIPE, cwd=self.folder, env=self.environment)
        self.pid = self._process.pid
        self.instance = f"{socket.gethostname()}-{self.pid}"  # its name in the log and in the status table
        end_with_us(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"log of {self.pid}", daemon=True)
        self._reader.start()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(
        self, event: str, *, after: LogLine | None = None, within: float = WAIT_SECONDS, **fields: object
    ) -> LogLine:
        """As `wait_until`, for an event with these fields."""
        wanted = fields.items()
        return self.wait_until(lambda line: line.event == event and wanted <= line.fields.items(), event, after, within)

    def wait_until(
        self, wanted: Callable[[LogLine], bool], what: str, after: LogLine | None = None, within: float = WAIT_SECONDS
    ) -> LogLine:
        """Blocks until the log has a wanted line, later than `after` if given, and returns the first.

        Raises:
            ExpectationError: the process ended first, or `within` seconds passed.
        """
        deadline = time.monotonic() + within
        while True:
            ended = not self._reader.is_alive()  # checked first, so the log is complete if it ended
            lines = self.log[self.log.index(after) + 1 if after else 0 :]
            if found := next(filter(wanted, lines), None):
                return found
            if ended or time.monotonic() > deadline:
                why = "it ended" if ended else f"not within {within:g} s"
                raise ExpectationError(f"{self.instance} logs {what}: {why}; its log: {self.tail()}", self)
            self._reader.join(LOOK_SECONDS)

    def events(self, *names: str) -> list[LogLine]:
        """The lines logged so far, under these names if any are given."""
        return [line for line in self.log if not names or line.event in names]

    def tail(self, lines: int = 25) -> str:
        """The end of the log, then of everything else that the process printed."""
        shown = [f"{line.event} {line.fields}" for line in self.log[-lines:]]
        return "\n".join([*shown, *self.other_output[-lines:]])

    def signal(self, number: signal.Signals) -> float:
        """Sends the signal (Ctrl-Break on Windows); returns the moment before (monotonic seconds)."""
        moment = time.monotonic()
        self._process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", number))
        return moment

    def kill(self) -> datetime:
        """`kill -9`; returns once the process has ended, with the moment before, by the wall clock."""
        moment = datetime.now(UTC)
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        return moment

    def wait(self, within: float = WAIT_SECONDS) -> int:
        """The exit status, once the process has ended and its log has been read. Raises: ExpectationError."""
        self._reader.join(within)
        if self._reader.is_alive():
            raise ExpectationError(f"{self.instance} ends: not within {within:g} s", self)
        return self._process.wait()

    def remove(self) -> None:
        """Kills the process if it runs, and leaves nothing behind."""
        self.kill()
        self._reader.join(WAIT_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> None:
        with cast(IO[bytes], self._process.stdout) as stream:
            for line in stream:
                read_at = time.monotonic()
                try:
                    fields = json.loads(line)
                    self.log.append(LogLine(fields.pop("event"), fields, read_at))
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.other_output.append(line.decode(errors="replace").rstrip())
        self._process.wait()
        has_ended(self.pid)
