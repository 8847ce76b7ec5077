"""One or more cycles in a process of their own, so that the controller's memory and processor time are measured apart.

    python -m bench.cycle '{"url": ..., "as_of": ..., ...}'      prints a JSON list, one CycleRun for each cycle

The cycle is the controller's own, with its sessions, its fence and its history; only the moment whose due hours it
bills is the template's, so that every round does the same work.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import structlog

from bench.machine import ROOT
from bench.wal import wal_bytes_since, wal_position
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.values import Outcome, Pricing, Run
from controller.postgres import queries
from controller.postgres.connections import CYCLE, WORKER, Database, SessionSettings

HOLDER = "bench-1"
TERM = 1


@dataclass(frozen=True)
class Order:
    """What to run.

    Attributes:
        as_of: ISO time.
        cycles: how many, one after the other, all as of the same moment: the second finds nothing due.
        session: settings of the workers' sessions that are to be different.
    """

    url: str
    as_of: str
    workers: int = 2
    batch_size: int = CycleSettings.batch_size
    cycles: int = 1
    session: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CycleRun:
    """What a cycle did and took.

    Attributes:
        began: by the machine's monotonic clock, which other processes share.
        processor_seconds: of the controller, not of the server.
        peak_bytes: the process's largest resident size, interpreter and libraries included.
        transactions: seconds of each batch's transaction, its commit included.
    """

    instances: int
    hours: int
    debts: int
    failures: int
    seconds: float
    began: float
    processor_seconds: float
    peak_bytes: int
    wal_bytes: int
    transactions: list[float]


@dataclass(frozen=True)
class Leading:
    """The benchmark's own leadership: nobody else is there."""

    term: int

    def still_leads(self) -> bool:
        """Always."""
        return True


class TimedLedger(Ledger):
    """The real one; its runs begin at a given moment, and it notes how long each transaction took."""

    as_of: datetime
    took: list[float]

    def begin_run(self, term: int) -> Run:
        """As the real one, but moved."""
        run = super().begin_run(term)
        self.connection.execute("update billing_runs set started_at = %s where id = %s", (self.as_of, run.id))
        return replace(run, as_of=self.as_of)

    @contextmanager
    def fenced(self, term: int, *, keep: bool = True) -> Iterator[None]:
        """As the real one, timed."""
        began = time.perf_counter()
        with super().fenced(term, keep=keep):
            yield
        self.took.append(time.perf_counter() - began)


def run_cycles(order: Order, patience_seconds: float | None = None) -> list[CycleRun]:
    """In a child process.

    Raises:
        SystemExit: a cycle went wrong; the child has said why.
        subprocess.TimeoutExpired: it has not ended in time, and was killed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.cycle", json.dumps(asdict(order))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=patience_seconds,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the cycle's process ended with {done.returncode}")
    return [CycleRun(**each) for each in json.loads(done.stdout)]


def run_cycle(order: Order) -> CycleRun:
    """As `run_cycles`, the first of them."""
    return run_cycles(order)[0]


def _run(order: Order) -> Iterator[CycleRun]:
    statements = queries.load()
    database = Database(lambda: order.url, "DATABASE_URL", HOLDER)
    took: list[float] = []

    worker = replace(WORKER, server={**WORKER.server, **order.session})

    def ledger(session: SessionSettings, times: list[float]) -> Ledger:
        made = TimedLedger(database.connect(session), statements, Pricing(Decimal("19.71"), "USD"), HOLDER)
        made.as_of, made.took = datetime.fromisoformat(order.as_of), times
        return made

    settings = CycleSettings(workers=order.workers, batch_size=order.batch_size)
    cycle = Cycle(lambda: ledger(CYCLE, []), lambda: ledger(worker, took), settings, lambda: True, time.sleep)
    with psycopg.connect(order.url, autocommit=True) as own:
        own.execute("update billing_leadership set term = %s, holder = %s", [TERM, HOLDER])
        own.execute(
            "insert into billing_terms values (%s, %s, clock_timestamp()) on conflict do nothing", [TERM, HOLDER]
        )
        for _ in range(order.cycles):
            took.clear()
            position, processor, began = wal_position(own), time.process_time(), time.monotonic()
            result = cycle.run(Leading(TERM))
            if result.outcome is not Outcome.COMPLETED:
                raise SystemExit(f"the cycle went wrong: {result}")
            yield CycleRun(
                instances=result.figures.instances,
                hours=result.figures.hours,
                debts=result.figures.debts,
                failures=result.figures.failures,
                seconds=result.seconds,
                began=began,
                processor_seconds=time.process_time() - processor,
                peak_bytes=peak_bytes(),
                wal_bytes=wal_bytes_since(own, position),
                transactions=list(took),
            )


def peak_bytes() -> int:
    """Of this process. Not by getrusage on Linux: a child begins with its parent's peak there."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger("error"),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    made: list[dict[str, Any]] = [asdict(each) for each in _run(Order(**json.loads(sys.argv[1])))]
    print(json.dumps(made))
