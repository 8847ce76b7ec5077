"""docs/money.md: the SQL for a price change, a refund, a deletion and a manual top-up leaves the books in order."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from psycopg.sql import Literal

from controller.billing.answers import find
from controller.billing.audit import audit
from controller.billing.statement import read_statement
from tests.integration.world import World
from tests.model import HOUR

PAGE: Final = Path(__file__).parents[2] / "docs" / "money.md"
TASKS: Final = ["A price change", "A refund", "A deletion", "A manual top-up"]


def statements(task: str) -> list[str]:
    """The SQL below a heading of the page."""
    section = re.search(rf"^### {task}$(.*?)^##", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert section, task
    return re.findall(r"^```sql\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)


def run(world: World, statement: str, **variables: object) -> list[dict[str, Any]]:
    """Runs a statement with psql's variables, `:'name'` quoted and `:name` not; returns the rows of a query."""
    text = re.sub(r":'(\w+)'", lambda name: Literal(str(variables[name[1]])).as_string(), statement)
    text = re.sub(r"(?<!:):(\w+)", lambda name: str(variables[name[1]]), text)
    if not text.startswith("select"):
        world.conn.execute(text.encode())
        return []
    body = text.strip().removesuffix(";")
    return [row["q"] for row in world.rows(f"select to_jsonb(q) as q from ({body}) q")]  # noqa: S608 - ours


@pytest.fixture
def billed(world: World) -> tuple[World, UUID, UUID, UUID]:
    """A wallet of 5.00 and an instance that owed two hours at 1.00 and was charged for them."""
    now = world.one("select date_trunc('hour', now())")
    organization, plan = world.organization("5.00"), world.plan("730.00")
    instance = world.instance(organization, plan, now - 4 * HOUR)
    world.bill(now - 2 * HOUR)
    return world, organization, plan, instance


def balance(world: World, organization: UUID) -> Decimal:
    amount: Decimal = world.one("select balance from wallets where organization_id = %s", organization)
    return amount


def assert_in_order(world: World, organization: UUID) -> None:
    with world.database.connect() as connection:
        report = audit(connection)
        assert report.clean, report.findings
        wanted = find(connection, str(organization), organizations_only=True)
        assert read_statement(connection, wanted, "2000-01-01", None).difference == 0


def test_every_task_of_the_page_is_tested() -> None:
    section = PAGE.read_text("utf-8").partition("## By hand")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", section, re.MULTILINE) == TASKS


def test_price_change_applies_to_hours_that_begin_after_it(billed: tuple[World, UUID, UUID, UUID]) -> None:
    world, organization, plan, _ = billed
    change, history = statements("A price change")
    run(world, change, markup="0.00", plan=plan)
    run(world, change, markup="1460.00", plan=plan)
    world.bill(world.one("select now()"))
    assert balance(world, organization) == Decimal("1.00"), "the two hours before the change cost 1.00 each"
    world.bill(world.one("select now()"))
    prices = [row["monthly_price"] for row in run(world, history, plan=plan)]
    assert prices[0] == 730
    assert prices[-1] > 1460
    assert_in_order(world, organization)


def test_refund_returns_the_amount_once_and_the_hours_stay_billed(billed: tuple[World, UUID, UUID, UUID]) -> None:
    world, organization, _, instance = billed
    search, refund = statements("A refund")
    (period,) = run(world, search, instance=instance)
    assert period["total_amount"] == 2
    for _ in range(2):
        run(world, refund, period=period["id"])
        assert balance(world, organization) == Decimal("5.00")
    assert_in_order(world, organization)
    world.bill(world.one("select date_trunc('hour', now())"))
    assert balance(world, organization) == Decimal("3.00"), "only the two hours since are charged"
    assert_in_order(world, organization)


def test_deletion_writes_off_the_debt_and_lists_it(billed: tuple[World, UUID, UUID, UUID]) -> None:
    world, organization, _, instance = billed
    world.run("update wallets set balance = 0.50")
    world.run("update billing_wallet_baselines set baseline = baseline - 2.50")
    world.bill(world.one("select date_trunc('hour', now())"))
    delete, lost = statements("A deletion")
    run(world, delete, instance=instance)
    (debt,) = run(world, lost, instance=instance)
    assert (debt["hours"], debt["owed"]) == (2, 2)
    assert_in_order(world, organization)


def test_manual_top_up_is_a_payment_and_pays_the_debt(billed: tuple[World, UUID, UUID, UUID]) -> None:
    world, organization, _, _ = billed
    slug = world.one("select slug from organizations where id = %s", organization)
    (top_up,) = statements("A manual top-up")
    run(world, top_up, organization=slug, amount="25.00", reason="bank transfer '4711'")
    assert balance(world, organization) == Decimal("28.00")
    payment = world.rows("select * from payment_transactions where payment_method = 'manual'")[0]
    assert payment["description"] == "bank transfer '4711'"
    assert payment["metadata"] == {"balance_before": 3.00, "balance_after": 28.00}
    world.bill(world.one("select date_trunc('hour', now())"))
    assert balance(world, organization) == Decimal("26.00")
    assert_in_order(world, organization)
