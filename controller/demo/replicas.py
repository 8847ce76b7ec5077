"""Controllers as processes of their own, and what they say in their logs."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from controller.demo.installation import WINDOWS
from controller.demo.processes import COMMAND, STOP_SECONDS, Leash, clean_environment, own_group, terminate
from controller.errors import BillingError

TAIL_LINES: Final = 12
LOOK_SECONDS: Final = 0.01

T = TypeVar("T")


class ExpectationError(BillingError):
    """Something did not happen as it should have; `replicas` are those whose logs may tell why."""

    def __init__(self, message: str, *replicas: Replica) -> None:
        super().__init__(message)
        self.replicas = replicas


def expect(so: bool, otherwise: str, *replicas: Replica) -> None:  # noqa: FBT001 - a condition
    """Raises ExpectationError, which says what should be and what is, unless it is so."""
    if not so:
        raise ExpectationError(otherwise, *replicas)


@dataclass(frozen=True)
class Entry:
    """A line of a replica's log; `event` is empty where the line was no event."""

    replica: Replica
    event: str
    time: datetime
    fields: Mapping[str, Any] = field(default_factory=dict)


class Replica:
    """One `containerstacks-billing run`."""

    def __init__(self, name: str, process: subprocess.Popen[str], listen: Callable[[Replica], None]) -> None:
        self.name = name
        self.process = process
        self.reader = threading.Thread(target=listen, args=(self,), name=f"log of {name}", daemon=True)
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.told_to_end = False

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def ended_unasked(self) -> bool:
        return not self.told_to_end and self.process.poll() is not None

    def kill(self) -> datetime:
        """As `kill -9` does; the moment before it."""
        self.told_to_end = True
        moment = datetime.now(UTC)
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        return moment

    def terminate(self) -> datetime:
        """Asks for a drain, by SIGTERM; the moment before it."""
        self.told_to_end = True
        moment = datetime.now(UTC)
        terminate(self.process)
        return moment

    def wait_until_ended(self) -> int:
        """Its exit status. Raises: ExpectationError when it goes on."""
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ExpectationError(
                f"{self.name} was to end on SIGTERM, and still runs {STOP_SECONDS:.0f} s later", self
            ) from None


class Troupe:
    """The replicas of a demo, and their logs in the order of arrival. On exit it ends what is left of them."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._leash = Leash("SIGKILL")
        self._news = threading.Condition()
        self._replicas: list[Replica] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for replica in self._replicas:
            replica.told_to_end = True
            replica.process.kill()
            replica.process.wait(STOP_SECONDS)
            replica.reader.join(STOP_SECONDS)
        self._leash.__exit__(kind, error, trace)

    def start(self, name: str, settings: Mapping[str, str]) -> Replica:
        """Starts a controller with these settings alone."""
        socket = "none" if WINDOWS else str(self._leash.folder / f"{name}.sock")
        process = subprocess.Popen(
            [*COMMAND, "run"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._leash.folder,  # no .env here
            env=clean_environment({"BILLING_CONTROL_SOCKET": socket, "LOG_FORMAT": "json", **settings}),
            encoding="utf-8",
            errors="replace",
            **own_group(),
        )
        self._leash.hold(process.pid)
        replica = Replica(name, process, self._listen)
        self._replicas.append(replica)
        replica.reader.start()
        return replica

    def run(self, *arguments: str, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """A one-off command of the command line, as a person gives it."""
        try:
            return subprocess.run(
                [*COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self._leash.folder,
                env=clean_environment(settings),
                encoding="utf-8",
                errors="replace",
                timeout=STOP_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ExpectationError(f"`{' '.join(arguments)}` did not end within {STOP_SECONDS:.0f} s") from None

    def heard(self, event: str, *, of: Replica | None = None, after: datetime | None = None) -> Entry | None:
        """The first such line."""
        with self._news:
            return next(
                (
                    entry
                    for entry in self.entries
                    if entry.event == event
                    and (of is None or entry.replica is of)
                    and (after is None or entry.time > after)
                ),
                None,
            )

    def until(self, look: Callable[[], T | None], seconds: float, expected: str) -> T:
        """Looks whenever a line arrives, and often besides, until something is found; gives that.

        Raises:
            ExpectationError: not found in time, or a replica has ended that should not.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            if gone := [replica for replica in self._replicas if replica.ended_unasked]:
                gone[0].reader.join(STOP_SECONDS)
                raise ExpectationError(
                    f"{expected}; but {gone[0].name} ended by itself with status {gone[0].process.returncode}", gone[0]
                )
            if time.monotonic() > deadline:
                running = [replica for replica in self._replicas if replica.process.poll() is None]
                raise ExpectationError(f"{expected}; not so within {seconds:.0f} s", *running)
            with self._news:
                self._news.wait(LOOK_SECONDS)

    def _listen(self, replica: Replica) -> None:
        if replica.process.stdout is None:
            return
        with replica.process.stdout as lines:
            for line in lines:
                entry = _entry(replica, line)
                with self._news:
                    replica.tail.append(line.rstrip())
                    self.entries.append(entry)
                    self._news.notify_all()
        replica.process.wait()
        self._leash.release(replica.pid)
        with self._news:
            self._news.notify_all()


def _entry(replica: Replica, line: str) -> Entry:
    try:
        fields = json.loads(line)
        return Entry(replica, str(fields["event"]), datetime.fromisoformat(fields["time"]), fields)
    except (ValueError, KeyError, TypeError):
        return Entry(replica, "", datetime.now(UTC))
