"""Latency and throughput of the application's top-ups, with and without a running cycle, in turn on fresh copies."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field

from bench.audit import require_clean_audit
from bench.cycle import CycleRun, CycleSpec, run_cycle
from bench.measurement import Aim, Measurement, Section, percentile, ratios
from bench.server import LogTail, changed_settings
from bench.template import Template, fresh_copy, mixed_template
from bench.topup_load import Load, topping_up
from tests.support.servers import Server

CONNECTIONS = 4
EVERY_MS = 5.0
P99_AIM = Aim(150.0, judged_by="worst")
WORST_AIM = Aim(1000.0, judged_by="worst")
TRANSACTION_AIM = Aim(1000.0, judged_by="worst")
#: The length of a round without a cycle.
IDLE_SECONDS = 5.0
#: The server logs lock waits that last longer than this.
LOGGED_WAIT_MS = 20

_LOCK_WAIT = re.compile(r"process \d+ acquired .* after (?P<ms>[0-9.]+) ms")


@dataclass
class Rounds:
    """All rounds of one kind.

    Attributes:
        every_ms: the pace of the top-ups; None for unpaced ones.
        billing: True if a cycle runs.
        latencies: seconds of each top-up, by round.
        rate: top-ups per second.
        lock_waits: milliseconds of each logged lock wait, by round.
    """

    every_ms: float | None
    billing: bool
    cycles: list[CycleRun] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    lock_waits: list[list[float]] = field(default_factory=list)

    def milliseconds(self, share: float) -> tuple[float, ...]:
        """A percentile of each round's latencies."""
        return tuple(1000 * percentile(each, share) for each in self.latencies)

    def run_round(self, server: Server, template: Template, workers: int, batch_size: int) -> None:
        """Raises: SystemExit: the audit after the cycle found a violation."""
        with fresh_copy(server, template.name) as url:
            log = LogTail(server)
            with topping_up(Load(url, CONNECTIONS, self.every_ms)) as top_ups:
                if self.billing:
                    cycle = run_cycle(CycleSpec(url, template.as_of.isoformat(), workers, batch_size))
                    self.cycles.append(cycle)
                    began, ended = cycle.began, cycle.began + cycle.seconds
                else:
                    began = time.monotonic()
                    threading.Event().wait(IDLE_SECONDS)
                    ended = time.monotonic()
            if self.billing:
                require_clean_audit(url)
            latencies = top_ups.between(began, ended)
            self.latencies.append(latencies)
            self.rate.append(len(latencies) / (ended - began))
            self.lock_waits.append([float(each["ms"]) for each in _LOCK_WAIT.finditer(log.read())])


def topup_latency(server: Server, instances: int, rounds: int, workers: int, batch_size: int) -> Section:
    """Measures the latency of paced top-ups and the throughput of unpaced ones, each with and without a cycle."""
    template = mixed_template(server, instances)
    with changed_settings(server, {"log_lock_waits": "on", "deadlock_timeout": f"{LOGGED_WAIT_MS}ms"}):
        for each in _kinds():  # warm-up
            each.run_round(server, template, workers, batch_size)
        paced, paced_alone, unpaced, unpaced_alone = kinds = _kinds()
        for number in range(1, rounds + 1):
            for each in kinds:
                each.run_round(server, template, workers, batch_size)
            print(f"  round {number}: p99 {paced.milliseconds(0.99)[-1]:.1f} ms", flush=True)
    transactions = tuple(1000 * max(each.transactions) for each in paced.cycles)
    lock_waits = tuple(float(len(each)) for each in paced.lock_waits)
    return Section(
        "topup_latency",
        "Top-ups during a cycle",
        f"A top-up is due every {EVERY_MS:g} ms, for a random organization, on {CONNECTIONS} connections, while a cycle"
        f" of {instances:,} instances runs ({workers} workers, batches of {batch_size:,}). Latency is the time from"
        " when a top-up is due to its commit. The same load then runs without a pause between top-ups. One"
        " organization in twelve is short of money.",
        (
            Measurement("top-up during a cycle, p50", "ms", paced.milliseconds(0.5)),
            Measurement("top-up during a cycle, p99", "ms", paced.milliseconds(0.99), P99_AIM),
            Measurement("top-up during a cycle, worst", "ms", paced.milliseconds(1.0), WORST_AIM),
            Measurement("top-up without a cycle, p50", "ms", paced_alone.milliseconds(0.5)),
            Measurement("top-up without a cycle, p99", "ms", paced_alone.milliseconds(0.99)),
            Measurement("top-up without a cycle, worst", "ms", paced_alone.milliseconds(1.0)),
            Measurement("unpaced top-ups during a cycle", "top-ups/s", tuple(unpaced.rate)),
            Measurement("unpaced top-ups without a cycle", "top-ups/s", tuple(unpaced_alone.rate)),
            Measurement("rate during a cycle relative to without", "", ratios(unpaced.rate, unpaced_alone.rate)),
            Measurement("cycle during paced top-ups", "s", tuple(each.seconds for each in paced.cycles)),
            Measurement("longest transaction of the cycle", "ms", transactions, TRANSACTION_AIM),
            Measurement(f"lock waits over {LOGGED_WAIT_MS} ms per cycle, all sessions", "", lock_waits),
            Measurement("longest lock wait", "ms", tuple(max(each, default=0.0) for each in paced.lock_waits)),
        ),
    )


def _kinds() -> tuple[Rounds, Rounds, Rounds, Rounds]:
    return (
        Rounds(EVERY_MS, billing=True),
        Rounds(EVERY_MS, billing=False),
        Rounds(None, billing=True),
        Rounds(None, billing=False),
    )
