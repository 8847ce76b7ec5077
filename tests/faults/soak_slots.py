"""Slots for replicas during a soak. A process that ends is replaced."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from controller.demo.process import ControllerProcess, ExpectationError
from tests.faults.proxy import Proxy
from tests.support.processes import LOW_BOUNDS, thaw
from tests.support.waiting import through

SETTINGS: Final = {
    **LOW_BOUNDS,
    "BILLING_INTERVAL_MINUTES": "0.004",
    "BILLING_BATCH_SIZE": "4",
    "BILLING_DRAIN_TIMEOUT_SECONDS": "3",
    "BILLING_HEARTBEAT_SECONDS": "1",
    "PYTHONFAULTHANDLER": "1",  # SIGABRT prints each thread's stack
}
#: What each replica's environment says about its sessions. None of it may change a charge.
SESSIONS: Final[tuple[Mapping[str, str], ...]] = (
    {"PGTZ": "America/St_Johns", "PGOPTIONS": "-c default_transaction_isolation=serializable"},
    {
        "TZ": "Pacific/Chatham",
        "PGDATESTYLE": "German",
        "PGOPTIONS": "-c default_transaction_isolation=repeatable\\ read",
    },
    {"PGTZ": "Asia/Kathmandu", "PGOPTIONS": "-c default_transaction_deferrable=on -c IntervalStyle=iso_8601"},
)
#: A drain may take this long beside other faults.
STOP_SECONDS: Final = 60.0


class Slot:
    """A slot for a replica behind a proxy, with all processes that it has had.

    `environment` holds variables on top of `SETTINGS`.
    """

    def __init__(self, url: str, port: int, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.proxy = Proxy(("127.0.0.1", port))
        self._url = through(url, self.proxy.port)
        self.replicas: list[ControllerProcess] = []
        self._free = threading.Lock()
        self.start()

    @property
    def replica(self) -> ControllerProcess:
        return self.replicas[-1]

    def start(self) -> None:
        """Starts a new process."""
        self.replicas.append(ControllerProcess(self._url, **SETTINGS, **self._environment, LOG_LEVEL="debug"))

    def remove(self) -> None:
        """Removes the processes and the proxy."""
        for replica in self.replicas:
            replica.remove()
        self.proxy.close()

    @contextmanager
    def taken(self, errors: list[str]) -> Iterator[ControllerProcess]:
        """Gives the replica to one fault at a time. It runs at the start and at the end."""
        with self._free:
            if not self.replica.running:
                errors.append(f"{self.replica.instance} ended unexpectedly:\n{self.replica.tail()}")
                self.start()
            yield self.replica
            if not self.replica.running:
                self.start()

    def ended(self, errors: list[str], why: str) -> None:
        """Waits for a replica that was told to end. If it hangs, it prints its stacks."""
        replica = self.replica
        try:
            status = replica.wait(STOP_SECONDS)
        except ExpectationError:
            state = Path(f"/proc/{replica.pid}/stat").read_text(encoding="utf-8").split()[2]
            replica.signal(signal.SIGABRT)
            thaw(replica)
            status = replica.wait()
            errors.append(f"{replica.instance} hung in state {state} after {why}")
        early = status == -signal.SIGTERM and not replica.log  # before it could handle the signal
        if status != 0 and not early:
            errors.append(f"{replica.instance} ended with {status} after {why}:\n{replica.tail(100)}")
