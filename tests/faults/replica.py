"""A controller as a process of its own: the real command line, its log read as it is written, signals at will."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

WAIT_SECONDS: Final = 30.0

#: Bounds as low as they may be in order, so that a test of them takes seconds.
LOW_BOUNDS: Final[Mapping[str, str]] = {
    "BILLING_PING_INTERVAL_SECONDS": "0.3",
    "BILLING_LEADER_DEADLINE_SECONDS": "1",
    "BILLING_SESSION_TIMEOUT_SECONDS": "2",
}
#: An organization a batch, one after the other, and a cycle whenever there is something to do.
BUSY: Final[Mapping[str, str]] = {
    "BILLING_WORKERS": "1",
    "BILLING_BATCH_SIZE": "3",
    "BILLING_INTERVAL_MINUTES": "0.003",
}
_DEFAULTS: Final[Mapping[str, str]] = {
    "BILLING_TAKEOVER_DELAY_SECONDS": "0",
    "BILLING_HTTP_ADDRESS": "none",
    "BILLING_KUBERNETES": "off",
    "LOG_FORMAT": "json",
}


@dataclass(frozen=True)
class Logged:
    """One line of the log, and when it was read here (monotonic seconds)."""

    event: str
    fields: dict[str, Any]
    read_at: float

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401 - a log line holds anything
        return self.fields[key]


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's environment without anything that a controller or libpq would read, plus `settings`."""
    foreign = ("PG", "BILLING_", "DATABASE_", "LOG_", "POD_", "NODE_NAME", "KUBERNETES_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {**kept, **settings}


def command(*words: str) -> list[str]:
    """The controller's command line, as this Python runs it."""
    return [sys.executable, "-m", "controller", *words]


class Replica:
    """`containerstacks-billing run`, started at once.

    Args:
        url: of the database.
        launcher: a command that becomes the controller, such as one that enters a network namespace.
        settings: of its environment.
    """

    def __init__(self, url: str, *launcher: str, **settings: str) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="csb-"))
        self.control_socket = self._folder / "control.sock"
        self.environment = clean_environment(
            **{
                **_DEFAULTS,
                "DATABASE_URL": url,
                "BILLING_CONTROL_SOCKET": str(self.control_socket),
                "PYTHONPATH": str(Path(__file__).parents[2]),
                **settings,
            }
        )
        self.log: list[Logged] = []
        self.noise: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            [*launcher, *command("run")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            env=self.environment,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def instance(self) -> str:
        """`hostname-pid`, as the log and the status table call it."""
        return f"{os.uname().nodename}-{self.pid}"

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def wait_for(
        self, event: str, *, after: Logged | None = None, within: float = WAIT_SECONDS, **fields: object
    ) -> Logged:
        """The first line of this event, with these fields, after another line; blocks until there is one."""
        return self.wait_until(
            lambda line: line.event == event and fields.items() <= line.fields.items(), event, after, within
        )

    def wait_until(
        self, wanted: Callable[[Logged], bool], what: str, after: Logged | None = None, within: float = WAIT_SECONDS
    ) -> Logged:
        """As `wait_for`, for any condition."""
        deadline = time.monotonic() + within
        with self._news:
            while True:
                start = self.log.index(after) + 1 if after else 0
                if found := next((line for line in self.log[start:] if wanted(line)), None):
                    return found
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    why = "it ended" if self._ended else f"not within {within:g} s"
                    raise AssertionError(f"{self.instance}: no {what}: {why}; its log:\n{self.tail()}")
                self._news.wait(remaining)

    def count_for(self, seconds: float, *events: str) -> int:
        """How often it says one of these within so many seconds from now; waits them out."""
        deadline = time.monotonic() + seconds
        with self._news:
            start = len(self.log)
            while not self._ended and (remaining := deadline - time.monotonic()) > 0:
                self._news.wait(remaining)
            return sum(line.event in events for line in self.log[start:])

    def events(self, *names: str) -> list[Logged]:
        """What has been logged under these names, or everything."""
        with self._news:
            return [line for line in self.log if not names or line.event in names]

    def tail(self, lines: int = 25) -> str:
        """The end of its log, for people."""
        shown = [f"{line.event} {line.fields}" for line in self.log[-lines:]]
        return "\n".join([*shown, *self.noise[-lines:]])

    def signal(self, number: signal.Signals) -> float:
        """Sends it; gives the moment (monotonic seconds)."""
        moment = time.monotonic()
        self._process.send_signal(number)
        return moment

    def kill(self) -> datetime:
        """`kill -9`, and waits for the end; the moment before, by the wall clock that the server shares."""
        moment = datetime.now(UTC)
        self._process.kill()
        self._process.wait(WAIT_SECONDS)
        return moment

    def freeze(self) -> datetime:
        """SIGSTOP: not an instruction more."""
        moment = datetime.now(UTC)
        self._process.send_signal(signal.SIGSTOP)
        return moment

    def thaw(self) -> None:
        """SIGCONT."""
        self._process.send_signal(signal.SIGCONT)

    def wait(self, within: float = WAIT_SECONDS) -> int:
        """Its exit status, once it has ended and its log is read."""
        try:
            status = self._process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.instance} has not ended within {within:g} s:\n{self.tail()}") from None
        self._reader.join(WAIT_SECONDS)
        return status

    def terminate(self, within: float = WAIT_SECONDS) -> int:
        """SIGTERM; its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(within)

    def drain(self, *arguments: str) -> subprocess.Popen[str]:
        """The `drain` command for this replica, as a preStop hook runs it."""
        return subprocess.Popen(
            command("drain", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self.environment,
            text=True,
        )

    def remove(self) -> None:
        """Ends it, however it is, and leaves nothing behind."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait(WAIT_SECONDS)
        self._reader.join(WAIT_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, stream: IO[str] | None) -> None:
        assert stream is not None
        for line in stream:
            read_at = time.monotonic()
            try:
                fields = json.loads(line)
                logged = Logged(fields.pop("event"), fields, read_at)
            except (ValueError, KeyError, TypeError, AttributeError):
                self.noise.append(line.rstrip())
                continue
            with self._news:
                self.log.append(logged)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()
