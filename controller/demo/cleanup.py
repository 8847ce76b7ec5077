"""Ends the processes and removes the folders of this process once it is gone, even after `kill -9`.

A companion does the work: the end of its input tells it that its parent is gone. It runs this file by path with
`-I -S`, so this module imports the standard library alone.
"""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows
GRACE_SECONDS = 5.0


def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":  # noqa: ANN401 - Popen's
    """Starts a child without input, which Ctrl-C on the terminal doesn't reach."""
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(command, start_new_session=True, creationflags=GROUP, **options)


def end_with_us(pid: int) -> None:
    """Once this process is gone, the companion ends `pid` with SIGQUIT."""
    _tell(f"+{pid}")


def has_ended(pid: int) -> None:
    """Call this promptly: the system may give the process id to another process."""
    _tell(f"-{pid}")


def remove_with_us(folder: Path) -> None:
    """Once this process is gone, the companion removes the folder."""
    _tell(str(folder))


def _tell(line: str) -> None:
    with suppress(OSError):
        os.write(_companion(), f"{line}\n".encode())  # one write, so threads don't mix their lines


@cache
def _companion() -> int:
    """Starts the companion and returns the file that it reads."""
    command, here = [sys.executable, "-I", "-S", __file__], tempfile.gettempdir()
    process = start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=here)
    atexit.register(process.communicate)
    return process.stdin.fileno() if process.stdin else -1


def clean_up(lines: list[str]) -> None:
    """Does what `lines`, in the order in which `_tell` sent them, ask for."""
    newest = {line.lstrip("+-"): line for line in lines}
    pids = [int(line) for line in newest.values() if line.startswith("+")]
    for name in ("SIGQUIT", "SIGCONT"):  # a frozen process acts on its signals when it continues
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, getattr(signal, name, signal.SIGTERM))
    deadline = time.monotonic() + GRACE_SECONDS
    for pid in pids:
        with suppress(OSError):  # it is gone
            while time.monotonic() < deadline:
                os.kill(pid, 0)
                time.sleep(0.02)  # the system has no wait for another process's child
    for line in lines:
        if not line.startswith(("+", "-")):
            shutil.rmtree(line, ignore_errors=True)


if __name__ == "__main__":
    clean_up(sys.stdin.read().splitlines())
