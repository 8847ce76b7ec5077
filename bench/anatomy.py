"""Where a batch's time goes on the server: each of its statements analyzed as it really runs (auto_explain)."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import psycopg

from bench.cycle import HOLDER
from bench.figures import Figure, Section
from bench.floor import run_floor
from bench.template import Template, fresh_copy, make_payable
from controller.billing.ledger import Ledger
from controller.billing.values import Pricing, Run
from controller.demo.server import Server
from controller.postgres import queries
from controller.postgres.connections import CYCLE, WORKER, Database

#: The first ones meet a cold session: no plans, no cached catalog.
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
    """A part of the time of a statement."""

    name: str
    milliseconds: float


def steps(milliseconds: float, plan: Mapping[str, Any]) -> Iterator[Step]:
    """Writing nodes without what they read, foreign keys, and what is left: they add up to the statement's time."""
    left = milliseconds
    for trigger in plan.get("Triggers", []):
        if "Constraint Name" in trigger:  # the others run inside the writing nodes
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
    yield Step("reading and computing: who owes what, sums, JSON", left)


def anatomy(server: Server, instances: int, rounds: int, batch_size: int) -> Section:
    """Of so many batches of many organizations each, one session, nobody else there.

    Raises:
        SystemExit: the server comes without auto_explain.
    """
    template = make_payable(server, instances)
    spent: dict[str, list[float]] = defaultdict(list)
    with fresh_copy(server, template) as url:
        database = Database(lambda: url, "DATABASE_URL", HOLDER)
        pricing = Pricing(Decimal("19.71"), "USD")
        with database.connect(CYCLE) as planning, database.connect(WORKER) as working:
            try:
                working.execute(_ANALYZE.encode())
            except psycopg.errors.UndefinedFile:
                raise SystemExit("this PostgreSQL comes without auto_explain: use another one") from None
            planning.execute("update billing_leadership set term = 1, holder = %s", [HOLDER])
            run = Run(1, 1, template.as_of)
            ledger = Ledger(working, queries.load(), pricing, HOLDER)
            plan = Ledger(planning, queries.load(), pricing, HOLDER).plan(run, batch_size)
            batches = [batch for batch in plan if not batch.large][: rounds + WARM_UP_BATCHES]
            for number, batch in enumerate(batches):
                start, began = server.log_path.stat().st_size, time.perf_counter()
                with ledger.fenced(run.term):
                    ledger.charge(run, batch, None, None)
                seconds = time.perf_counter() - began
                if number >= WARM_UP_BATCHES:
                    for name, milliseconds in _split(server.log_path, start, 1000 * seconds).items():
                        spent[name].append(1000 * milliseconds / batch.instances)
    return Section(
        "anatomy",
        "A batch from within",
        f"Every statement of {len(batches) - WARM_UP_BATCHES} batches of about {batch_size:,} instances, one after the"
        " other by one session, analyzed by auto_explain. Measuring costs time too: the shares tell more than the sum."
        " Then the statements of the floor as they are, each with its foreign keys.",
        tuple(
            Figure(name, "µs an instance", tuple(values))
            for made in (spent, _floor(server, template, rounds))
            for name, values in sorted(made.items(), key=lambda each: -sum(each[1]))
        ),
    )


def _floor(server: Server, template: Template, rounds: int) -> Mapping[str, list[float]]:
    """What each of its statements takes, microseconds an instance."""
    made: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        with fresh_copy(server, template) as url:
            run = run_floor(url, template.as_of)
        for name, seconds in run.steps.items():
            if not name.startswith("set "):
                made[f"floor: {name}"].append(1e6 * seconds / run.instances)
    return made


def _split(log: Path, start: int, milliseconds: float) -> Mapping[str, float]:
    """A transaction's time by what was done."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode()
    made: dict[str, float] = defaultdict(float)
    for logged in _LOGGED.finditer(text):
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
