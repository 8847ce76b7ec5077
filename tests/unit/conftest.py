"""Fixtures of several unit tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.lifecycle.signals import Signals


@pytest.fixture
def signals() -> Iterator[Signals]:
    made = Signals()
    yield made
    made.restore()
    made._reader.close()
    made._writer.close()


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Removes this machine's settings, and changes to a folder without a `.env`."""
    for name in list(os.environ):
        if name.startswith(("PG", "BILLING_", "DATABASE_", "LOG_", "POD_", "NODE_", "NOTIFY_", "WATCHDOG_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
