"""Instances charged a second, against the floor (bench/floor.sql), in turn A B A B on fresh copies of one database.

    python bench/throughput.py [--instances 100000] [--rounds 5] [--workers 1 2] [--json FILE]

The server keeps its durable defaults: fsync and synchronous_commit on. Each figure is min, median and max of the rounds
after a warm-up; what counts is the ratio of medians within one run.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from controller.billing.audit import audit
from controller.billing.cycle import Cycle, CycleSettings
from controller.billing.ledger import Ledger
from controller.billing.values import Outcome, Pricing
from controller.demo import sample
from controller.demo.server import Server, find_installations
from controller.postgres import migrations, queries
from controller.postgres.connections import FOREGROUND, WORKER, Database

DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "2GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "wal_compression": "off",
}
FLOOR = Path(__file__).with_name("floor.sql")


@dataclass(frozen=True)
class Leading:
    """The benchmark's own leadership: nobody else is there."""

    term: int

    def still_leads(self) -> bool:
        """Always."""
        return True


@dataclass(frozen=True)
class Figure:
    """Seconds of each round, and how many instances were charged in one."""

    name: str
    instances: int
    seconds: list[float]

    @property
    def per_second(self) -> float:
        """Instances a second, by the median."""
        return self.instances / statistics.median(self.seconds)


@contextmanager
def fresh_copy(server: Server, template: str) -> Iterator[str]:
    """A database of its own, removed afterwards."""
    url = server.create_database("round", template)
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("checkpoint")
        yield url
    finally:
        server.drop_database("round")


def make_template(server: Server, instances: int) -> str:
    """The ContainerStacks schema with plausible rows; every wallet can pay, since the floor assumes it."""
    url = server.create_database("template_bench")
    with psycopg.connect(url) as connection:
        sample.create_schema(connection)
        sample.create_data(connection, sample.Size(max(40, instances // 20), instances))
        connection.execute(
            "delete from organizations o where not exists (select from wallets w where w.organization_id = o.id)"
        )
        connection.execute("update wallets set balance = balance + 1000000")
        connection.execute("update vps_plans set base_price = 5 where base_price is null")
        connection.execute(
            "update vps_instances i set plan_id = (select id::text from vps_plans order by id limit 1)"
            " where not exists (select from vps_plans p where i.plan_id in (p.id::text, p.provider_plan_id))"
        )
    migrations.migrate_url(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")
    return "template_bench"


def run_floor(url: str) -> tuple[int, float]:
    """Charges everything by floor.sql; instances and seconds."""
    with psycopg.connect(url) as connection:
        began = time.perf_counter()
        instances = 0
        for statement in FLOOR.read_text("utf-8").split(";\n"):
            instances = connection.execute(statement.encode()).rowcount
        connection.commit()
        return instances, time.perf_counter() - began


def run_cycle(url: str, workers: int, batch_size: int) -> tuple[int, float]:
    """Charges everything by the controller's own cycle, audited."""
    statements = queries.load()
    database = Database(lambda: url, "DATABASE_URL", "bench-1")
    pricing = Pricing(Decimal("19.71"), "USD")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update billing_leadership set term = 1")
        connection.execute("insert into billing_terms values (1, 'bench-1', clock_timestamp())")
    cycle = Cycle(
        lambda: Ledger(database.connect(FOREGROUND), statements, pricing),
        lambda: Ledger(database.connect(WORKER), statements, pricing),
        CycleSettings(workers=workers, batch_size=batch_size, holder="bench-1"),
        lambda: True,
        time.sleep,
    )
    result = cycle.run(Leading(1))
    if result.outcome is not Outcome.COMPLETED or result.figures.debts or result.figures.failures:
        raise SystemExit(f"the cycle went wrong: {result}")
    with database.connect() as connection:
        if not audit(connection, statements).clean:
            raise SystemExit("the audit found violations")
    return result.figures.instances, result.seconds


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=int(os.environ.get("SCALE", "100000")))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    installation = find_installations()[0]
    with Server(installation, DURABLE) as server:
        template = make_template(server, arguments.instances)
        contenders: dict[str, Callable[[str], tuple[int, float]]] = {"floor": run_floor}
        for workers in arguments.workers:
            name = f"{workers} worker{'s' if workers > 1 else ''}"
            contenders[name] = partial(run_cycle, workers=workers, batch_size=arguments.batch_size)
        figures = {name: Figure(name, 0, []) for name in contenders}
        for turn in range(arguments.rounds + 1):
            for name, contender in contenders.items():
                with fresh_copy(server, template) as url:
                    instances, seconds = contender(url)
                print(
                    f"{'warm-up' if turn == 0 else f'round {turn}'}  {name:<10} {instances} in {seconds:.2f} s",
                    flush=True,
                )
                if turn:
                    figures[name] = Figure(name, instances, [*figures[name].seconds, seconds])
    report(figures, installation.title, arguments.instances, arguments.json)


def report(figures: dict[str, Figure], server: str, instances: int, to: Path | None) -> None:
    """The table, and the same as JSON."""
    floor = figures["floor"].per_second
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {server}"
    print(f"\n{instances} instances; {machine}\n")
    print(f"{'':<12}{'min s':>8}{'median s':>10}{'max s':>8}{'a second':>10}{'x floor':>9}")
    rows: list[dict[str, Any]] = []
    for figure in figures.values():
        low, middle, high = min(figure.seconds), statistics.median(figure.seconds), max(figure.seconds)
        ratio = figure.per_second / floor
        print(f"{figure.name:<12}{low:>8.2f}{middle:>10.2f}{high:>8.2f}{figure.per_second:>10.0f}{ratio:>9.2f}")
        rows.append({"name": figure.name, "seconds": figure.seconds, "per_second": figure.per_second, "ratio": ratio})
    if to:
        to.write_text(
            json.dumps({"machine": machine, "instances": instances, "figures": rows}, indent=2) + "\n", "utf-8"
        )


if __name__ == "__main__":
    main()
