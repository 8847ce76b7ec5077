"""From the first migration to the first cycle: what was found, what would be charged, and what waits for a decision."""

from __future__ import annotations

from functools import partial
from typing import Any

import psycopg
import pytest

from controller.demo.sample import Size, create_data
from controller.postgres.migrations import available
from tests.acceptance.program import run_here

APPLICATION = ("wallets", "vps_instances", "payment_transactions", "vps_billing_cycles", "vps_plans")
#: Wallets in every state, a payment of another wallet, and an instance that was not billed for three weeks.
HISTORY = """
update wallets w set balance = case o.slug when 'organization-1' then null else 'NaN'::numeric end
from organizations o where o.id = w.organization_id and o.slug in ('organization-1', 'organization-2');
insert into wallets (organization_id, balance) select id, 5 from organizations where slug = 'organization-3';
insert into payment_transactions (organization_id, amount, status, metadata)
select id, 40, 'completed', '{"wallet_type": "caas"}' from organizations where slug = 'organization-4';
update vps_instances set created_at = now() - interval '60 days', last_billed_at = now() - interval '21 days'
where label in (select min(label) from vps_instances i join organizations o on o.id = i.organization_id
    where o.slug = 'organization-5');
"""


def dump(url: str) -> dict[str, list[Any]]:
    with psycopg.connect(url) as conn:
        return {
            table: sorted(conn.execute(f"select t::text from {table} t").fetchall())  # noqa: S608 - ours
            for table in APPLICATION
        }


def test_first_cycle_charges_no_backlog_before_it_is_accepted(foreign_database: str) -> None:
    program = partial(run_here, foreign_database)
    with psycopg.connect(foreign_database) as conn:
        create_data(conn, Size(organizations=12, instances=60))
        conn.execute(HISTORY)
        conn.execute(available()[0].text)
        conn.execute(
            "insert into billing_daemon_status (daemon_instance_id, status, heartbeat_at)"
            " values ('old-host-1', 'stopped', now() - interval '1 day')"
        )
    before = dump(foreign_database)
    report = program("migrate")
    assert report.status == 0
    for line in (
        "left out, balance_null: 1 wallets (organization-1)",
        "left out, balance_nan: 1 wallets (organization-2)",
        "left out, wallet_duplicate: 2 wallets",
        "other daemon: old-host-1, stopped",
        "backlog: 1 instances with more than 168 unbilled hours, 504 hours",
        "other programs' payments, of other wallets, completed: 1, 40.00",
    ):
        assert line in report.out, report.out
    assert dump(foreign_database) == before
    assert program("migrate").out == "up to date\n"

    dry = program("bill", "--dry-run", "--json").json
    assert len(dry["largest"]) == 10
    assert [float(each["amount"]) for each in dry["largest"]] == sorted(
        (float(each["amount"]) for each in dry["largest"]), reverse=True
    )
    (held,) = [each for each in dry["unrecorded"] if each["in_backlog"]]
    assert (held["slug"], held["hours"]) == ("organization-5", 504)
    shown = program("bill", "--dry-run").out
    assert "largest charges" in shown
    assert "backlog: not charged" in shown
    assert dump(foreign_database) == before

    real = program("bill", "--json").json
    assert real["failures_by_reason"]["backlog"] == dry["failures_by_reason"]["backlog"] == 1
    listed = program("accept-backlog")
    assert (listed.status, "1 instance in backlog" in listed.out) == (1, True)
    assert "accept-backlog ORG" in program("explain", "organization-5").out
    accepted = program("accept-backlog", "organization-5", "--reason", "agreed with the customer", "--by", "ann")
    assert accepted.status == 0
    assert program("accept-backlog").out == "no instance is in backlog\n"
    assert "backlog" not in program("bill", "--json").json["failures_by_reason"]
    assert program("audit").status == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("organization-5",),
        ("--all", "--instances", "1", "--reason", " "),
        ("organization-5", "--all", "--reason", "x"),
        ("--by", "ann"),
        ("--instances", "1"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = run_here("postgresql://nowhere.invalid/none", "accept-backlog", *arguments)
    assert (done.status, done.out) == (2, "")
