"""Runs commands in the test's process: a tenth of the time that a new process takes."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
import structlog

from controller import cli
from controller.lifecycle.signals import Signals


class Console:
    """Runs commands in this process, each with its own sessions, and returns what they print."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.used: set[str] = set()

    def run(self, *words: str) -> tuple[int, str, str]:
        """Returns the exit status, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["containerstacks-billing", *words])
        self.used.add(words[0])
        signals, printed, said = Signals(), io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(printed), redirect_stderr(said):
                status = cli.main(signals)
        finally:
            signals.restore()
            signals._reader.close()
            signals._writer.close()
            structlog.reset_defaults()
        return status, printed.getvalue(), said.getvalue()

    def __call__(self, *words: str, status: int = 0) -> str:
        ended, printed, said = self.run(*words)
        assert ended == status, f"{words}: {printed}{said}"
        return printed

    def json(self, *words: str, status: int = 0) -> Any:  # noqa: ANN401 - any JSON
        return json.loads(self(*words, "--json", status=status))
