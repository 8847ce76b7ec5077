"""The regression check behind `make bench-check`: a short run that fails if a cycle or a failover has become slow.

Times depend on the machine, so cycle times are compared with the floor's in the same round. Reads are counted, not
timed: the server's row counts reveal a plan that reads the whole history, on any machine. A failover is compared with
the time that the same server needs to grant a lock whose holder was killed. The bounds in bench/bounds.json leave room
for noise.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from bench.cycle import CycleSpec, run_cycles
from bench.failover import kills_at_rest
from bench.floor import run_floor
from bench.grant import grant_seconds
from bench.template import Template, fresh_copy, funded_template
from tests.support.servers import Server, migrated_database
from tests.support.waiting import eventually

BOUNDS: Final = Path(__file__).with_name("bounds.json")
#: The cycle's process may take this long to start on a busy machine.
START_SECONDS: Final = 10.0
#: A cycle is killed when it takes this many times as long as its bound allows.
TIMEOUT_FACTOR: Final = 5

_OTHER_SESSIONS: Final = """
select from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and backend_type = 'client backend'
"""
_ROWS_READ: Final = """
select relname, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) from pg_stat_user_tables where relname = any (%s)
"""


class TooSlowError(Exception):
    """A cycle was killed because it took several times as long as it may."""


@dataclass(frozen=True)
class Bounds:
    """The contents of bounds.json.

    Attributes:
        instances: due in the test database.
        rounds: after a warm-up.
        history_rows_per_instance: hours billed long ago, which a cycle must not read.
        ratio_to_floor: lowest allowed rate relative to the floor, by number of workers.
        nothing_due_seconds: longest allowed cycle with nothing due.
        rows_read_per_instance: most rows to read for a charged instance, by table.
        kills: of a leader at rest, each beside one of a process that holds nothing but a lock.
        first_charge_to_grant: highest allowed time from the first kill to the next leader's first charge, relative to
            that from the second kill to the grant of the lock.
    """

    instances: int
    rounds: int
    history_rows_per_instance: int
    ratio_to_floor: Mapping[str, float]
    nothing_due_seconds: float
    rows_read_per_instance: Mapping[str, float]
    kills: int
    first_charge_to_grant: float

    @classmethod
    def load(cls) -> Self:
        return cls(**json.loads(BOUNDS.read_text("utf-8")))


@dataclass(frozen=True)
class CheckResult:
    """What was measured, with the keys of `Bounds`."""

    ratio_to_floor: Mapping[str, float]
    nothing_due_seconds: float
    rows_read_per_instance: Mapping[str, float]
    first_charge_to_grant: float


def findings(result: CheckResult, bounds: Bounds) -> list[str]:
    """A message for each bound that is broken. Pure."""
    found = [
        f"{workers} worker(s): {ratio:.2f} of the floor's rate, bound {bounds.ratio_to_floor[workers]:.2f}"
        for workers, ratio in result.ratio_to_floor.items()
        if ratio < bounds.ratio_to_floor[workers]
    ]
    if result.nothing_due_seconds > bounds.nothing_due_seconds:
        found.append(
            f"a cycle with nothing due: {result.nothing_due_seconds:.2f} s, bound {bounds.nothing_due_seconds:.2f} s"
        )
    if result.first_charge_to_grant > bounds.first_charge_to_grant:
        found.append(
            f"kill -9 to the next leader's first charge: {result.first_charge_to_grant:.1f} times the server's own"
            f" grant, bound {bounds.first_charge_to_grant:g}"
        )
    return found + [
        f"{rows:.1f} rows of {table} read per instance, bound {bounds.rows_read_per_instance[table]:g}"
        for table, rows in result.rows_read_per_instance.items()
        if rows > bounds.rows_read_per_instance[table]
    ]


def measure(server: Server, bounds: Bounds, batch_size: int) -> CheckResult:
    """Measures on a database with years of history. A machine with one processor skips two workers.

    Raises:
        TooSlowError: a cycle takes `TIMEOUT_FACTOR` times as long as its bound allows.
    """
    template = funded_template(server, bounds.instances, bounds.history_rows_per_instance)
    first_charge_to_grant = _first_charge_to_grant(server, bounds.kills)
    workers = ["1"] if os.cpu_count() == 1 else list(bounds.ratio_to_floor)
    rounds: list[CheckResult] = []
    for _ in range(bounds.rounds + 1):
        with fresh_copy(server, template.name) as url:
            floor = run_floor(url, template.as_of)
        made = {
            each: _cycle(server, template, each, batch_size, bounds=bounds, floor_seconds=floor.seconds)
            for each in workers
        }
        rounds.append(
            CheckResult(
                {each: rate * floor.seconds / floor.instances for each, (rate, _, _) in made.items()},
                max(nothing_due for _, nothing_due, _ in made.values()),
                {table: max(read[table] for _, _, read in made.values()) for table in bounds.rows_read_per_instance},
                first_charge_to_grant,
            )
        )
    del rounds[0]  # the warm-up
    return CheckResult(
        {each: statistics.median(one.ratio_to_floor[each] for one in rounds) for each in workers},
        statistics.median(one.nothing_due_seconds for one in rounds),
        rounds[-1].rows_read_per_instance,
        first_charge_to_grant,
    )


def _first_charge_to_grant(server: Server, kills: int) -> float:
    """The ratio of the medians of both times. Each pair is measured within a second."""
    charges, grants = [], []
    with migrated_database(server) as url:
        for _, charge in kills_at_rest(url, kills):
            charges.append(charge)
            grants.append(grant_seconds(url))
    print(f"  first charge {statistics.median(charges):.3f} s, grant {statistics.median(grants):.4f} s")
    return statistics.median(charges) / statistics.median(grants)


def _cycle(
    server: Server, template: Template, workers: str, batch_size: int, *, bounds: Bounds, floor_seconds: float
) -> tuple[float, float, dict[str, float]]:
    """Instances charged per second, seconds of a cycle with nothing due, and rows read per instance by table."""
    tables = list(bounds.rows_read_per_instance)
    timeout = START_SECONDS + TIMEOUT_FACTOR * floor_seconds / bounds.ratio_to_floor[workers]
    with fresh_copy(server, template.name) as url:
        before = _rows_read(url, tables)
        try:
            cycle, nothing_due = run_cycles(
                CycleSpec(url, template.as_of.isoformat(), int(workers), batch_size, cycles=2), timeout
            )
        except subprocess.TimeoutExpired:
            raise TooSlowError(
                f"{workers} worker(s): not finished after {timeout:.0f} s; the floor took {floor_seconds:.1f} s"
            ) from None
        after = _rows_read(url, tables)
    read = {table: (after[table] - before[table]) / cycle.instances for table in tables}
    return cycle.instances / cycle.seconds, nothing_due.seconds, read


def _rows_read(url: str, tables: list[str]) -> dict[str, Any]:
    """Rows read so far, by table. Waits for other sessions to end, since each reports its counts when it ends."""
    with psycopg.connect(url, autocommit=True) as connection:
        eventually(lambda: connection.execute(_OTHER_SESSIONS.encode()).fetchone() is None, "the cycle's sessions end")
        return dict(connection.execute(_ROWS_READ.encode(), [tables]).fetchall())
