"""Instances charged a second against the floor (floor.sql), and what a charged instance costs, by size.

Floor, one worker, two workers, size by size, in turn, on fresh copies; the contents that all of them leave are compared
in every round. After each cycle a second one finds nothing due; after a round's last one the guard looks at what was
charged, and the whole database is audited.
"""

from __future__ import annotations

from bench.cycle import CycleRun, Order, run_cycles
from bench.figures import Aim, Figure, Section, ratios
from bench.fingerprint import differences, fingerprint
from bench.floor import FloorRun, run_floor
from bench.template import Template, fresh_copy, make_payable
from bench.watch import WatchRun, watch
from controller.demo.server import Server

RATIO_AIMS = {1: Aim(0.9, at_least=True), 2: Aim(1.4, at_least=True)}
FLAT = Aim(1.2)
NOTHING_DUE = Aim(1.0, held="worst")
MIB = 2**20


class Rounds:
    """What the rounds of one size have given so far."""

    def __init__(self, template: Template, workers: list[int]) -> None:
        self.template = template
        self.floors: list[FloorRun] = []
        self.cycles: dict[int, list[CycleRun]] = {each: [] for each in workers}
        self.idle: list[CycleRun] = []
        self.watched: list[WatchRun] = []

    def turn(self, server: Server, batch_size: int, *, warm_up: bool) -> None:
        """One of each, on copies of their own.

        Raises:
            SystemExit: they did not do the same work, or the audit found something.
        """
        with fresh_copy(server, self.template) as url:
            floor = run_floor(url, self.template.as_of)
            expected = fingerprint(url)
        if not warm_up:
            self.floors.append(floor)
        for workers, kept in self.cycles.items():
            with fresh_copy(server, self.template) as url:
                order = Order(url, self.template.as_of.isoformat(), workers, batch_size, cycles=2)
                cycle, idle = run_cycles(order)
                if differ := differences(expected, fingerprint(url)):
                    raise SystemExit(f"floor and cycle did not do the same work: {'; '.join(differ)}")
                watched = [watch(url)] if workers == max(self.cycles) else []
            if idle.instances or idle.debts or idle.failures:
                raise SystemExit(f"the second cycle found something due: {idle}")
            if not warm_up:
                kept.append(cycle)
                self.idle.append(idle)
                self.watched += watched
            print(
                f"  {self.template.instances:>9,} {'warm-up' if warm_up else 'round  '} {workers} worker(s)"
                f" {cycle.seconds:.2f} s, floor {floor.seconds:.2f} s, nothing due {idle.seconds:.3f} s",
                flush=True,
            )

    def figures(self) -> list[Figure]:
        """Of this size."""
        size = f"{self.template.instances:,}"
        floor = [each.instances / each.seconds for each in self.floors]
        made = [
            Figure(f"{size}: floor", "instances a second", tuple(floor)),
            Figure(f"{size}: floor, WAL an instance", "bytes", tuple(f.wal_bytes / f.instances for f in self.floors)),
        ]
        for workers, runs in self.cycles.items():
            name = f"{size}: {workers} worker{'s' if workers > 1 else ''}"
            speed = [each.instances / each.seconds for each in runs]
            made += [
                Figure(name, "instances a second", tuple(speed)),
                Figure(f"{name}, to the floor", "times", ratios(speed, floor), RATIO_AIMS.get(workers)),
                Figure(f"{name}, an instance", "µs", self.microseconds(workers)),
                Figure(f"{name}, longest transaction", "ms", tuple(1000 * max(each.transactions) for each in runs)),
                Figure(f"{name}, WAL an instance", "bytes", tuple(each.wal_bytes / each.instances for each in runs)),
                Figure(f"{name}, controller's peak memory", "MiB", tuple(each.peak_bytes / MIB for each in runs)),
                Figure(f"{name}, controller's processor time", "s", tuple(each.processor_seconds for each in runs)),
            ]
        charged = [each.instances for each in self.cycles[max(self.cycles)]]
        guard = tuple(1e6 * each.guard / payments for each, payments in zip(self.watched, charged, strict=True))
        return [
            *made,
            Figure(f"{size}: nothing due", "s", tuple(each.seconds for each in self.idle), NOTHING_DUE),
            Figure(f"{size}: guard, a payment", "µs", guard),
            Figure(f"{size}: whole audit", "s", tuple(each.audit for each in self.watched)),
        ]

    def microseconds(self, workers: int) -> tuple[float, ...]:
        """That a charged instance takes of a cycle's time."""
        return tuple(1e6 * each.seconds / each.instances for each in self.cycles[workers])


def throughput(server: Server, sizes: list[int], rounds: int, workers: list[int], batch_size: int) -> Section:
    """All sizes in turn; the comparison of the sizes with the largest two."""
    everything = [Rounds(make_payable(server, size), workers) for size in sizes]
    for number in range(rounds + 1):
        for each in everything:
            each.turn(server, batch_size, warm_up=number == 0)
    figures = [figure for each in everything for figure in each.figures()]
    if len(everything) > 1:
        figures += _flatness(everything[-2], everything[-1], max(workers))
        figures += _memory(everything[0], everything[-1], max(workers))
    return Section(
        "throughput",
        "Throughput",
        f"Batches of {batch_size:,}. Every wallet can pay, as the floor assumes; floor and cycle leave the same rows in"
        " every round. Ratios are of runs in the same round.",
        tuple(figures),
    )


def _flatness(less: Rounds, more: Rounds, workers: int) -> list[Figure]:
    name = f"an instance at {more.template.instances:,} to one at {less.template.instances:,}, {workers} workers"
    return [Figure(name, "times", ratios(more.microseconds(workers), less.microseconds(workers)), FLAT)]


def _memory(least: Rounds, most: Rounds, workers: int) -> list[Figure]:
    grown = [
        (more.peak_bytes - less.peak_bytes) / MIB
        for more, less in zip(most.cycles[workers], least.cycles[workers], strict=True)
    ]
    name = f"controller's peak memory at {most.template.instances:,} beyond that at {least.template.instances:,}"
    return [Figure(name, "MiB", tuple(grown), Aim(2.0, held="worst"))]
