"""The application's top-ups from a process of their own: a wallet's balance and its completed transaction, in one.

    python -m bench.topups '{"url": ..., "connections": 4, "every_ms": 5}'

It says `ready`, goes on until its standard input ends, and prints a JSON list of [due, seconds]: when a top-up was due
by the machine's monotonic clock, and how long from then until it had committed. Time spent waiting for a free
connection counts, so that one slow top-up does not hide those behind it. `every_ms` null: without a pause.
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
class Pace:
    """How it tops up.

    Attributes:
        connections: the application's pool.
        every_ms: a top-up is due so often; None means as fast as the connections go.
    """

    url: str
    connections: int = 4
    every_ms: float | None = 5.0


@dataclass
class TopUps:
    """What was measured, once its context has ended: (due, seconds) of each."""

    measured: list[tuple[float, float]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> list[float]:
        """Seconds of the top-ups that were due in this time."""
        return [seconds for due, seconds in self.measured if began <= due <= ended]


@contextmanager
def topping_up(pace: Pace) -> Iterator[TopUps]:
    """Tops up for as long as the context lasts."""
    made = TopUps()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.topups", json.dumps(asdict(pace))],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if process.stdout is None or process.stdout.readline() != "ready\n":
            raise SystemExit("the top-ups did not begin")
        yield made
        out, _ = process.communicate()
        made.measured += [(due, seconds) for due, seconds in json.loads(out)]
    finally:
        process.kill()
        process.wait()


class _Teller:
    """Takes the next top-up that is due, on any of the threads."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._next_due = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.measured: list[tuple[float, float]] = []

    def stop(self) -> None:
        self._stop.set()

    def work(self, connection: psycopg.Connection[tuple[object, ...]], organizations: list[object]) -> None:
        """Until stopped."""
        while not self._stop.is_set():
            due = self._take()
            if self._stop.wait(max(0.0, due - time.monotonic())):
                return
            self._top_up(connection, random.choice(organizations))
            self.measured.append((due, time.monotonic() - due))

    def _take(self) -> float:
        if self._pace.every_ms is None:
            return time.monotonic()
        with self._lock:
            due = self._next_due
            self._next_due = due + self._pace.every_ms / 1000
        return due

    @staticmethod
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


def _main(pace: Pace) -> None:
    connections = [psycopg.connect(pace.url, autocommit=True) for _ in range(pace.connections)]
    organizations: list[object] = [row[0] for row in connections[0].execute("select organization_id from wallets")]
    teller = _Teller(pace)
    threads = [threading.Thread(target=teller.work, args=(each, organizations)) for each in connections]
    for thread in threads:
        thread.start()
    print("ready", flush=True)
    sys.stdin.read()
    teller.stop()
    for thread in threads:
        thread.join()
    print(json.dumps(teller.measured))


if __name__ == "__main__":
    _main(Pace(**json.loads(sys.argv[1])))
