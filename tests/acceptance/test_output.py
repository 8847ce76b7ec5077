"""Results reach a real pipe, a real terminal, a closed stream and a full disk."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.program import SECONDS, Program
from tests.support.console import Console

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


def test_answers_fit_80_columns_and_hold_no_escape_sequence(
    program: Program, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Customers choose names and labels."""
    program("bill")
    with psycopg.connect(database, autocommit=True) as conn:
        conn.execute("update organizations set name = %s", ["\x1b[31mred"])
        conn.execute("update vps_instances set label = %s || substr(id::text, 1, 4)", ["\x1b[2Jvps"])
        (slug, label), *_ = conn.execute(
            "select o.slug, i.label from billing_debts d join organizations o on o.id = d.organization_id"
            " join vps_instances i on i.organization_id = o.id"
        ).fetchall()
    monkeypatch.setenv("DATABASE_URL", database)
    console, hostile = Console(monkeypatch), 0
    for status, *arguments in (
        (0, "status"), (1, "debts"), (1, "debts", slug), (0, "debts", "--lost"), (0, "explain", slug),
        (0, "explain", label), (0, "statement", slug, "--from", "2020-01-01"), (0, "runway"), (0, "history", "1"),
    ):  # fmt: skip
        lines = console(*arguments, status=status).splitlines()
        assert max(map(len, lines), default=0) <= 80, arguments
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", "".join(lines)), arguments
        hostile += "\\x1b[" in "".join(lines)
    assert hostile >= 4, "commands show these names"


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
