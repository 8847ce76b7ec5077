"""The statements of every batch read the partial indexes of this project instead of years of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import psycopg
import pytest

from controller import sql
from controller.billing.guard import Guard
from controller.demo.sample import Size, create_data
from controller.lifecycle.stop import StopToken
from controller.postgres.connections import FOREGROUND, GUARD, WORKER
from tests.integration.world import LedgerAt, World
from tests.support.statements import plan

#: Adds years of rows, some written by other programs, to a database with due instances.
OTHERS = b"""
insert into vps_billing_cycles (vps_instance_id, organization_id, billing_period_start, billing_period_end,
    hourly_rate, total_amount, status, metadata)
select id, organization_id, now() - (n + 1000) * interval '1 h', now() - (n + 999) * interval '1 h', 0.01, 0.01,
    case when n % 2 = 0 then 'failed' else 'billed' end, null
from vps_instances, generate_series(1, 10) n;
insert into payment_transactions (organization_id, amount, status, metadata)
select organization_id, -0.01, 'completed', null from vps_instances, generate_series(1, 10);
analyze;
"""


class Recorded(LedgerAt):
    """A ledger that keeps the parameters with which each named statement was last executed."""

    parameters: ClassVar[dict[str, dict[str, Any]]]

    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - as a ledger takes them
        super().__init__(*arguments)
        execute = self.connection.execute
        names = {text.encode(): name for name, text in sql.load().items()}

        def recording(query: bytes, parameters: Any = None, **options: Any) -> Any:  # noqa: ANN401 - as psycopg's own
            if name := names.get(query):
                self.parameters[name] = dict(parameters or {})
            return execute(query, parameters, **options)

        self.connection.execute = recording  # type: ignore[method-assign, assignment]


@pytest.fixture
def billed(database: str) -> Iterator[World]:
    """Two thousand instances that were billed twice, with rows of other programs. One in twelve can't pay."""

    class Own(Recorded):
        parameters: ClassVar[dict[str, dict[str, Any]]] = {}

    with World(database, Own) as world:
        create_data(world.conn, Size(organizations=60, instances=2000))
        world.conn.execute(OTHERS)
        now = world.one("select now()")
        world.bill(now - timedelta(hours=2))
        world.conn.execute("analyze")
        leadership = world.lead()
        world.bill(now, leadership)
        Guard(lambda: world.ledger(GUARD), StopToken()).check(leadership)
        yield world


def test_statements_of_a_batch_and_of_the_guard_read_the_partial_indexes(billed: World) -> None:
    for statement, session, index in (
        ("charge_covered", WORKER, "billing_open_rows"),
        ("clear_open_rows", WORKER, "billing_open_rows"),
        ("guard_charges", GUARD, "billing_payments"),
        ("guard_charges", GUARD, "billing_ledger"),
    ):
        with billed.database.connect(session) as connection, sql.transaction(connection):
            shown = plan(connection, statement, billed.ledger_class.parameters[statement])  # type: ignore[attr-defined]
        assert f" using {index} " in shown or f" on {index} " in shown, f"{statement}: {shown}"
        assert "Seq Scan on vps_billing_cycles" not in shown
        assert "Seq Scan on payment_transactions" not in shown


def test_debts_are_read_from_the_open_rows(billed: World) -> None:
    with billed.database.connect(FOREGROUND) as connection, sql.transaction(connection):
        lines = connection.execute("explain select * from billing_debts()").fetchall()
        payable = plan(connection, "payable_organizations", {"currency": "USD"})
    shown = "\n".join(line["QUERY PLAN"] for line in lines)
    assert re.search("billing_open_rows|billing_payable_debts", shown), shown
    assert "billing_payable_debts" in payable, payable
    assert "Seq Scan on vps_billing_cycles" not in payable


def test_answers_about_one_organization_read_it_by_index(billed: World) -> None:
    """This holds however many instances other organizations have. The server counts the scans of a new session."""
    organization = billed.one("select organization_id from vps_instances group by 1 order by count(*), 1 limit 1")
    tables = ["vps_instances", "vps_billing_cycles", "payment_transactions"]  # all wallets of this test fit on a page
    for fact, parameters in (
        ("billing_find((select slug from organizations where id = %s))", (organization,)),
        ("billing_instance_debts(%s)", (organization,)),
        ("billing_organization(%s)", (organization,)),
        ("billing_instances(%s, 19.71)", (organization,)),
        ("billing_outlook(%s, now(), 19.71, 'USD', 168)", (organization,)),
        ("billing_wallet_comparison(%s)", (organization,)),
        ("billing_statement(%s, now() - interval '1 day', now())", (organization,)),
        ("billing_statement_balance(%s, now() - interval '1 day', now())", (organization,)),
    ):
        with psycopg.connect(billed.url) as session:
            session.execute(f"select count(*) from {fact}".encode(), parameters)  # noqa: S608 - ours
            scans = session.execute(
                "select relname, seq_scan from pg_stat_xact_user_tables where seq_scan > 0 and relname = any (%s)",
                (tables,),
            ).fetchall()
        assert scans == [], fact
