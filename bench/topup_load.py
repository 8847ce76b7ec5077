"""The application's top-ups, from a child process. A top-up changes a wallet and writes its payment in one transaction.

    python -m bench.topup_load '{"url": ..., "connections": 4, "every_ms": 5}'

Prints `ready`, runs until its standard input closes, then prints a JSON list of [due, seconds]: when each top-up was
due on the machine's monotonic clock, and the time from then to its commit. Waiting for a free connection counts, so a
slow top-up can't hide the delay of those behind it. With `every_ms` null, there is no pause between top-ups.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal

import psycopg

from bench.machine import ROOT


@dataclass(frozen=True)
class Load:
    """How fast to top up.

    Attributes:
        connections: the size of the application's pool.
        every_ms: the interval at which top-ups are due; None means as fast as the connections allow.
    """

    url: str
    connections: int = 4
    every_ms: float | None = 5.0


@dataclass
class TopUps:
    """The measured top-ups, as (due, seconds). Empty until the load has stopped."""

    measured: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> list[float]:
        """Seconds of each top-up that was due in this interval of the monotonic clock."""
        return [seconds for due, seconds in self.measured if began <= due <= ended]


@contextmanager
def topping_up(load: Load) -> Iterator[TopUps]:
    """Runs the load for the length of the block.

    Raises:
        SystemExit: the child process did not start.
    """
    made = TopUps()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.topup_load", json.dumps(asdict(load))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SystemExit("the process that tops up did not start")
        yield made
        out, _ = process.communicate()
        made.measured += [(due, seconds) for due, seconds in json.loads(out)]
    finally:
        process.kill()
        process.wait()


class _Schedule:
    """Hands out top-ups to threads as they come due, and collects their times."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._next_due = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.measured: list[tuple[float, float]] = []

    def stop(self) -> None:
        self._stop.set()

    def work(self, connection: psycopg.Connection[tuple[object, ...]], organizations: list[object]) -> None:
        """Tops up random organizations until stopped."""
        while not self._stop.is_set():
            due = self._take()
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            _top_up(connection, random.choice(organizations))
            self.measured.append((due, time.monotonic() - due))

    def _take(self) -> float:
        if self._load.every_ms is None:
            return time.monotonic()
        with self._lock:
            due = self._next_due
            self._next_due = due + self._load.every_ms / 1000
        return due


def _top_up(connection: psycopg.Connection[tuple[object, ...]], organization: object) -> None:
    amount = Decimal(random.randint(1, 5000)) / 100
    with connection.transaction():
        connection.execute(
            "update wallets set balance = balance + %s where organization_id = %s", [amount, organization]
        )
        connection.execute(
            "insert into payment_transactions"
            " (organization_id, amount, currency, payment_method, payment_provider, status, description)"
            " values (%s, %s, 'USD', 'card', 'stripe', 'completed', 'Wallet top-up')",
            [organization, amount],
        )


def _main(load: Load) -> None:
    connections = [psycopg.connect(load.url, autocommit=True) for _ in range(load.connections)]
    organizations: list[object] = [row[0] for row in connections[0].execute("select organization_id from wallets")]
    schedule = _Schedule(load)
    threads = [threading.Thread(target=schedule.work, args=(each, organizations)) for each in connections]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    schedule.stop()
    for thread in threads:
        thread.join()
    print(json.dumps(schedule.measured))


if __name__ == "__main__":
    _main(Load(**json.loads(sys.argv[1])))
