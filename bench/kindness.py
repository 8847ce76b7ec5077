"""What the application notices: its top-ups while a cycle runs and while none does, in turn on fresh copies."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from bench.cycle import CycleRun, Order, run_cycle
from bench.figures import Aim, Figure, Section, percentile, ratios
from bench.reload import changed_settings
from bench.template import Template, fresh_copy, make_plausible
from bench.topups import Pace, topping_up
from bench.watch import require_clean_audit
from controller.demo.server import Server

CONNECTIONS = 4
EVERY_MS = 5.0
P99 = Aim(150.0, held="worst")
WORST = Aim(1000.0, held="worst")
QUIET_SECONDS = 5.0
#: The server logs a wait for a lock that lasts longer.
LOGGED_WAIT_MS = 20


@dataclass
class Taken:
    """What rounds of one kind have given."""

    cycles: list[CycleRun] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    a_second: list[float] = field(default_factory=list)
    lock_waits: list[list[float]] = field(default_factory=list)

    def milliseconds(self, share: float) -> tuple[float, ...]:
        """A percentile of each round."""
        return tuple(1000 * percentile(each, share) for each in self.latencies)


def kindness(server: Server, instances: int, rounds: int, workers: int, batch_size: int) -> Section:
    """Latency of paced top-ups and throughput of unpaced ones, each with a cycle and without."""
    template = make_plausible(server, instances)
    paced, alone, fast, fast_alone = Taken(), Taken(), Taken(), Taken()
    with changed_settings(server, {"log_lock_waits": "on", "deadlock_timeout": f"{LOGGED_WAIT_MS}ms"}):
        for number in range(rounds + 1):
            for taken, pace, billing in (
                (paced, EVERY_MS, True),
                (alone, EVERY_MS, False),
                (fast, None, True),
                (fast_alone, None, False),
            ):
                kept = taken if number else Taken()
                _round(server, template, kept, pace, (workers, batch_size) if billing else None)
            print(f"  round {number}: p99 {paced.milliseconds(0.99)[-1]:.1f} ms" if number else "  warm-up", flush=True)
    return Section(
        "kindness",
        "Kindness to the application",
        f"A top-up every {EVERY_MS:g} ms on random organizations over {CONNECTIONS} connections, from when it was due"
        f" to its commit, while a cycle of {instances:,} instances runs ({workers} workers, batches of {batch_size:,});"
        " then the same without a pause between top-ups. One organization in twelve is short of money.",
        (
            Figure("top-up while a cycle runs, p50", "ms", paced.milliseconds(0.5)),
            Figure("top-up while a cycle runs, p99", "ms", paced.milliseconds(0.99), P99),
            Figure("top-up while a cycle runs, worst", "ms", paced.milliseconds(1.0), WORST),
            Figure("top-up without a cycle, p50", "ms", alone.milliseconds(0.5)),
            Figure("top-up without a cycle, p99", "ms", alone.milliseconds(0.99)),
            Figure("top-up without a cycle, worst", "ms", alone.milliseconds(1.0)),
            Figure("top-ups without a pause, while a cycle runs", "a second", tuple(fast.a_second)),
            Figure("top-ups without a pause, without a cycle", "a second", tuple(fast_alone.a_second)),
            Figure("… share that is left while a cycle runs", "times", ratios(fast.a_second, fast_alone.a_second)),
            Figure("cycle beside paced top-ups", "s", tuple(each.seconds for each in paced.cycles)),
            Figure(
                "longest transaction of the cycle",
                "ms",
                tuple(1000 * max(each.transactions) for each in paced.cycles),
                Aim(1000.0, held="worst"),
            ),
            Figure(
                f"waits for a lock above {LOGGED_WAIT_MS} ms, anyone's, a cycle",
                "",
                tuple(float(len(each)) for each in paced.lock_waits),
            ),
            Figure("longest wait for a lock", "ms", tuple(max(each, default=0.0) for each in paced.lock_waits)),
        ),
    )


def _round(
    server: Server, template: Template, taken: Taken, every_ms: float | None, billing: tuple[int, int] | None
) -> None:
    with fresh_copy(server, template) as url:
        log = LockWaits(server.log_path)
        with topping_up(Pace(url, CONNECTIONS, every_ms)) as top_ups:
            if billing:
                cycle = run_cycle(Order(url, template.as_of.isoformat(), *billing))
                taken.cycles.append(cycle)
                began, ended = cycle.began, cycle.began + cycle.seconds
            else:
                began = time.monotonic()
                threading.Event().wait(QUIET_SECONDS)
                ended = time.monotonic()
        if billing:
            require_clean_audit(url)
        latencies = top_ups.between(began, ended)
        taken.latencies.append(latencies)
        taken.a_second.append(len(latencies) / (ended - began))
        taken.lock_waits.append(log.read())


class LockWaits:
    """The waits for locks that the server logs from now on."""

    _LINE = re.compile(r"process \d+ acquired .* after (?P<ms>[0-9.]+) ms")

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start = log.stat().st_size

    def read(self) -> list[float]:
        """Milliseconds of each that has ended."""
        with self._log.open("rb") as file:
            file.seek(self._start)
            text = file.read().decode(errors="replace")
        return [float(each["ms"]) for each in self._LINE.finditer(text)]
