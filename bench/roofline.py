"""How close a cycle comes to what the server can write at all.

The roofline copies the same payments and periods into the same tables and makes the same two updates, with the same
keys, indexes and triggers. It computes nothing: every value is known in advance. Its time is the price of the rows, and
no billing can be faster in one session.
"""

from __future__ import annotations

import time
from typing import Any, Final

import psycopg

from bench.cycle import CycleSpec, run_cycle
from bench.floor import run_floor
from bench.measurement import Measurement, Section, ratios
from bench.template import fresh_copy, funded_template
from tests.support.servers import Server

#: Tables whose new rows are copied, with the condition that finds them.
_COPIED: Final = {
    "payment_transactions": "metadata ->> 'controller' is not null",
    "vps_billing_cycles": "metadata ->> 'controller' is not null",
}
#: Tables whose rows are updated, with the column that changes.
_UPDATED: Final = {"vps_instances": "last_billed_at", "wallets": "balance"}


def roofline(
    server: Server, instances: int, rounds: int, batch_size: int, workers: tuple[int, ...] = (1, 2, 4)
) -> Section:
    """Measures the roofline, the floor, and cycles with one, two and four workers, in turn on fresh copies."""
    template = funded_template(server, instances)
    bare: list[float] = []
    floor: list[float] = []
    cycles: dict[int, list[float]] = {each: [] for each in workers}
    for _ in range(rounds):
        with fresh_copy(server, template.name) as url:
            made = run_floor(url, template.as_of)
            floor.append(made.instances / made.seconds)
            rows = _Rows.read(url)
        with fresh_copy(server, template.name) as url:
            bare.append(made.instances / rows.write(url))
        for number, rates in cycles.items():
            with fresh_copy(server, template.name) as url:
                run = run_cycle(CycleSpec(url, template.as_of.isoformat(), number, batch_size))
                rates.append(run.instances / run.seconds)
        print(f"  roofline {bare[-1]:,.0f}, floor {floor[-1]:,.0f} instances/s", flush=True)
    return Section(
        "roofline",
        "Roofline",
        "The roofline copies the rows that the floor wrote, and makes the same updates from prepared tables, in one"
        f" session and one transaction. {instances:,} instances; cycles in batches of {batch_size:,}. Ratios compare"
        " runs of the same round.",
        (
            Measurement("roofline", "instances/s", tuple(bare)),
            Measurement("floor, relative to the roofline", "", ratios(floor, bare)),
            *(
                Measurement(
                    f"cycle with {number} worker{'s'[: number > 1]}, relative to the roofline", "", ratios(rates, bare)
                )
                for number, rates in cycles.items()
            ),
        ),
    )


class _Rows:
    """What a run has written: the new rows as COPY's text, and the changed values by id."""

    def __init__(self, copied: dict[str, bytes], updated: dict[str, bytes]) -> None:
        self._copied = copied
        self._updated = updated

    @classmethod
    def read(cls, url: str) -> _Rows:
        """Reads them from the database in which the run took place, in the order in which it wrote them."""
        with psycopg.connect(url) as connection:
            return cls(
                {
                    table: _out(connection, f"select * from {table} where {condition} order by ctid")  # noqa: S608 - ours
                    for table, condition in _COPIED.items()
                },
                {
                    table: _out(connection, f"select id, {column} from {table} order by ctid")  # noqa: S608 - ours
                    for table, column in _UPDATED.items()
                },
            )

    def write(self, url: str) -> float:
        """Writes the same rows into a fresh copy. Returns the seconds that the copies, updates and the commit took."""
        with psycopg.connect(url) as connection:
            for table, column in _UPDATED.items():
                connection.execute(
                    f"create temporary table new_{table} as select id, {column} from {table} limit 0".encode()  # noqa: S608
                )
                _in(connection, f"new_{table}", self._updated[table])
                connection.execute(f"analyze new_{table}".encode())
            connection.commit()
            began = time.perf_counter()
            for table, column in _UPDATED.items():
                connection.execute(
                    f"update {table} t set {column} = n.{column} from new_{table} n"  # noqa: S608 - ours
                    f" where n.id = t.id and n.{column} is distinct from t.{column}".encode()
                )
            for table, text in self._copied.items():
                _in(connection, table, text)
            connection.commit()
            return time.perf_counter() - began


def _out(connection: psycopg.Connection[Any], query: str) -> bytes:
    with connection.cursor().copy(f"copy ({query}) to stdout".encode()) as copy:
        return b"".join(bytes(each) for each in copy)


def _in(connection: psycopg.Connection[Any], table: str, text: bytes) -> None:
    with connection.cursor().copy(f"copy {table} from stdin".encode()) as copy:
        copy.write(text)
