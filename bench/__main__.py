"""The command line: `python -m bench SUITE`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import structlog

from bench import report
from bench.anatomy import anatomy
from bench.catchup import catchup
from bench.check import Bounds, TooSlowError, findings, measure
from bench.costs import costs
from bench.failover import failover
from bench.figures import Section
from bench.kindness import kindness
from bench.machine import describe
from bench.rest import rest
from bench.template import durable_server
from bench.throughput import throughput
from controller.billing.cycle import CycleSettings
from controller.demo.server import Server

SUITES = {
    "all": "throughput, kindness, catchup, failover, rest",
    "throughput": "instances charged a second against the floor, memory, WAL, by size; a cycle with nothing due",
    "kindness": "the application's top-ups while a cycle runs",
    "catchup": "a week's backlog",
    "failover": "kill -9 and planned handover",
    "rest": "memory, processor, statements and connections of replicas with nothing to do; time to Ready",
    "costs": "where a cycle's time goes: what it takes with one thing changed, in turn",
    "anatomy": "where a batch's time goes: EXPLAIN ANALYZE of one",
    "check": "the guard: fails when a bound of bench/bounds.json is broken; under two minutes",
}


def main() -> int:
    """Measures, prints tables, writes what is asked for; 1 when the guard finds something."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("error"))
    arguments = _arguments()
    if arguments.suite == "check":
        return _check(arguments)
    with durable_server(arguments.postgres) as server:
        machine = describe(server)
        sections = []
        for section in _sections(server, arguments):
            sections.append(section)
            print(f"\n{report.as_text(section)}", flush=True)
            if arguments.write:
                report.write_document([section], machine)
    print("\n".join(machine.values()))
    if arguments.json:
        arguments.json.write_text(report.as_json(sections, machine), "utf-8")
    missed = [figure.name for section in sections for figure in section.missed]
    print(f"aims missed: {', '.join(missed) if missed else 'none'}")
    return 0


def _sections(server: Server, arguments: argparse.Namespace) -> Iterator[Section]:
    suite, size, rounds = arguments.suite, arguments.instances, arguments.rounds
    everything = suite == "all"
    sizes = sorted({size, *arguments.sizes, *(each for each in (10_000, 100_000) if everything and each < size)})
    workers, batch_size = arguments.workers, arguments.batch_size
    if everything or suite == "throughput":
        yield throughput(server, sizes, rounds, workers, batch_size)
    if everything or suite == "kindness":
        yield kindness(server, min(size, 100_000), rounds, max(workers), batch_size)
    if everything or suite == "catchup":
        yield catchup(server, [each for each in sizes if each >= min(size, 100_000)], rounds, max(workers), batch_size)
    if everything or suite == "failover":
        yield failover(server, arguments.runs)
    if everything or suite == "rest":
        yield rest(server, rounds, arguments.window)
    if suite == "costs":
        yield costs(server, size, rounds, max(workers), batch_size, only=arguments.only)
    if suite == "anatomy":
        yield anatomy(server, size, rounds, batch_size)


def _check(arguments: argparse.Namespace) -> int:
    bounds = Bounds.load()
    with durable_server(arguments.postgres) as server:
        try:
            measured = measure(server, bounds, arguments.batch_size)
        except TooSlowError as error:
            found = [str(error)]
        else:
            print(measured)
            found = findings(measured, bounds)
    if found:
        print(f"bench-check: {'; '.join(found)}", file=sys.stderr)
    return 1 if found else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures the controller.")
    suites = parser.add_subparsers(dest="suite", required=True, metavar="SUITE")
    scale = int(os.environ.get("SCALE", "100000"))
    for name, says in SUITES.items():
        suite = suites.add_parser(name, help=says, description=says)
        suite.add_argument("--instances", type=int, default=scale, help="default: SCALE, or 100000")
        suite.add_argument("--sizes", type=int, nargs="+", default=[], help="further sizes, measured in turn")
        suite.add_argument("--rounds", type=int, default=5, help="after a warm-up")
        suite.add_argument("--runs", type=int, default=20, help="of failover and handover")
        suite.add_argument("--window", type=float, default=30.0, help="seconds of a window at rest")
        suite.add_argument("--workers", type=int, nargs="+", default=[1, 2])
        suite.add_argument("--batch-size", type=int, default=CycleSettings.batch_size)
        suite.add_argument("--only", nargs="+", default=[], help="changes of costs to measure, by name")
        suite.add_argument("--postgres", choices=["installed", "embedded"], help="default: the newest installed one")
        suite.add_argument("--json", type=Path, metavar="FILE")
        suite.add_argument("--write", action="store_true", help="fill the tables of docs/performance.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
