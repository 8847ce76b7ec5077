"""Runs cycles in a child process, which keeps the benchmark out of the controller's memory and processor time.

    python -m bench.cycle '{"url": ..., "as_of": ..., ...}'      prints a JSON list with one CycleRun per cycle

The cycle is the controller's, with its sessions, fence and history. It differs in one thing: it bills what was due when
the template was made. Every round therefore does the same work.
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
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
import structlog

from bench.machine import ROOT
from bench.server import wal_bytes_since, wal_position
from controller import sql
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.values import Outcome, Pricing, Run
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import CYCLE, WORKER, Database, SessionSettings

HOLDER: Final = "bench-1"
TERM: Final = 1
PRICING: Final = Pricing(Decimal("19.71"), "USD")

#: The sample has organizations that can't be charged.
GOT_THROUGH: Final = {Outcome.COMPLETED, Outcome.COMPLETED_WITH_FAILURES}


@dataclass(frozen=True)
class CycleSpec:
    """Which cycles to run.

    Attributes:
        as_of: ISO time.
        cycles: how many to run in sequence. All bill as of the same time, so the second finds nothing due.
        session: settings that override those of the workers' sessions.
        edits: changes to named statements: the name, the text to replace, and its replacement.
        may_fail: True accepts cycles that do not get through their plan.
        pace: the share of its time that each worker works, as if every cycle began on time.
    """

    url: str
    as_of: str
    workers: int = 2
    batch_size: int = CycleSettings.batch_size
    cycles: int = 1
    session: dict[str, str] = field(default_factory=dict)
    edits: list[tuple[str, str, str]] = field(default_factory=list)
    may_fail: bool = False
    pace: float = 1.0


@dataclass(frozen=True)
class CycleRun:
    """What one cycle did and how long it took.

    Attributes:
        began: when it began, on the machine's monotonic clock, which all processes share.
        processor_seconds: used by the controller, without the server.
        peak_bytes: the process's largest resident size, including interpreter and libraries.
        transactions: seconds of each batch's transaction, including its commit.
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
class SoleLeadership:
    """A leadership that always holds, because no other process contends."""

    term: int

    def still_leads(self) -> bool:
        return True


class TimedLedger(Ledger):
    """The controller's ledger. Begins its runs at a given time and records how long each transaction takes."""

    as_of: datetime
    transactions: list[float]

    def begin_run(self, term: int) -> Run:
        run = super().begin_run(term)
        self.connection.execute("update billing_runs set started_at = %s where id = %s", (self.as_of, run.id))
        return replace(run, as_of=self.as_of, late_seconds=0.0)

    @contextmanager
    def fenced(
        self, term: int, *, keep: bool = True, enforce: bool | None = None, needs_heartbeat: bool = False
    ) -> Iterator[None]:
        began = time.perf_counter()
        with super().fenced(term, keep=keep, enforce=enforce, needs_heartbeat=needs_heartbeat):
            yield
        self.transactions.append(time.perf_counter() - began)


def run_cycles(spec: CycleSpec, timeout_seconds: float | None = None) -> list[CycleRun]:
    """Runs the cycles in a child process.

    Raises:
        SystemExit: a cycle did not complete. The child has printed the reason.
        subprocess.TimeoutExpired: the child ran longer than the timeout and was killed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.cycle", json.dumps(asdict(spec))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the cycle's process exited with status {done.returncode}")
    return [CycleRun(**each) for each in json.loads(done.stdout)]


def run_cycle(spec: CycleSpec) -> CycleRun:
    """Runs the cycles and returns the first one. Raises as `run_cycles` does."""
    return run_cycles(spec)[0]


def _edit_statements(edits: list[tuple[str, str, str]]) -> None:
    """Changes named statements in this process.

    Raises:
        SystemExit: a statement doesn't contain the text to replace.
    """
    statements = dict(sql.load())
    for name, old, new in edits:
        if old not in statements[name]:
            raise SystemExit(f"{name} doesn't contain {old!r}")
        statements[name] = statements[name].replace(old, new)
    sql.load = cache(lambda: statements)


def _run(spec: CycleSpec) -> Iterator[CycleRun]:
    _edit_statements(spec.edits)
    database = Database(lambda: spec.url, "DATABASE_URL", HOLDER)
    worker = replace(WORKER, server={**WORKER.server, **spec.session})
    transactions: list[float] = []

    def ledger(session: SessionSettings, seconds: list[float]) -> Ledger:
        made = TimedLedger(database.connect(session), PRICING, HOLDER)
        made.as_of, made.transactions = datetime.fromisoformat(spec.as_of), seconds
        return made

    settings = CycleSettings(workers=spec.workers, batch_size=spec.batch_size, pace=spec.pace)
    cycle = Cycle(lambda: ledger(CYCLE, []), lambda: ledger(worker, transactions), settings, StopToken())
    with psycopg.connect(spec.url, autocommit=True) as own:
        own.execute("update billing_leadership set term = %s, holder = %s", [TERM, HOLDER])
        own.execute(
            "insert into billing_terms (term, holder, minted_at, generation)"
            " select %s, %s, clock_timestamp(), generation from billing_leadership on conflict do nothing",
            [TERM, HOLDER],
        )
        for _ in range(spec.cycles):
            transactions.clear()
            position, processor, began = wal_position(own), time.process_time(), time.monotonic()
            result = cycle.run(SoleLeadership(TERM))
            if result.outcome not in GOT_THROUGH and not spec.may_fail:
                raise SystemExit(f"the cycle did not complete: {result}")
            yield CycleRun(
                instances=result.totals.instances,
                hours=result.totals.hours,
                debts=result.totals.debts,
                failures=result.totals.failures,
                seconds=result.seconds,
                began=began,
                processor_seconds=time.process_time() - processor,
                peak_bytes=_peak_bytes(),
                wal_bytes=wal_bytes_since(own, position),
                transactions=list(transactions),
            )


def _peak_bytes() -> int:
    """This process's peak resident size. On Linux, getrusage would start from the parent's peak, so read /proc."""
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
    made: list[dict[str, Any]] = [asdict(each) for each in _run(CycleSpec(**json.loads(sys.argv[1])))]
    print(json.dumps(made))
