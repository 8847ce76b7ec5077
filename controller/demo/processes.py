"""Starting the command line as other processes, so that none of them outlives this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import controller
from controller.demo.installation import WINDOWS

LEASH: Final = Path(__file__).with_name("leash.py")
COMMAND: Final = (sys.executable, "-m", "controller")
#: What a controller reads, and must not inherit from whoever runs the demo.
SETTINGS_PREFIXES: Final = ("BILLING_", "DATABASE_", "KUBERNETES_", "LOG_", "NODE_", "PG", "POD_")
STOP_SECONDS: Final = 20.0


class Leash:
    """A temporary folder, and processes that end when this one does, even by `kill -9`; `ending` is how.

    As a context manager it removes the folder; the processes must have ended by then, or are ended.
    """

    def __init__(self, ending: Literal["SIGKILL", "SIGTERM"]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="billing-demo-"))
        self._program = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), str(self.folder), ending],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            bufsize=0,  # each line is one write, whichever thread writes it
            **own_group(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._program.stdin is not None:
            self._program.stdin.close()
        self._program.wait(STOP_SECONDS)

    def hold(self, pid: int) -> None:
        """A process has started."""
        self._tell(pid)

    def release(self, pid: int) -> None:
        """It has ended."""
        self._tell(-pid)

    def _tell(self, number: int) -> None:
        if self._program.stdin is not None:
            with suppress(OSError, ValueError):
                self._program.stdin.write(f"{number}\n".encode())


def clean_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, but of the controller's settings only those given."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(SETTINGS_PREFIXES)}
    return with_package({**kept, **settings})


def with_package(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables, and a PYTHONPATH that leads to this very package, in a checkout as well as installed."""
    home = str(Path(controller.__file__).resolve().parents[1])
    paths = [home, *filter(None, [variables.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}


def own_group() -> dict[str, Any]:
    """For Popen: Ctrl-C on the terminal does not reach the child."""
    return {
        "start_new_session": not WINDOWS,
        "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    }


def terminate(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, or what comes closest to it on Windows."""
    if WINDOWS:
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
    else:
        process.terminate()
