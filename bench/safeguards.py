"""Measures what each safeguard of a charge costs: the time of a cycle relative to a cycle without the safeguard.

A safeguard is removed by editing the statements in the cycle's process. The database keeps its keys and indexes.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Final

from bench.costs import UNCHANGED, Variant, measure
from bench.measurement import Aim, Measurement, Section, ratios
from bench.template import funded_template
from controller import sql
from controller.postgres import migrations
from tests.support.servers import Server

#: All safeguards together may cost a tenth of a cycle.
MOST: Final = Aim(1.10)

#: The parameters of billing_reckon_covered, with their types. charge_covered has parameters of the same names.
_PARAMETERS: Final = {
    "first_organization": "uuid",
    "last_organization": "uuid",
    "after_created_at": "timestamptz",
    "after_id": "uuid",
    "as_of": "timestamptz",
    "max_backlog_hours": "integer",
    "batch_size": "bigint",
}

Edit = tuple[str, str, str]


@cache
def _inlined() -> Edit:
    """Puts the body of billing_reckon_covered in place of its call, as the planner does, so that it can be edited."""
    (text,) = (each.text for each in migrations.available() if each.name == "051_billing_covered")
    body, statement = text.split("$$")[1], sql.load()["charge_covered"]
    call = statement[statement.index("select * from billing_reckon_covered(") :].split("\n),", 1)[0]
    for parameter in _PARAMETERS:
        body = re.sub(rf"(?<!%\()\b{parameter}\b", f"%({parameter})s::{_PARAMETERS[parameter]}", body)
    return "charge_covered", call, body


def _each() -> tuple[Variant, ...]:
    return (
        Variant(
            "the ledger outranks last_billed_at",
            edits=(
                _inlined(),
                (
                    "charge_covered",
                    "cross join lateral billing_position(due.id, due.last_billed_at, due.created_at) position",
                    "cross join (select null::timestamptz as ledger_end) position",
                ),
            ),
        ),
        Variant(
            "open rows are looked for",
            edits=(_inlined(), ("charge_covered", "any (array(select id from due)) and", "null and")),
        ),
        Variant(
            "prices have a history",
            edits=(
                _inlined(),
                (
                    "charge_covered",
                    "source, valid_from from billing_price_history() where valid_to = 'infinity'",
                    "source, '-infinity'::timestamptz as valid_from from billing_plan_lookup()",
                ),
            ),
        ),
        Variant(
            "wallets are adopted, single and not suspended",
            edits=(
                (
                    "charge_covered",
                    "billing_sound_wallets(%(currency)s) w",
                    "(select organization_id, id as wallet_id, balance from wallets) w",
                ),
            ),
        ),
        Variant(
            "writes are counted and summed",
            edits=(
                (
                    "charge_covered",
                    "(count(*), coalesce(sum(amount), 0)) = (t.payments, -t.amount) from paid",
                    "true",
                ),
                (
                    "charge_covered",
                    "(count(*), coalesce(sum(total_amount), 0)) = (t.instances, t.amount) from period",
                    "true",
                ),
            ),
        ),
        Variant(
            "last_billed_at is compared and swapped",
            edits=(("charge_covered", " and i.last_billed_at is not distinct from c.last_billed_at", ""),),
        ),
        Variant(
            "the balance that a charge leaves is kept",
            edits=(
                ("charge_covered", "where b.wallet_id = c.wallet_id and c.amount > 0", "where false"),
                (
                    "charge_covered",
                    "(select count(*) from balance_left) = (select count(*) from covered where amount > 0)",
                    "true",
                ),
            ),
        ),
        Variant(
            "missed instances are counted",
            edits=(("count_missed", "where billing_due", "where false and billing_due"),),
        ),
    )


def variants() -> tuple[Variant, ...]:
    """For each safeguard, a variant without it; and a last variant without any of them."""
    each = _each()
    return *each, Variant("all of them", edits=tuple(dict.fromkeys(edit for one in each for edit in one.edits)))


def safeguards(server: Server, instances: int, rounds: int, workers: int, batch_size: int) -> Section:
    """Measures what each safeguard costs: the unchanged cycle relative to one without the safeguard."""
    template, without = funded_template(server, instances), variants()
    microseconds = measure(server, template, (UNCHANGED, *without), rounds, workers=workers, batch_size=batch_size)
    unchanged = microseconds[UNCHANGED.name]
    return Section(
        "safeguards",
        "What each safeguard costs",
        f"The time of a cycle of {instances:,} instances, relative to a cycle of the same round without one safeguard"
        f" ({workers} workers, batches of {batch_size:,}). 1.02 means that the safeguard costs 2%.",
        tuple(
            Measurement(
                each.name, "", ratios(unchanged, microseconds[each.name]), MOST if each is without[-1] else None
            )
            for each in without
        ),
    )
