"""Ends the processes and removes the folders of this process once it is gone, even after `kill -9`.

A companion does the work: the end of its input tells it that its parent is gone. It runs this file by path with
`-I -S`, so this module imports only the standard library.
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

GRACE_SECONDS = 5.0
_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # on Windows


def start(command: list[str], **options: Any) -> "subprocess.Popen[bytes]":  # noqa: ANN401 - Popen's
    """Starts a child without input, which Ctrl-C on the terminal doesn't reach."""
    options = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **options}
    return subprocess.Popen(command, start_new_session=True, creationflags=_GROUP, **options)


def end_with_us(child: int | Path) -> None:
    """Registers a process to end, or a folder to remove, once this process is gone."""
    with suppress(OSError):
        os.write(_companion(), f"{child}\n".encode())  # one write, so threads don't mix their lines


def has_ended(pid: int) -> None:
    """Forgets a process. Call this promptly, because the system may give its id to another process."""
    end_with_us(-pid)


@cache
def _companion() -> int:
    """Starts the companion and returns the file that it reads."""
    command, here = [sys.executable, "-I", "-S", __file__], tempfile.gettempdir()
    process = start(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd=here)
    atexit.register(process.communicate)
    return process.stdin.fileno() if process.stdin else -1


def clean_up(lines: list[str]) -> None:
    """Ends the processes and removes the folders of `lines`. A negative process id says that the process has ended."""
    newest = {line.lstrip("-"): line for line in lines}
    pids = [int(line) for line in newest.values() if line.isdecimal()]
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
            # a shell starts its background jobs with SIGQUIT ignored, and their children inherit that
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    for folder in filter(os.path.isabs, lines):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    clean_up(sys.stdin.read().splitlines())
