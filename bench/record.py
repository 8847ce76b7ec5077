"""Keeps the values of a long measurement in a file, so that an interrupted one continues where it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

Values = tuple[float, ...]


class Record:
    """One JSON line for each group of runs, written as soon as the group has ended.

    Args:
        file: created with the first group; None keeps nothing.
        source: what was measured, such as the server. Other sources' lines in the same file are not read.
    """

    def __init__(self, file: Path | None, source: str) -> None:
        self._file = file
        self._source = source

    def read(self, kind: str) -> list[Values]:
        """The values of all runs of this kind so far."""
        if self._file is None or not self._file.exists():
            return []
        lines = [json.loads(each) for each in self._file.read_text("utf-8").splitlines()]
        return [tuple(run) for source, found, runs in lines if (source, found) == (self._source, kind) for run in runs]

    def add(self, kind: str, runs: Sequence[Values]) -> None:
        """Appends a group."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps([self._source, kind, runs]) + "\n")
