"""Writes the table and a description of the machine into a document."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.support.timings import Timings

BEGIN: Final = "<!-- fault matrix: begin; written by `make faults FAULT_REPORT=bench/results/faults.md` -->"
END: Final = "<!-- fault matrix: end -->"


def write_report(path: Path, timings: Timings) -> None:
    """Replaces the text between the document's two markers, or makes a new document.

    Raises:
        ValueError: the document lacks the markers.
    """
    document = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}{END}\n"
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(
        f"{before}{begin}\n\n{_machine(timings)}\n\n{timings.proof}\n\n{_table(timings)}\n\n{end}{after}",
        encoding="utf-8",
    )


def _machine(timings: Timings) -> str:
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        system = platform.system()
    servers = ", ".join(timings.servers)
    return (
        f"{datetime.now(UTC):%d %B %Y}, {os.cpu_count()} cores, {system} ({platform.machine()}, kernel"
        f" {platform.release()}), Python {platform.python_version()}, PostgreSQL {servers}."
    )


def _table(timings: Timings) -> str:
    headings, *rows = timings.rows
    rule = ["---", *("---:" for _ in headings[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rule, *rows))
