"""Outlives the process that made an ephemeral server, then ends the server and removes its folder.

A program by itself, run by path: the standard library alone. Standard input carries the server's
process id at every start and 0 at every stop; its end says that the parent is gone, even by
`kill -9`.
"""

import os
import shutil
import signal
import sys
import time


def keep(folder: str) -> None:
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    try:
        if pid:
            for name in ("SIGQUIT", "SIGCONT") if os.name == "posix" else ("SIGTERM",):
                os.kill(pid, getattr(signal, name))
        deadline = time.monotonic() + 5
        while pid and time.monotonic() < deadline:
            os.kill(pid, 0)  # fails once it is gone; the system has no wait for another's child
            time.sleep(0.02)
        if pid:
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
    except OSError:
        pass
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    keep(sys.argv[1])
