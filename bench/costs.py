"""Where a cycle's time goes, and what was tried: the same cycle with one thing changed, in turn with the unchanged one.

What is changed here is changed in the copy alone. Much of it can't be had (the schema is the application's), but it
tells what the application's keys, triggers and indexes cost, and whether a setting would pay.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import psycopg

from bench.cycle import Order, run_cycle
from bench.figures import Figure, Section, ratios
from bench.reload import changed_settings
from bench.template import Template, fresh_copy, make_payable
from controller.demo.server import Server

_DROP_EACH: Final = """
do $$
declare
    each record;
begin
    for each in {names} loop
        execute format('alter table %s drop constraint %I', each.owner, each.name);
    end loop;
end
$$
"""
_FOREIGN_KEYS: Final = _DROP_EACH.replace(
    "{names}",
    "select conrelid::regclass as owner, conname as name from pg_constraint"
    " where contype = 'f' and conrelid in ('vps_billing_cycles'::regclass, 'payment_transactions'::regclass)",
)
_TRIGGERS: Final = _DROP_EACH.replace("drop constraint %I", "disable trigger %I").replace(
    "{names}", "select tgrelid::regclass as owner, tgname as name from pg_trigger where not tgisinternal"
)
_NO_DUE_INDEX: Final = "drop index idx_vps_instances_last_billed_at"
_BY_ORGANIZATION: Final = (
    "cluster vps_instances using idx_vps_instances_organization_id",
    "vacuum analyze vps_instances",
)
_RANDOM_IDS: Final = (
    "create or replace function billing_time_ordered_uuid(moment timestamptz) returns uuid"
    " language sql volatile parallel safe as $$ select gen_random_uuid() $$"
)


@dataclass(frozen=True)
class Change:
    """One thing that is different.

    Attributes:
        sql: for the copy, before the cycle.
        server: settings of the whole server meanwhile.
        session: settings of the workers' sessions.
        snapshot: somebody's transaction with a snapshot is open meanwhile.
    """

    name: str
    sql: tuple[str, ...] = ()
    server: dict[str, str] = field(default_factory=dict)
    session: dict[str, str] = field(default_factory=dict)
    workers: int | None = None
    batch_size: int | None = None
    snapshot: bool = False

    def applied(self, order: Order) -> Order:
        """To what is ordered."""
        return replace(
            order,
            workers=self.workers or order.workers,
            batch_size=self.batch_size or order.batch_size,
            session=self.session,
        )


CHANGES: Final = (
    Change("as it is"),
    Change("without foreign keys", (_FOREIGN_KEYS,)),
    Change("without updated_at triggers", (_TRIGGERS,)),
    Change(
        "without the other indexes of billing cycles",
        tuple(f"drop index idx_vps_billing_cycles_{name}" for name in ("organization_id", "period", "status")),
    ),
    Change("without the index on last_billed_at", (_NO_DUE_INDEX,)),
    Change(
        "without it, pages half full: instances updated in place (HOT)",
        (_NO_DUE_INDEX, "alter table vps_instances set (fillfactor = 50)", "vacuum full vps_instances"),
    ),
    Change("an organization's instances side by side (CLUSTER)", _BY_ORGANIZATION),
    Change("with an old snapshot open, so that nothing can be cleaned up", snapshot=True),
    Change("random ids instead of time-ordered ones", (_RANDOM_IDS,)),
    Change("compiled (jit on)", session={"jit": "on"}),
    Change("planned for each batch", session={"plan_cache_mode": "force_custom_plan"}),
    Change("sequential scans allowed", session={"enable_seqscan": "on"}),
    Change("autovacuum off", server={"autovacuum": "off"}),
    Change("WAL compressed", server={"wal_compression": "on"}),
    Change("commits not waited for", server={"synchronous_commit": "off"}),
    Change("1 worker", workers=1),
    Change("3 workers", workers=3),
    Change("4 workers", workers=4),
    Change("batches of 500", batch_size=500),
    Change("batches of 1,000", batch_size=1000),
    Change("batches of 5,000", batch_size=5000),
)


def costs(server: Server, instances: int, rounds: int, workers: int, batch_size: int, *, only: list[str]) -> Section:
    """Each change in turn; `only` names some, by a part of their names."""
    template = make_payable(server, instances)
    changes = [each for each in CHANGES if each is CHANGES[0] or not only or any(part in each.name for part in only)]
    seconds: dict[str, list[float]] = {change.name: [] for change in changes}
    charged = 1
    for number in range(rounds + 1):
        for change in changes:
            took, charged = _run(server, template, change, workers, batch_size)
            if number:
                seconds[change.name].append(took)
        print(f"  round {number}" if number else "  warm-up", flush=True)
    base = seconds[CHANGES[0].name]
    return Section(
        "costs",
        "Where the time goes",
        f"A cycle of {instances:,} instances with one thing changed, to the unchanged one ({workers} workers, batches"
        f" of {batch_size:,}) in the same round.",
        (
            Figure(CHANGES[0].name, "µs an instance", tuple(1e6 * each / charged for each in base)),
            *(Figure(change.name, "times", ratios(seconds[change.name], base)) for change in changes[1:]),
        ),
    )


def _run(server: Server, template: Template, change: Change, workers: int, batch_size: int) -> tuple[float, int]:
    """Seconds, and instances charged."""
    with fresh_copy(server, template) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in (*change.sql, "checkpoint"):
                connection.execute(statement.encode())
        with changed_settings(server, change.server), psycopg.connect(url) as reader:
            if change.snapshot:
                reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                reader.execute("select count(*) from vps_plans")
            run = run_cycle(change.applied(Order(url, template.as_of.isoformat(), workers, batch_size)))
        return run.seconds, run.instances
