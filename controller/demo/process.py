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
from controller.demo.cleanup import end_with_us, has_ended, remove_with_us, start
from controller.errors import BillingError

COMMAND: Final = (sys.executable, "-m", "controller")
WAIT_SECONDS: Final = 30.0
#: What a controller or libpq reads. A process started here gets only those variables that its caller names.
_PREFIXES: Final = ("BILLING_", "DATABASE_", "KUBERNETES_", "LOG_", "NODE_NAME", "NOTIFY_", "PG", "POD_")
#: No delay before the first cycle, no HTTP port that two processes would contend for, and a log that can be parsed.
_SETTINGS: Final = {"TAKEOVER_DELAY_SECONDS": "0", "HTTP_ADDRESS": "none", "KUBERNETES": "off"}


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
    """`containerstacks-billing run`, started at once. It never outlives this process, even after `kill -9`.

    Args:
        url: DATABASE_URL.
        launcher: a command that becomes the controller, such as one that enters a network namespace.
        settings: more environment variables.
    """

    def __init__(self, url: str, *launcher: str, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="csb-"))  # it holds no .env
        remove_with_us(self.folder)
        billing = {**_SETTINGS, "CONTROL_SOCKET": str(self.folder / "control.sock") if os.name == "posix" else "none"}
        defaults = {f"BILLING_{name}": text for name, text in billing.items()} | {"LOG_FORMAT": "json"}
        self.environment = clean_environment({**defaults, "DATABASE_URL": url, **settings})
        self.log: list[LogLine] = []
        self.other_output: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        command = [*launcher, *COMMAND, "run"]
        self._process = start(command, stdout=subprocess.PIPE, cwd=self.folder, env=self.environment)
        end_with_us(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"log of {self.pid}", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def instance(self) -> str:
        """`hostname-pid`, its name in the log and in the status table."""
        return f"{socket.gethostname()}-{self.pid}"

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
        """Blocks until the log has such a line, after another one if given, and returns the first.

        Raises:
            ExpectationError: the process ended first, or `within` seconds passed.
        """
        deadline = time.monotonic() + within
        with self._news:
            while True:
                begin = self.log.index(after) + 1 if after else 0
                if found := next((line for line in self.log[begin:] if wanted(line)), None):
                    return found
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = "it ended" if self._ended else f"not within {within:g} s"
                    raise ExpectationError(f"{self.instance} logs {what}: {why}; its log: {self.tail()}", self)
                self._news.wait(remaining)

    def events(self, *names: str) -> list[LogLine]:
        """The lines logged so far, under these names if any are given."""
        with self._news:
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
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise ExpectationError(f"{self.instance} ends: not within {within:g} s", self) from None
        self._reader.join(WAIT_SECONDS)
        return status

    def terminate(self, within: float = WAIT_SECONDS) -> int:
        """Sends SIGTERM, which asks for a drain; returns the exit status. Raises: ExpectationError."""
        self.signal(signal.SIGTERM)
        return self.wait(within)

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
                    logged = LogLine(fields.pop("event"), fields, read_at)
                except (ValueError, KeyError, TypeError, AttributeError):
                    self.other_output.append(line.decode(errors="replace").rstrip())
                    continue
                with self._news:
                    self.log.append(logged)
                    self._news.notify_all()
        self._process.wait()
        has_ended(self.pid)
        with self._news:
            self._ended = True
            self._news.notify_all()
