"""Freezes, thaws and drains a `ControllerProcess`, and reads its log."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from controller.demo.process import COMMAND, WAIT_SECONDS, ControllerProcess, ExpectationError

#: The fixture `start`: `start(url, *launcher, SETTING="value", ...)`.
StartReplica = Callable[..., ControllerProcess]

#: The lowest permitted bounds, so that a test of them takes only seconds.
LOW_BOUNDS: Final[Mapping[str, str]] = {
    "BILLING_PING_INTERVAL_SECONDS": "0.3",
    "BILLING_LEADER_DEADLINE_SECONDS": "1.4",
    "BILLING_SESSION_TIMEOUT_SECONDS": "2.5",
}
#: One batch at a time, of one organization each, and a cycle whenever something is due.
BUSY: Final[Mapping[str, str]] = {
    "BILLING_WORKERS": "1",
    "BILLING_BATCH_SIZE": "3",
    "BILLING_INTERVAL_MINUTES": "0.003",
}


def freeze(process: ControllerProcess) -> datetime:
    """Sends SIGSTOP; returns the moment before, by the wall clock that the server shares."""
    moment = datetime.now(UTC)
    process.signal(signal.SIGSTOP)
    return moment


def thaw(process: ControllerProcess) -> None:
    """Sends SIGCONT."""
    process.signal(signal.SIGCONT)


def terminate(process: ControllerProcess, within: float = WAIT_SECONDS) -> int:
    """Sends SIGTERM, which asks for a drain; returns the exit status."""
    process.signal(signal.SIGTERM)
    return process.wait(within)


def count_for(process: ControllerProcess, seconds: float, *events: str) -> int:
    """How many of these events the process logs in the next `seconds`. Waits that long, or until the process ends."""
    before = len(process.events())
    with suppress(ExpectationError):  # the process still runs
        process.wait(seconds)
    return sum(line.event in events for line in process.events()[before:])


def drain(process: ControllerProcess, *arguments: str) -> subprocess.Popen[str]:
    """Starts the `drain` command for this process, as a preStop hook does."""
    return subprocess.Popen(
        [*COMMAND, "drain", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=process.folder,
        env=process.environment,
        text=True,
    )
