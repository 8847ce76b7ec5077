"""Outlives the process that started others, then ends those that are left and removes their folder.

A program by itself, run by path: the standard library alone. Standard input carries a process id when one starts and
its negative when it has ended; the end of the input says that whoever started them is gone, even by `kill -9`.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress


def hold(folder: str, ending: str) -> None:
    running: set[int] = set()
    for line in sys.stdin:
        pid = int(line)
        if pid > 0:
            running.add(pid)
        else:
            running.discard(-pid)
    for pid in running:
        with suppress(OSError):  # it has ended by itself
            os.kill(pid, getattr(signal, ending, signal.SIGTERM))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    hold(sys.argv[1], sys.argv[2])
