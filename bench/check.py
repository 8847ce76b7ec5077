"""The guard: a small form of the throughput suite that fails when the cycle has become slow against the floor.

Times are only compared in turn with the floor's on the same machine. What a batch reads is not timed but counted: a
plan that reads the whole history is seen in the server's row counts, whatever the machine. bench/bounds.json has the
bounds, chosen from measured runs, see docs/performance.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from bench.cycle import Order, run_cycles
from bench.floor import run_floor
from bench.template import Template, fresh_copy, make_payable
from controller.demo.server import Server
from tests.faults.waiting import eventually

BOUNDS: Final = Path(__file__).with_name("bounds.json")

_OTHERS: Final = """
select from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
_ROWS_READ: Final = """
select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = any (%s)
"""


#: A cycle's process takes some seconds to begin on a busy machine.
START_SECONDS: Final = 10.0


class TooSlowError(Exception):
    """A cycle has not ended in several times the time that it may take."""


@dataclass(frozen=True)
class Bounds:
    """bounds.json. Ratios are by workers; rows by table, for each instance charged."""

    instances: int
    rounds: int
    history_rows_an_instance: int
    ratio_to_floor: Mapping[str, float]
    nothing_due_seconds: float
    rows_read_an_instance: Mapping[str, float]

    @classmethod
    def load(cls) -> Self:
        """From its file."""
        return cls(**json.loads(BOUNDS.read_text("utf-8")))


@dataclass(frozen=True)
class Measured:
    """What a run of the guard found, by the same keys."""

    ratio_to_floor: Mapping[str, float]
    nothing_due_seconds: float
    rows_read_an_instance: Mapping[str, float]


def findings(measured: Measured, bounds: Bounds) -> list[str]:
    """What has become too slow, a sentence each; nothing when all is well. Pure."""
    found = [
        f"{workers} worker(s) charge {ratio:.2f} times as fast as the floor, not {bounds.ratio_to_floor[workers]:.2f}"
        for workers, ratio in measured.ratio_to_floor.items()
        if ratio < bounds.ratio_to_floor[workers]
    ]
    if measured.nothing_due_seconds > bounds.nothing_due_seconds:
        found.append(
            f"a cycle with nothing due takes {measured.nothing_due_seconds:.2f} s, not {bounds.nothing_due_seconds:.2f}"
        )
    return found + [
        f"{rows:.1f} rows of {table} are read for an instance, not {bounds.rows_read_an_instance[table]:g}"
        for table, rows in measured.rows_read_an_instance.items()
        if rows > bounds.rows_read_an_instance[table]
    ]


def measure(server: Server, bounds: Bounds, batch_size: int) -> Measured:
    """On a database with years of history. One worker alone where there is one processor.

    Raises:
        TooSlowError: a cycle takes several times as long as its bound allows, and is not waited for.
    """
    template = make_payable(server, bounds.instances, bounds.history_rows_an_instance)
    workers = ["1"] if os.cpu_count() == 1 else list(bounds.ratio_to_floor)
    rounds: list[Measured] = []
    for _ in range(bounds.rounds + 1):
        with fresh_copy(server, template) as url:
            floor = run_floor(url, template.as_of)
        made = {
            each: _cycle(server, template, Order("", "", int(each), batch_size, cycles=2), bounds, floor.seconds)
            for each in workers
        }
        rounds.append(
            Measured(
                {each: rate * floor.seconds / floor.instances for each, (rate, _, _) in made.items()},
                max(idle for _, idle, _ in made.values()),
                {table: max(read[table] for _, _, read in made.values()) for table in bounds.rows_read_an_instance},
            )
        )
    del rounds[0]
    return Measured(
        {each: statistics.median(one.ratio_to_floor[each] for one in rounds) for each in workers},
        statistics.median(one.nothing_due_seconds for one in rounds),
        rounds[-1].rows_read_an_instance,
    )


def _cycle(
    server: Server, template: Template, order: Order, bounds: Bounds, floor_seconds: float
) -> tuple[float, float, dict[str, float]]:
    """Instances a second, seconds of a cycle with nothing due, rows read for an instance."""
    tables = list(bounds.rows_read_an_instance)
    patience_seconds = START_SECONDS + 5 * floor_seconds / bounds.ratio_to_floor[str(order.workers)]
    with fresh_copy(server, template) as url:
        before = _rows_read(url, tables)
        try:
            cycle, idle = run_cycles(replace(order, url=url, as_of=template.as_of.isoformat()), patience_seconds)
        except subprocess.TimeoutExpired:
            raise TooSlowError(
                f"{order.workers} worker(s) need more than {patience_seconds:.0f} s for what takes the floor"
                f" {floor_seconds:.1f} s"
            ) from None
        after = _rows_read(url, tables)
    read = {table: (after[table] - before[table]) / cycle.instances for table in tables}
    return cycle.instances / cycle.seconds, idle.seconds, read


def _rows_read(url: str, tables: list[str]) -> dict[str, Any]:
    """A session's counts are there once it has ended."""
    with psycopg.connect(url, autocommit=True) as connection:
        eventually(lambda: connection.execute(_OTHERS.encode()).fetchone() is None, "the cycle's sessions end")
        return dict(connection.execute(_ROWS_READ.encode(), [tables]).fetchall())
