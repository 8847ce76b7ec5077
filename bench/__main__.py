"""The command line: `python -m bench SUITE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import structlog

from bench import report
from bench.breakdown import breakdown
from bench.catchup import catchup
from bench.check import Bounds, TooSlowError, findings, measure
from bench.compare import compare
from bench.costs import costs
from bench.failing import failing
from bench.failover import failover
from bench.idle import idle
from bench.machine import describe
from bench.measurement import Section
from bench.record import Record
from bench.roofline import roofline
from bench.safeguards import safeguards
from bench.server import durable_server, durable_servers
from bench.throughput import throughput
from bench.topup_latency import topup_latency
from controller.billing.cycle import CycleSettings
from tests.support.servers import Server

SUITES = {
    "all": "throughput, topup_latency, catchup, failover and idle",
    "throughput": "instances charged per second relative to the floor, memory and WAL, by database size",
    "topup_latency": "the application's top-ups with and without a running cycle",
    "catchup": "a cycle after a week's outage",
    "failover": "kill -9 of the leader, and planned handover",
    "idle": "memory, CPU time, statements and connections of idle replicas; time to Ready",
    "costs": "a cycle's time with one thing changed, for each of many changes",
    "safeguards": "what each safeguard of a charge costs",
    "roofline": "the floor and cycles relative to copying the same rows",
    "failing": "a cycle in which all charges fail, or those of half of the organizations",
    "breakdown": "where a batch's time goes, by EXPLAIN ANALYZE",
    "compare": "throughput of this checkout relative to another checkout; fails if it is more than 3%% slower",
    "check": "the regression check: fails if a bound of bench/bounds.json is broken; two minutes on an idle machine",
}
SMALL, MEDIUM = 10_000, 100_000


def main() -> int:
    """Runs a suite. Returns 1 if `check` or `compare` finds a regression."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every process that a suite starts compiles all its modules
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    arguments = _arguments()
    if arguments.suite == "check":
        return _check(arguments)
    results: list[dict[str, Section]] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(each) for each in durable_servers(arguments.postgres)]
        titles = [each.installation.title for each in servers]
        machine = describe(servers)
        # one suite after the other, and each on one server after the other: nothing else is busy meanwhile
        for sections in zip(*(_sections(each, arguments) for each in servers), strict=True):
            results.append(dict(zip(titles, sections, strict=True)))
            print(f"\n{report.as_text(results[-1])}", flush=True)
            if arguments.write:
                print(f"wrote {report.write_result(results[-1], machine)}")
    print("\n".join(machine.values()))
    if arguments.json:
        arguments.json.write_text(report.as_json(results, machine), "utf-8")
    missed = [each.label for sections in results for section in sections.values() for each in section.missed]
    print(f"aims missed: {', '.join(missed) if missed else 'none'}")
    return 1 if missed and arguments.suite == "compare" else 0


def _sections(server: Server, arguments: argparse.Namespace) -> Iterator[Section]:
    suite, rounds, workers, batch_size = arguments.suite, arguments.rounds, arguments.workers, arguments.batch_size
    everything = suite == "all"
    size = max(arguments.instances)
    sizes = sorted({*arguments.instances, *(each for each in (SMALL, MEDIUM) if everything and each < size)})
    if everything or suite == "throughput":
        yield throughput(server, sizes, rounds, workers, batch_size)
    if everything or suite == "topup_latency":
        yield topup_latency(server, min(size, MEDIUM), rounds, max(workers), batch_size)
    if everything or suite == "catchup":
        yield catchup(server, [each for each in sizes if each >= min(size, MEDIUM)], rounds, max(workers), batch_size)
    if everything or suite == "failover":
        yield failover(server, arguments.runs, Record(arguments.resume, server.installation.title))
    if everything or suite == "idle":
        yield idle(server, rounds, arguments.window)
    alone: dict[str, Callable[[], Section]] = {
        "costs": lambda: costs(server, size, rounds, max(workers), batch_size, only=arguments.only),
        "safeguards": lambda: safeguards(server, size, rounds, max(workers), batch_size),
        "roofline": lambda: roofline(server, size, rounds, batch_size),
        "failing": lambda: failing(server, size, rounds, max(workers), batch_size),
        "breakdown": lambda: breakdown(server, size, rounds, batch_size),
        "compare": lambda: compare(server, arguments.other, size, rounds, workers=workers, batch_size=batch_size),
    }
    if suite in alone:
        yield alone[suite]()


def _check(arguments: argparse.Namespace) -> int:
    bounds = Bounds.load()
    with durable_server(arguments.postgres) as server:
        try:
            result = measure(server, bounds, arguments.batch_size)
        except TooSlowError as error:
            found = [str(error)]
        else:
            print(result)
            found = findings(result, bounds)
    if found:
        print(f"bench-check: {'; '.join(found)}", file=sys.stderr)
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the controller.")
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    scale = int(os.environ.get("SCALE", MEDIUM))
    for name, description in SUITES.items():
        suite = suites.add_parser(name, help=description, description=description)
        if name == "compare":
            suite.add_argument("other", type=Path, metavar="OTHER_CHECKOUT", help="folder of the other checkout")
        if name == "costs":
            suite.add_argument("--only", nargs="+", default=[], help="parts of the names of the changes to measure")
        suite.add_argument("--instances", type=int, nargs="+", default=[scale], help="default: SCALE, or 100000")
        suite.add_argument("--rounds", type=int, default=5, help="after a warm-up; default: 5")
        suite.add_argument("--runs", type=int, default=20, help="kills and handovers; default: 20")
        suite.add_argument("--resume", type=Path, metavar="FILE", help="keep the runs of failover there, and continue")
        suite.add_argument("--window", type=float, default=30.0, help="seconds of an idle window; default: 30")
        suite.add_argument("--workers", type=int, nargs="+", default=[1, 2])
        suite.add_argument("--batch-size", type=int, default=CycleSettings.batch_size)
        suite.add_argument(
            "--postgres",
            choices=["installed", "embedded"],
            default="installed" if name == "breakdown" else None,  # the embedded one has no auto_explain
            help="default: installed" if name == "breakdown" else "default: both, side by side",
        )
        suite.add_argument("--json", type=Path, metavar="FILE", help="write every round's values")
        suite.add_argument("--write", action="store_true", help="write the tables to bench/results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
