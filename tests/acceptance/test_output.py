"""Results reach a real pipe, a real terminal, a closed stream and a full disk."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.program import SECONDS, Program

FULL = Path("/dev/full")


def test_history_fits_a_terminal_of_80_columns_and_holds_no_escape_sequence(program: Program, database: str) -> None:
    program("bill")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("update billing_runs set error = %s", ["[/b] \x1b[31mred " + "long " * 30])
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*program.words, "history"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=program.folder,
        env={**program.environment, "COLUMNS": "80"},
    ):
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the other end has closed
            pass
    os.close(ours)
    lines = shown.decode().replace("\r\n", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    assert "".join(" ".join(lines).split()).count("[/b]\\x1b[31mredlong") == 1


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_streams_that_are_full_or_closed_end_in_one_line(program: Program) -> None:
    full = "can't write to standard output: No space left on device"
    for line, status, error in (
        ("status >/dev/full", 1, f"error: {full}\n"),
        ("--help >/dev/full", 1, "error: [Errno 28] No space left on device\n"),
        ("status >&-", 1, "error: can't write to standard output: it is closed\n"),
        ("status >&- 2>&-", 1, ""),
        ("migrate 2>&-", 0, ""),
    ):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {line}', "sh", *program.words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=program.folder,
            env=program.environment,
            timeout=SECONDS,
            check=False,
        )
        assert (done.returncode, done.stderr) == (status, error), line
