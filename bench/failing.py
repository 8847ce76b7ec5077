"""A cycle in which charges fail: all of them, or those of every other organization."""

from __future__ import annotations

from typing import Final

import psycopg

from bench.cycle import CycleRun, CycleSpec, run_cycle
from bench.measurement import Aim, Measurement, Section
from bench.template import fresh_copy, funded_template
from tests.support.servers import Server

#: A trigger refuses the payments of some organizations.
_REFUSE: Final = (
    """
    create function refuse() returns trigger language plpgsql as
    $$ begin raise sqlstate 'AP001' using message = 'refused'; end $$
    """,
    """
    create trigger refuse before insert on payment_transactions
    for each row when ({condition}) execute function refuse()
    """,
)
_EVERY_OTHER: Final = "hashtext(new.organization_id::text) % 2 = 0"
ALL_FAIL_SECONDS: Final = Aim(10, judged_by="worst")
HALF_FAIL_SECONDS: Final = Aim(3600, judged_by="worst")


def failing(server: Server, instances: int, rounds: int, workers: int, batch_size: int) -> Section:
    """Measures cycles in which everything fails, and cycles in which half of the organizations fail."""
    template = funded_template(server, instances)

    def cycle(condition: str) -> CycleRun:
        with fresh_copy(server, template.name) as url:
            with psycopg.connect(url) as connection:
                for statement in _REFUSE:
                    connection.execute(statement.format(condition=condition).encode())
            return run_cycle(CycleSpec(url, template.as_of.isoformat(), workers, batch_size, may_fail=True))

    every = [cycle("true") for _ in range(rounds)]
    half = [cycle(_EVERY_OTHER) for _ in range(rounds)]
    return Section(
        "failing",
        "Cycles in which charges fail",
        f"A trigger refuses the payments of every organization, or of every other one. {instances:,} instances,"
        f" {workers} workers, batches of {batch_size:,}.",
        (
            Measurement("every charge fails: cycle", "s", tuple(each.seconds for each in every), ALL_FAIL_SECONDS),
            Measurement(
                "half of the organizations fail: cycle", "s", tuple(each.seconds for each in half), HALF_FAIL_SECONDS
            ),
            Measurement(
                "half of the organizations fail: instances charged", "", tuple(float(each.instances) for each in half)
            ),
            Measurement(
                "half of the organizations fail: instances failed", "", tuple(float(each.failures) for each in half)
            ),
        ),
    )
