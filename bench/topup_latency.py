"""Latency and throughput of the application's top-ups, with and without a running cycle, in turn on fresh copies."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field

from bench.audit import require_clean_audit
from bench.cycle import CycleRun, CycleSpec, run_cycle
from bench.measurement import Aim, Measurement, Section, ratios
from bench.server import LogTail, changed_settings
from bench.template import Template, fresh_copy, mixed_template
from bench.topup_load import Load, topping_up
from controller.settings import Settings
from tests.support.servers import Server
from tests.support.timings import percentile

CONNECTIONS = 4
EVERY_MS = 5.0
P99_AIM = Aim(150.0, judged_by="worst")
WORST_AIM = Aim(1000.0, judged_by="worst")
TRANSACTION_AIM = Aim(1000.0, judged_by="worst")
#: The default of BILLING_PACE. The two aims below say what it should leave to the application.
PACE: float = Settings.model_fields["pace"].default
RATE_AIM = Aim(0.9, at_least=True)
PACED_P99_AIM = Aim(2.0)
#: The length of a round without a cycle.
IDLE_SECONDS = 15.0
#: The server logs lock waits that last longer than this.
LOGGED_WAIT_MS = 20

_LOCK_WAIT = re.compile(r"process \d+ acquired .* after (?P<ms>[0-9.]+) ms")


@dataclass
class Rounds:
    """All rounds of one kind.

    Attributes:
        every_ms: the interval of the top-ups; None for as many as possible.
        pace: the cycle's pace; None if no cycle runs.
        latencies: seconds of each top-up, by round.
        rate: top-ups per second.
        lock_waits: milliseconds of each logged lock wait, by round.
    """

    every_ms: float | None
    pace: float | None
    cycles: list[CycleRun] = field(default_factory=list)
    latencies: list[list[float]] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    lock_waits: list[list[float]] = field(default_factory=list)

    def milliseconds(self, share: float) -> tuple[float, ...]:
        """A percentile of each round's latencies."""
        return tuple(1000 * percentile(each, share) for each in self.latencies)

    def run_round(self, server: Server, template: Template, workers: int, batch_size: int) -> None:
        """Runs one round and keeps its samples. Raises: SystemExit: the audit after the cycle found a violation."""
        with fresh_copy(server, template.name) as url:
            log = LogTail(server)
            with topping_up(Load(url, CONNECTIONS, self.every_ms)) as top_ups:
                if self.pace is not None:
                    spec = CycleSpec(url, template.as_of.isoformat(), workers, batch_size, pace=self.pace)
                    cycle = run_cycle(spec)
                    self.cycles.append(cycle)
                    began, ended = cycle.began, cycle.began + cycle.seconds
                else:
                    began = time.monotonic()
                    threading.Event().wait(IDLE_SECONDS)
                    ended = time.monotonic()
            if self.pace is not None:
                require_clean_audit(url)
            latencies = top_ups.between(began, ended)
            self.latencies.append(latencies)
            self.rate.append(len(latencies) / (ended - began))
            self.lock_waits.append([float(each["ms"]) for each in _LOCK_WAIT.finditer(log.read())])


def topup_latency(server: Server, instances: int, rounds: int, workers: int, batch_size: int) -> Section:
    """Measures top-ups beside no cycle, beside a cycle at full speed, and beside one at the default pace.

    The top-ups are steady, which shows their latency, or as many as possible, which shows their throughput.
    """
    template = mixed_template(server, instances)
    with changed_settings(server, {"log_lock_waits": "on", "deadlock_timeout": f"{LOGGED_WAIT_MS}ms"}):
        for each in _kinds():  # warm-up
            each.run_round(server, template, workers, batch_size)
        fast, paced, alone, most_fast, most_paced, most_alone = kinds = _kinds()
        for number in range(1, rounds + 1):
            for each in kinds:
                each.run_round(server, template, workers, batch_size)
            print(f"  round {number}: p99 {paced.milliseconds(0.99)[-1]:.1f} ms", flush=True)
    alone_p99 = alone.milliseconds(0.99)
    latencies = [
        Measurement(f"top-up {title}, {name}", "ms", each.milliseconds(share), aim)
        for title, each, aims in (
            ("during a cycle at full speed", fast, {"p99": P99_AIM, "worst": WORST_AIM}),
            ("during a paced cycle", paced, {"p99": P99_AIM, "worst": WORST_AIM}),
            ("without a cycle", alone, {}),
        )
        for name, share, aim in (("p50", 0.5, None), ("p99", 0.99, aims.get("p99")), ("worst", 1.0, aims.get("worst")))
    ]
    return Section(
        "topup_latency",
        "Top-ups during a cycle",
        f"A top-up is due every {EVERY_MS:g} ms, for a random organization, on {CONNECTIONS} connections, while a cycle"
        f" of {instances:,} instances runs ({workers} workers, batches of {batch_size:,}). Latency is the time from"
        f" when a top-up is due to its commit. The cycle runs at full speed, or at a pace of {PACE:g}. The same load"
        " then runs without a pause between top-ups. One organization in twelve is short of money.",
        (
            *latencies,
            Measurement(
                "p99 during a paced cycle relative to without",
                "",
                ratios(paced.milliseconds(0.99), alone_p99),
                PACED_P99_AIM,
            ),
            Measurement("top-ups without a pause and without a cycle", "top-ups/s", tuple(most_alone.rate)),
            Measurement("their rate during a cycle at full speed", "", ratios(most_fast.rate, most_alone.rate)),
            Measurement("their rate during a paced cycle", "", ratios(most_paced.rate, most_alone.rate), RATE_AIM),
            Measurement("cycle at full speed", "s", tuple(each.seconds for each in fast.cycles)),
            Measurement("paced cycle", "s", tuple(each.seconds for each in paced.cycles)),
            Measurement(
                "longest transaction of a cycle",
                "ms",
                tuple(1000 * max(each.transactions) for each in fast.cycles),
                TRANSACTION_AIM,
            ),
            Measurement(
                f"lock waits over {LOGGED_WAIT_MS} ms per cycle at full speed",
                "",
                tuple(float(len(each)) for each in fast.lock_waits),
            ),
            Measurement("longest lock wait", "ms", tuple(max(each, default=0.0) for each in fast.lock_waits)),
        ),
    )


def _kinds() -> tuple[Rounds, Rounds, Rounds, Rounds, Rounds, Rounds]:
    return (
        Rounds(EVERY_MS, pace=1.0),
        Rounds(EVERY_MS, pace=PACE),
        Rounds(EVERY_MS, pace=None),
        Rounds(None, pace=1.0),
        Rounds(None, pace=PACE),
        Rounds(None, pace=None),
    )
