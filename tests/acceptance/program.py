"""The controller as a program with arguments, an environment and an exit status."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from controller.demo.process import COMMAND, clean_environment
from tests.support.console import Console

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


def run_here(url: str, *arguments: str) -> Done:
    """Runs a command in this process on the database of this URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        patch.setenv("BILLING_TAKEOVER_DELAY_SECONDS", "0")
        return Done(*Console(patch).run(*arguments))


class QuickProgram(Program):
    """Runs commands in the test's process, for tests of what a command says. Starting Python takes longer than most."""

    def __call__(self, *arguments: str, **settings: str) -> Done:
        with pytest.MonkeyPatch.context() as patch:
            for name in [*os.environ]:
                patch.delenv(name)
            for name, value in {**self.environment, **settings}.items():
                patch.setenv(name, value)
            patch.chdir(self.folder)
            done = Done(*Console(patch).run(*arguments))
        assert "Traceback" not in done.err, done.err
        return done


def _no_float(text: str) -> float:
    """Amounts must be text, because sums of floats are not exact. Durations may be floats."""
    if text in {"NaN", "Infinity", "-Infinity"}:
        raise ValueError(f"{text} isn't JSON")
    return float(text)
