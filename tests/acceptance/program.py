"""The controller as a program with arguments, an environment and an exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typer.testing import CliRunner

from controller.cli import app
from controller.demo.process import COMMAND, clean_environment
from controller.errors import BillingError
from controller.lifecycle.signals import Signals

ROOT: Final = Path(__file__).parents[2]
SECONDS: Final = 60.0


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:  # noqa: ANN401 - JSON of any shape
        """Standard output, which must be one JSON text on one line."""
        assert len(self.out.splitlines()) == 1, self.out
        return json.loads(self.out, parse_float=_no_float, parse_constant=_no_float)

    def failed_with(self, status: int) -> str:
        """Asserts this exit status, one line on standard error and no output; returns the line."""
        assert (self.status, self.out) == (status, ""), self
        (line,) = self.err.splitlines()
        assert line.startswith("error: ")
        return line


class NoSignals(Signals):
    """Signals for a command in this process: none arrives, and no handler is installed."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def wait(self, timeout_seconds: float | None) -> list[signal.Signals]:
        """Blocks until `wake` is called, or the time is over."""
        self._woken.wait(timeout_seconds)
        self._woken.clear()
        return []

    def wake(self) -> None:
        """Ends a `wait`."""
        self._woken.set()

    def restore(self) -> None:
        """Does nothing: no handler was installed."""


def run_here(url: str, *arguments: str) -> Done:
    """Runs a command in this process, which is faster than another one, on the database of this URL."""
    settings = {"DATABASE_URL": url, "BILLING_TAKEOVER_DELAY_SECONDS": "0"}
    done = CliRunner().invoke(app, [*arguments], env=settings, obj=NoSignals())
    if done.exception is not None and not isinstance(done.exception, SystemExit | BillingError):
        raise done.exception
    refused = f"error: {done.exception}\n" if isinstance(done.exception, BillingError) else ""
    return Done(done.exit_code, done.stdout, done.stderr + refused)


@dataclass(frozen=True)
class Program:
    """Starts `words` with arguments, in `folder`, with `settings` and no other settings."""

    folder: Path
    settings: dict[str, str]
    words: tuple[str, ...] = COMMAND

    @property
    def environment(self) -> dict[str, str]:
        return clean_environment({"BILLING_TAKEOVER_DELAY_SECONDS": "0", **self.settings})

    def __call__(self, *arguments: str, **settings: str) -> Done:
        """Runs a command to its end without a terminal."""
        done = subprocess.run(
            [*self.words, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **settings},
            timeout=SECONDS,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)


def _no_float(text: str) -> float:
    """Amounts must be text, because sums of floats are not exact. Durations may be floats."""
    if text in {"NaN", "Infinity", "-Infinity"}:
        raise ValueError(f"{text} is no JSON")
    return float(text)
