"""What the story looks up in the database, by queries of its own: nothing of the controller's is used to check it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, LiteralString

import psycopg
from psycopg.rows import dict_row

HOURS_A_MONTH: Final = 730
CENT: Final = Decimal("0.01")
#: A bound on everything that is asked here.
OPTIONS: Final = "-c statement_timeout=20s -c lock_timeout=10s"

# The periods that the controller wrote, and since when every instance owed before it was first charged.
_NOTES: Final = """
    create temporary table since_before (id uuid primary key, since timestamptz);
    create temporary view period as
        select vps_instance_id, organization_id, status, total_amount as amount,
            (metadata ->> 'hours')::bigint as hours, (metadata ->> 'run')::bigint as run,
            (metadata ->> 'monthly_price')::numeric as monthly_price, metadata ->> 'price_source' as price_source,
            metadata ->> 'reason' as reason, (metadata ->> 'owed')::numeric as owed
        from vps_billing_cycles where metadata ->> 'controller' = 'containerstacks-billing'
"""

_NOTE_INSTANCES: Final = """
    insert into since_before (id, since)
    select id, coalesce(last_billed_at, created_at) from vps_instances
    where id not in (select id from since_before)
"""

# Copies of a part of the instances, ordered hours ago and never billed; never of an organization without a wallet.
_NEWCOMERS: Final = """
    insert into vps_instances
        (organization_id, plan_id, provider_instance_id, label, status, created_at, updated_at, last_billed_at)
    select organization_id, plan_id, provider_instance_id || '-2', label || '-2', 'running', moment, moment, null
    from (
        select *, now() - interval '1 hour' * (1.2 + 9 * random()) as moment
        from vps_instances i
        where exists (select from wallets w where w.organization_id = i.organization_id)
        order by id
        limit %s
    ) copied
"""

# Two in three of the wallets that are short get what they owe, and a month more.
_TOP_UP: Final = """
    with owing as (
        select organization_id, sum(owed) as owed, row_number() over (order by organization_id) as number
        from period where status = 'failed' and reason = 'insufficient_balance'
        group by organization_id
    ), monthly as (
        select i.organization_id, sum(coalesce(p.base_price + p.markup_price, 20)) as price
        from vps_instances i left join vps_plans p on p.id::text = i.plan_id
        group by i.organization_id
    ), paid as (
        insert into payment_transactions
            (organization_id, amount, currency, payment_method, payment_provider, status, description)
        select organization_id, ceil(owed + price), 'USD', 'card', 'stripe', 'completed', 'Wallet top-up'
        from owing join monthly using (organization_id)
        where number % 3 <> 0
        returning organization_id, amount
    ), filled as (
        update wallets w set balance = w.balance + paid.amount
        from paid where paid.organization_id = w.organization_id
        returning w.id
    )
    select coalesce(sum(amount), 0) as amount, count(*) as wallets, (select count(*) from filled) as filled from paid
"""

# Hours charged have to be the hours between where an instance stood before and where it stands now.
_HOURS_AMISS: Final = """
    select count(*) as instances
    from since_before s
    join vps_instances i using (id)
    left join (
        select vps_instance_id, sum(hours) as hours from period where status = 'billed' group by vps_instance_id
    ) billed on billed.vps_instance_id = s.id
    where coalesce(billed.hours, 0) * 3600
        <> extract(epoch from coalesce(i.last_billed_at, i.created_at) - s.since)
"""

_HOURS: Final = """
    with as_of as (select max(started_at) as moment from billing_runs where outcome = 'completed')
    select
        (select sum(floor(extract(epoch from moment - since) / 3600))::bigint
            from since_before, as_of where since <= moment - interval '1 hour') as due,
        coalesce(sum(hours) filter (where status = 'billed'), 0)::bigint as charged,
        coalesce(sum(hours) filter (where status = 'failed'), 0)::bigint as unpaid
    from period
"""

_MONEY: Final = """
    select
        (select sum(balance) from wallets) as wallets,
        (select coalesce(sum(amount), 0) from period where status = 'billed') as charges,
        (select coalesce(-sum(amount), 0) from payment_transactions
            where payment_method = 'wallet_debit' and status = 'completed') as debits
"""

_UNPAID: Final = """
    select count(*) filter (where reason = 'insufficient_balance') as short,
        coalesce(sum(owed) filter (where reason = 'insufficient_balance'), 0) as owed,
        count(*) filter (where reason = 'wallet_missing') as without_wallet,
        count(*) filter (where reason not in ('insufficient_balance', 'wallet_missing')) as others
    from period where status = 'failed'
"""

# Long ones first: more hours make a better sum to check.
_PERIODS: Final = """
    select i.label, p.name as plan, c.price_source, c.monthly_price, c.hours, c.amount
    from period c
    join vps_instances i on i.id = c.vps_instance_id
    left join vps_plans p on p.id::text = i.plan_id
    where c.status = 'billed'
    order by c.hours desc, i.id
"""


@dataclass(frozen=True)
class Cycle:
    """A row of `billing_runs`; while it runs, with what its batches have committed so far."""

    id: int
    outcome: str
    instances: int


@dataclass(frozen=True)
class Money:
    """Sums over the whole database."""

    wallets: Decimal
    charges: Decimal
    debits: Decimal


@dataclass(frozen=True)
class Funds:
    """What all wallets held before the first cycle, and what was paid into them since."""

    before: Decimal
    paid_in: Decimal


@dataclass(frozen=True)
class Hours:
    """Whole hours that had passed by the last completed cycle, and what became of them."""

    due: int
    charged: int
    unpaid: int


@dataclass(frozen=True)
class Unpaid:
    """Instances with hours that were not charged, by reason; `owed` by those whose wallet is short."""

    short: int
    owed: Decimal
    without_wallet: int
    others: int


@dataclass(frozen=True)
class Period:
    """A billed period; `plan` is None where the instance does not name one by its id."""

    label: str
    plan: str | None
    price_source: str
    monthly_price: Decimal
    hours: int
    amount: Decimal

    @property
    def by_hand(self) -> Decimal:
        """Price / 730 x hours, not rounded."""
        return self.monthly_price * self.hours / HOURS_A_MONTH


class Books:
    """One session. What it notes for itself is in a temporary table."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(
            url, autocommit=True, row_factory=dict_row, connect_timeout=5, options=OPTIONS, application_name="demo"
        )
        self._connection.execute(_NOTES)

    def close(self) -> None:
        self._connection.close()

    def note_instances(self) -> None:
        """Remembers of each new instance since when it owes."""
        self._connection.execute(_NOTE_INSTANCES)

    def due(self) -> int:
        """Instances with a whole unbilled hour."""
        return int(
            self._one(
                "select count(*) as n from vps_instances"
                " where coalesce(last_billed_at, created_at) <= now() - interval '1 hour'"
            )["n"]
        )

    def term(self) -> int:
        """The newest."""
        return int(self._one("select term from billing_leadership")["term"])

    def cycle_of(self, term: int, *, newest: bool = False) -> Cycle | None:
        """The first cycle of a term, or its newest."""
        row = self._connection.execute(
            "select r.id, r.outcome, coalesce((select sum(instances) from billing_batches where run_id = r.id), 0)"
            " as instances from billing_runs r where term = %s order by case when %s then -r.id else r.id end limit 1",
            (term, newest),
        ).fetchone()
        return Cycle(row["id"], row["outcome"], int(row["instances"])) if row else None

    def first_batch_at(self, term: int) -> datetime | None:
        """When the first batch of a term was committed."""
        moment: datetime | None = self._one(
            "select min(written_at) as moment from billing_batches where term = %s", term
        )["moment"]
        return moment

    def charged_by(self, cycle: int) -> int:
        """Billed periods that a cycle has left, counted one by one."""
        return int(self._one("select count(*) as n from period where status = 'billed' and run = %s", cycle)["n"])

    def charged_amiss(self) -> int:
        """Instances whose billed hours are not those by which they have moved on."""
        return int(self._one(_HOURS_AMISS)["instances"])

    def add_newcomers(self, instances: int) -> None:
        """So many instances that were ordered hours ago, and have never been billed."""
        with self._connection.transaction():  # before any cycle sees them
            self._connection.execute(_NEWCOMERS, (instances,))
            self.note_instances()

    def top_up(self) -> tuple[Decimal, int]:
        """Owners of short wallets pay in: how much, into how many."""
        row = self._one(_TOP_UP)
        return row["amount"], int(row["wallets"])

    def money(self) -> Money:
        return Money(**self._one(_MONEY))

    def hours(self) -> Hours:
        return Hours(**self._one(_HOURS))

    def unpaid(self) -> Unpaid:
        return Unpaid(**self._one(_UNPAID))

    def periods(self) -> list[Period]:
        """Every billed one, the longest first."""
        return [Period(**row) for row in self._connection.execute(_PERIODS).fetchall()]

    def _one(self, query: LiteralString, *parameters: object) -> dict[str, Any]:
        row = self._connection.execute(query, parameters or None).fetchone()
        return row or {}
