"""What each part of the setup costs: the same cycle with one thing changed, in turn with the unchanged cycle.

Changes apply to the round's copy. Many could not be made in production, since the schema belongs to the application.
They show what its keys, triggers and indexes cost, and whether another setting would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg

from bench.cycle import CycleRun, CycleSpec, run_cycle
from bench.measurement import Measurement, Section, ratios
from bench.server import changed_settings
from bench.template import Template, fresh_copy, funded_template
from tests.support.servers import Server

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
class Variant:
    """One change to the cycle or its database.

    Attributes:
        sql: statements to run on the copy before the cycle.
        server: settings of the whole server during the cycle.
        session: settings of the workers' sessions.
        snapshot: True if another transaction keeps a snapshot open during the cycle.
        edits: changes to the controller's named statements, as in `CycleSpec`.
    """

    name: str
    sql: tuple[str, ...] = ()
    server: dict[str, str] = field(default_factory=dict)
    session: dict[str, str] = field(default_factory=dict)
    workers: int | None = None
    batch_size: int | None = None
    snapshot: bool = False
    edits: tuple[tuple[str, str, str], ...] = ()

    def applied(self, spec: CycleSpec) -> CycleSpec:
        """Returns the spec with this variant's workers, batch size, session settings and statements."""
        return replace(
            spec,
            workers=self.workers or spec.workers,
            batch_size=self.batch_size or spec.batch_size,
            session=self.session,
            edits=list(self.edits),
        )


UNCHANGED: Final = Variant("unchanged")
VARIANTS: Final = (
    UNCHANGED,
    Variant("without foreign keys", (_FOREIGN_KEYS,)),
    Variant("without updated_at triggers", (_TRIGGERS,)),
    Variant(
        "without the secondary indexes of billing cycles",
        tuple(f"drop index idx_vps_billing_cycles_{name}" for name in ("organization_id", "period", "status")),
    ),
    Variant("without the index on last_billed_at", (_NO_DUE_INDEX,)),
    Variant(
        "without that index, instance pages half full (HOT updates)",
        (_NO_DUE_INDEX, "alter table vps_instances set (fillfactor = 50)", "vacuum full vps_instances"),
    ),
    Variant("instances clustered by organization", _BY_ORGANIZATION),
    Variant("an old snapshot open, which prevents pruning", snapshot=True),
    Variant("random ids instead of time-ordered ones", (_RANDOM_IDS,)),
    Variant("jit on", session={"jit": "on"}),
    Variant("custom plans", session={"plan_cache_mode": "force_custom_plan"}),
    Variant("sequential scans allowed", session={"enable_seqscan": "on"}),
    Variant("autovacuum off", server={"autovacuum": "off"}),
    Variant("wal_compression on", server={"wal_compression": "on"}),
    Variant("synchronous_commit off", server={"synchronous_commit": "off"}),
    Variant("1 worker", workers=1),
    Variant("3 workers", workers=3),
    Variant("4 workers", workers=4),
    Variant("batches of 500", batch_size=500),
    Variant("batches of 1,000", batch_size=1000),
    Variant("batches of 5,000", batch_size=5000),
)


def costs(server: Server, instances: int, rounds: int, workers: int, batch_size: int, *, only: list[str]) -> Section:
    """Measures each variant in turn. `only` selects variants by parts of their names; empty selects all."""
    template = funded_template(server, instances)
    variants = [each for each in VARIANTS if each is UNCHANGED or not only or any(part in each.name for part in only)]
    microseconds = measure(server, template, variants, rounds, workers=workers, batch_size=batch_size)
    unchanged = microseconds[UNCHANGED.name]
    return Section(
        "costs",
        "One change at a time",
        f"The time of a cycle of {instances:,} instances with one change, relative to the unchanged cycle of the same"
        f" round ({workers} workers, batches of {batch_size:,}).",
        (
            Measurement(UNCHANGED.name, "µs per instance", tuple(unchanged)),
            *(Measurement(variant.name, "", ratios(microseconds[variant.name], unchanged)) for variant in variants[1:]),
        ),
    )


def measure(
    server: Server, template: Template, variants: Sequence[Variant], rounds: int, *, workers: int, batch_size: int
) -> dict[str, list[float]]:
    """Runs a cycle of each variant in each round, after a warm-up round.

    Returns:
        Microseconds per instance, by variant and round.
    """
    microseconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for number in range(rounds + 1):
        for variant in variants:
            run = _run(server, template, variant, workers, batch_size)
            if number:
                microseconds[variant.name].append(1e6 * run.seconds / run.instances)
        print(f"  round {number}" if number else "  warm-up", flush=True)
    return microseconds


def _run(server: Server, template: Template, variant: Variant, workers: int, batch_size: int) -> CycleRun:
    with fresh_copy(server, template.name) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in (*variant.sql, "checkpoint"):
                connection.execute(statement.encode())
        with changed_settings(server, variant.server), psycopg.connect(url) as reader:
            if variant.snapshot:
                reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                reader.execute("select count(*) from vps_plans")
            return run_cycle(variant.applied(CycleSpec(url, template.as_of.isoformat(), workers, batch_size)))
