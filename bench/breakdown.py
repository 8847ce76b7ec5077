"""Shows how a batch spends its time on the server, from auto_explain's analysis of each statement as it runs."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import psycopg

from bench.cycle import HOLDER, PRICING, TERM
from bench.floor import run_floor
from bench.measurement import Measurement, Section
from bench.server import LogTail
from bench.template import Template, fresh_copy, funded_template
from controller.billing.ledger import Ledger
from controller.billing.values import Run
from controller.postgres.connections import CYCLE, WORKER, Database
from tests.support.servers import Server

#: The first batches run in a cold session, without plans or a cached catalog.
WARM_UP_BATCHES: Final = 6

_ANALYZE: Final = """
load 'auto_explain';
set auto_explain.log_min_duration = 0;
set auto_explain.log_analyze = on;
set auto_explain.log_triggers = on;
set auto_explain.log_format = json;
"""
_LOGGED: Final = re.compile(
    r"billing worker \S+ LOG:  duration: (?P<ms>[\d.]+) ms  plan:\n(?P<plan>(?:\t.*\n)+)", re.MULTILINE
)


@dataclass(frozen=True)
class Step:
    """A part of a statement's time."""

    name: str
    milliseconds: float


def steps(milliseconds: float, plan: Mapping[str, Any]) -> Iterator[Step]:
    """Splits a statement's time into steps that add up to it: writes (without their input), foreign keys, the rest."""
    left = milliseconds
    for trigger in plan.get("Triggers", []):
        if "Constraint Name" in trigger:  # other triggers run inside the writing nodes
            left -= trigger["Time"]
            yield Step(f"foreign key {trigger['Constraint Name'].removesuffix('_fkey')}", trigger["Time"])
    for node in _nodes(plan["Plan"]):
        if node["Node Type"] == "ModifyTable":
            own = _milliseconds(node) - sum(
                _milliseconds(child)
                for child in node.get("Plans", [])
                if child["Parent Relationship"] in {"Outer", "Member"}
            )
            left -= own
            yield Step(f"{node['Operation'].lower()} {node['Relation Name']}", own)
    yield Step("reads and computation", left)


def breakdown(server: Server, instances: int, rounds: int, batch_size: int) -> Section:
    """Analyzes one batch per round, on one session, on an otherwise idle server.

    Raises:
        SystemExit: the server has no auto_explain.
    """
    template = funded_template(server, instances)
    batches = _batches(server, template, rounds, batch_size)
    return Section(
        "breakdown",
        "Inside a batch",
        f"The statements of {rounds} batches of about {batch_size:,} instances, run in sequence by one session and"
        " analyzed by auto_explain. The analysis itself takes time, so trust the shares more than the sum. The floor's"
        " statements follow, not analyzed, each including its foreign keys.",
        tuple(
            Measurement(name, "µs per instance", tuple(values))
            for made in (batches, _floor(server, template, rounds))
            for name, values in sorted(made.items(), key=lambda each: -sum(each[1]))
        ),
    )


def _batches(server: Server, template: Template, rounds: int, batch_size: int) -> Mapping[str, list[float]]:
    """Microseconds per instance of each step, by batch."""
    made: dict[str, list[float]] = defaultdict(list)
    with fresh_copy(server, template.name) as url:
        database = Database(lambda: url, "DATABASE_URL", HOLDER)
        with database.connect(CYCLE) as planning, database.connect(WORKER) as working:
            try:
                working.execute(_ANALYZE.encode())
            except psycopg.errors.UndefinedFile:
                raise SystemExit("this PostgreSQL has no auto_explain: try --postgres installed") from None
            planning.execute("update billing_leadership set term = %s, holder = %s", [TERM, HOLDER])
            run = Run(1, TERM, template.as_of)
            ledger = Ledger(working, PRICING, HOLDER)
            plan = Ledger(planning, PRICING, HOLDER).plan(run, batch_size)
            batches = [batch for batch in plan if not batch.large][: rounds + WARM_UP_BATCHES]
            for number, batch in enumerate(batches):
                log, began = LogTail(server), time.perf_counter()
                with ledger.fenced(run.term):
                    ledger.charge(run, batch, None, None)
                milliseconds = 1000 * (time.perf_counter() - began)
                if number >= WARM_UP_BATCHES:
                    for name, spent in _split(log.read(), milliseconds).items():
                        made[name].append(1000 * spent / batch.instances)
    return made


def _floor(server: Server, template: Template, rounds: int) -> Mapping[str, list[float]]:
    """Microseconds per instance of each of the floor's statements, by round."""
    made: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with fresh_copy(server, template.name) as url:
            run = run_floor(url, template.as_of)
        for name, seconds in run.statement_seconds.items():
            if not name.startswith("set "):
                made[f"floor: {name}"].append(1e6 * seconds / run.instances)
    return made


def _split(log: str, milliseconds: float) -> Mapping[str, float]:
    """Splits a transaction's time by step, from what the server logged of it."""
    made: dict[str, float] = defaultdict(float)
    for logged in _LOGGED.finditer(log):
        for step in steps(float(logged["ms"]), json.loads(logged["plan"])):
            made[step.name] += step.milliseconds
    made["planning, round trips, commit"] = milliseconds - sum(made.values())
    return made


def _nodes(node: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from _nodes(child)


def _milliseconds(node: Mapping[str, Any]) -> float:
    return float(node["Actual Total Time"] * node["Actual Loops"])
