"""Instances charged per second relative to the floor, and what a charged instance costs, by database size.

Each round runs the floor, one worker and two workers in turn, on fresh copies, for each size, and checks that all of
them wrote the same rows. After each cycle a second one finds nothing due. The guard and the audit then run on the last
copy of the round.
"""

from __future__ import annotations

from bench.audit import AuditRun, run_guard_and_audit
from bench.cycle import CycleRun, CycleSpec, run_cycles
from bench.fingerprint import differences, fingerprint
from bench.floor import FloorRun, run_floor
from bench.measurement import Aim, Measurement, Section, ratios
from bench.template import Template, fresh_copy, funded_template
from tests.support.servers import Server

RATIO_AIMS = {1: Aim(0.9, at_least=True), 2: Aim(1.4, at_least=True)}
GROWTH_AIM = Aim(1.15)
NOTHING_DUE_AIM = Aim(1.0, judged_by="worst")
AUDIT_AIMS = {1_000_000: Aim(10.0)}
MEMORY_GROWTH_AIM = Aim(2.0, judged_by="worst")
MIB = 2**20


class Rounds:
    """All rounds of one database size."""

    def __init__(self, template: Template, workers: list[int]) -> None:
        self.template = template
        self.floors: list[FloorRun] = []
        self.cycles: dict[int, list[CycleRun]] = {each: [] for each in workers}
        self.nothing_due: list[CycleRun] = []
        self.audits: list[AuditRun] = []

    def run_round(self, server: Server, batch_size: int, *, warm_up: bool) -> None:
        """Runs the floor and each number of workers once.

        Raises:
            SystemExit: they wrote different rows, or the guard or the audit found something.
        """
        with fresh_copy(server, self.template.name) as url:
            floor = run_floor(url, self.template.as_of)
            expected = fingerprint(url)
        if not warm_up:
            self.floors.append(floor)
        for workers, runs in self.cycles.items():
            with fresh_copy(server, self.template.name) as url:
                spec = CycleSpec(url, self.template.as_of.isoformat(), workers, batch_size, cycles=2)
                cycle, nothing_due = run_cycles(spec)
                if found := differences(expected, fingerprint(url)):
                    raise SystemExit(f"the floor and the cycle wrote different rows: {'; '.join(found)}")
                audits = [run_guard_and_audit(url)] if workers == max(self.cycles) else []
            if nothing_due.instances or nothing_due.debts or nothing_due.failures:
                raise SystemExit(f"the second cycle found something due: {nothing_due}")
            if not warm_up:
                runs.append(cycle)
                self.nothing_due.append(nothing_due)
                self.audits += audits
            print(
                f"  {self.template.instances:>9,} {'warm-up' if warm_up else 'round  '} {_workers(workers)}"
                f" {cycle.seconds:.2f} s, floor {floor.seconds:.2f} s, nothing due {nothing_due.seconds:.3f} s",
                flush=True,
            )

    def measurements(self) -> list[Measurement]:
        size = f"{self.template.instances:,}"
        floor = [each.instances / each.seconds for each in self.floors]
        floor_wal = tuple(each.wal_bytes / each.instances for each in self.floors)
        made = [
            Measurement(f"{size}: floor", "instances/s", tuple(floor)),
            Measurement(f"{size}: floor, WAL per instance", "bytes", floor_wal),
        ]
        for workers, runs in self.cycles.items():
            name = f"{size}: {_workers(workers)}"
            rate = [each.instances / each.seconds for each in runs]
            wal = tuple(each.wal_bytes / each.instances for each in runs)
            made += [
                Measurement(name, "instances/s", tuple(rate)),
                Measurement(f"{name}, rate relative to the floor", "", ratios(rate, floor), RATIO_AIMS.get(workers)),
                Measurement(f"{name}, time per instance", "µs", self.microseconds(workers)),
                Measurement(
                    f"{name}, longest transaction", "ms", tuple(1000 * max(each.transactions) for each in runs)
                ),
                Measurement(f"{name}, WAL per instance", "bytes", wal),
                Measurement(f"{name}, controller's peak memory", "MiB", tuple(each.peak_bytes / MIB for each in runs)),
                Measurement(f"{name}, controller's CPU time", "s", tuple(each.processor_seconds for each in runs)),
            ]
        payments = [each.instances for each in self.cycles[max(self.cycles)]]
        guard = tuple(1e6 * each.guard_seconds / paid for each, paid in zip(self.audits, payments, strict=True))
        audits = tuple(each.audit_seconds for each in self.audits)
        nothing_due = tuple(each.seconds for each in self.nothing_due)
        return [
            *made,
            Measurement(f"{size}: cycle with nothing due", "s", nothing_due, NOTHING_DUE_AIM),
            Measurement(f"{size}: guard, time per payment", "µs", guard),
            Measurement(f"{size}: whole audit", "s", audits, AUDIT_AIMS.get(self.template.instances)),
        ]

    def microseconds(self, workers: int) -> tuple[float, ...]:
        """A cycle's time divided by its charged instances, for each round."""
        return tuple(1e6 * each.seconds / each.instances for each in self.cycles[workers])


def throughput(server: Server, sizes: list[int], rounds: int, workers: list[int], batch_size: int) -> Section:
    """Measures all sizes in turn. With several sizes, also compares the largest with the next smaller one."""
    by_size = [Rounds(funded_template(server, size), workers) for size in sizes]
    for number in range(rounds + 1):
        for each in by_size:
            each.run_round(server, batch_size, warm_up=number == 0)
    measurements = [measurement for each in by_size for measurement in each.measurements()]
    if len(by_size) > 1:
        measurements += [_time_growth(by_size[-2], by_size[-1], max(workers)), _memory_growth(by_size, max(workers))]
    return Section(
        "throughput",
        "Throughput",
        f"Batches of {batch_size:,}. Every wallet can pay, as the floor assumes. In every round the floor and the"
        " cycles write the same rows. Ratios compare runs of the same round.",
        tuple(measurements),
    )


def _workers(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


def _time_growth(less: Rounds, more: Rounds, workers: int) -> Measurement:
    name = (
        f"time per instance at {more.template.instances:,} relative to {less.template.instances:,}, {workers} workers"
    )
    return Measurement(name, "", ratios(more.microseconds(workers), less.microseconds(workers)), GROWTH_AIM)


def _memory_growth(by_size: list[Rounds], workers: int) -> Measurement:
    least, most = by_size[0], by_size[-1]
    grown = tuple(
        (more.peak_bytes - less.peak_bytes) / MIB
        for more, less in zip(most.cycles[workers], least.cycles[workers], strict=True)
    )
    name = f"controller's peak memory at {most.template.instances:,} minus that at {least.template.instances:,}"
    return Measurement(name, "MiB", grown, MEMORY_GROWTH_AIM)
