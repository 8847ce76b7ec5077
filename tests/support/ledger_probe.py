"""A small installation with known charges, and a check that a fault changed none of them.

It implements the price clock again, from docs/money.md and not from the migration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg
from psycopg.rows import dict_row

from controller.billing.audit import audit
from tests.support.waiting import eventually

PRICES: Final = (Decimal("5.00"), Decimal("12.50"), Decimal("3.99"), Decimal("0.50"))
HOUR: Final = timedelta(hours=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
WALLET: Final = Decimal("1000.00")

_ORGANIZATIONS: Final = """
with owner as (
    insert into users (email, password_hash) values (gen_random_uuid() || '@example.test', '-') returning id
), organization as (
    insert into organizations (name, slug, owner_id)
    select 'organization ' || n, gen_random_uuid()::text, owner.id from generate_series(1, %s) n, owner
    returning id
)
insert into wallets (organization_id, balance) select id, %s from organization returning organization_id
"""


def price_clock(monthly_price: Decimal, moment: datetime) -> Decimal:
    """F(t) of docs/money.md: round(P * h(t) / 730, 2), exactly."""
    microseconds = (moment - EPOCH) // timedelta(microseconds=1)
    exact = monthly_price * microseconds / (730 * 3_600_000_000)
    return exact.quantize(Decimal("0.01"), ROUND_HALF_UP)


@dataclass(frozen=True)
class Verdict:
    """The damage of a fault: due hours that were not billed, and hours that were billed more than once."""

    hours_lost: int
    hours_doubled: int


@dataclass
class LedgerProbe:
    """Adds rows to a test database, and checks what billing made of them."""

    conn: psycopg.Connection[Any]
    expected_hours: dict[UUID, int] = field(default_factory=dict)
    expected_amount: dict[UUID, Decimal] = field(default_factory=dict)
    starts: dict[UUID, datetime] = field(default_factory=dict)

    def add(self, organizations: int = 6, instances: int = 3, hours: int = 5) -> None:
        """Adds organizations. Each instance has `hours` whole hours due, and half an hour that is not due yet."""
        with self.conn.transaction(), self.conn.cursor(row_factory=dict_row) as cursor:
            added = cursor.execute(_ORGANIZATIONS, [organizations, WALLET]).fetchall()
            self._add_instances(cursor, [row["organization_id"] for row in added], instances, hours)

    def add_between_cycles(self, organizations: int) -> None:
        """Adds organizations while no cycle runs: one that has its plan would count their instances as missed."""

        def added() -> bool:
            with self.conn.transaction():
                self.conn.execute("lock table billing_runs in share mode")  # no cycle can begin
                if self.rows("select from billing_runs where outcome = 'running'"):
                    return False
                self.add(organizations)
                return True

        eventually(added, "no cycle runs", every=0.005)

    def add_instances(self, instances: int = 3, hours: int = 5) -> None:
        """Adds instances to every organization that `add` has added. Their hours are as there."""
        with self.conn.transaction(), self.conn.cursor(row_factory=dict_row) as cursor:
            self._add_instances(cursor, list(self.expected_amount), instances, hours)

    def _add_instances(
        self, cursor: psycopg.Cursor[dict[str, Any]], organizations: Sequence[UUID], instances: int, hours: int
    ) -> None:
        plans = self._plans(cursor)
        now = datetime.now(UTC)
        rows = []
        for organization in organizations:
            amount = self.expected_amount.get(organization, Decimal(0))
            for number in range(instances):
                instance = uuid4()
                start = now - hours * HOUR - timedelta(minutes=30, seconds=number, microseconds=number * 7)
                price = PRICES[number % len(PRICES)]
                rows.append((instance, organization, str(plans[price]), f"vps {number}", start))
                self.starts[instance] = start
                self.expected_hours[instance] = hours
                amount += price_clock(price, start + hours * HOUR) - price_clock(price, start)
            self.expected_amount[organization] = amount
        cursor.executemany(
            "insert into vps_instances (id, organization_id, plan_id, label, created_at) values (%s, %s, %s, %s, %s)",
            rows,
        )

    @property
    def all_billed(self) -> bool:
        """True once every instance has been charged for all due hours, by its own row."""
        row = self.conn.execute(
            "select count(*) from vps_instances where last_billed_at is null"
            " or last_billed_at < clock_timestamp() - interval '1 hour'"
        ).fetchone()
        return row is not None and row[0] == 0

    @property
    def billed_instances(self) -> int:
        """The number of instances with at least one charge."""
        row = self.conn.execute("select count(*) from vps_instances where last_billed_at is not null").fetchone()
        return int(row[0]) if row else 0

    def judge(self) -> Verdict:
        """Raises AssertionError unless the audit is clean and every wallet, instance and period is exact."""
        verdict = self.verdict()
        assert (verdict.hours_lost, verdict.hours_doubled) == (0, 0), verdict
        with self.conn.cursor(row_factory=dict_row) as cursor:
            for row in cursor.execute("select organization_id, balance from wallets").fetchall():
                organization = row["organization_id"]
                charged = WALLET - row["balance"]
                assert charged == self.expected_amount[organization], f"{organization} was charged {charged}"
            for row in cursor.execute("select id, last_billed_at from vps_instances").fetchall():
                assert row["last_billed_at"] == self.starts[row["id"]] + self.expected_hours[row["id"]] * HOUR
        assert_audit_clean(self.conn)
        return verdict

    def verdict(self) -> Verdict:
        """Counts the expected hours that no period covers, and those that several periods cover."""
        billed: dict[UUID, list[datetime]] = {instance: [] for instance in self.expected_hours}
        with self.conn.cursor(row_factory=dict_row) as cursor:
            rows = cursor.execute(
                "select vps_instance_id, billing_period_start, billing_period_end from vps_billing_cycles"
                " where status = 'billed'"
            ).fetchall()
        for row in rows:
            moment = row["billing_period_start"]
            while moment < row["billing_period_end"]:
                billed[row["vps_instance_id"]].append(moment)
                moment += HOUR
        lost = sum(max(hours - len(set(billed[instance])), 0) for instance, hours in self.expected_hours.items())
        doubled = sum(len(moments) - len(set(moments)) for moments in billed.values())
        return Verdict(lost, doubled)

    def rows(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        """The rows of a query."""
        with self.conn.cursor(row_factory=dict_row) as cursor:
            return cursor.execute(sql.encode(), parameters).fetchall()

    def one(self, sql: str, *parameters: object) -> Any:  # noqa: ANN401 - any column
        """The first column of a query's only row."""
        (row,) = self.rows(sql, *parameters)
        return next(iter(row.values()))

    def _plans(self, cursor: psycopg.Cursor[dict[str, Any]]) -> Mapping[Decimal, UUID]:
        rows = cursor.execute("select id, base_price + markup_price as price from vps_plans").fetchall()
        if not rows:
            for price in PRICES:
                cursor.execute(
                    "insert into vps_plans (name, provider_plan_id, base_price, markup_price)"
                    " values (%s, %s, %s, 0.25)",
                    [f"plan {price}", f"p-{price}", price - Decimal("0.25")],
                )
            return self._plans(cursor)
        return {row["price"]: row["id"] for row in rows}


def assert_audit_clean(conn: psycopg.Connection[Any]) -> None:
    """Runs the controller's audit on a separate session; fails if an invariant is violated or a wallet differs."""
    with psycopg.connect(conn.info.dsn, row_factory=dict_row, autocommit=True) as own:
        report = audit(own)
    assert report.clean, [finding for finding in report.findings if finding.violations]
    differing = [each.exempt_examples for each in report.findings if each.invariant == "wallet_balance"]
    assert differing == [()], differing
