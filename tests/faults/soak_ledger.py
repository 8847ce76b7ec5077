"""What billing wrote during a soak, read without the controller's SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Self
from uuid import UUID

import psycopg

from tests.faults.soak_model import PAYMENTS, PERIODS, Payment, Period

#: A collection charges what was due when the last cycle began.
RUNS: Final = """
select r.id, r.kind, r.term, r.outcome, r.finished_at, r.hours, r.amount, case r.kind
    when 'collection' then (select max(c.started_at) from billing_runs c where c.kind = 'cycle' and c.id < r.id)
    else r.started_at end as as_of
from billing_runs r
where r.outcome <> 'running'
"""
BASELINES: Final = """
select b.organization_id as o, b.baseline as b from billing_wallet_baselines b join wallets w on w.id = b.wallet_id
"""
PRICES: Final = """
select key, monthly_price as price, nullif(valid_from, '-infinity') as valid_from, recorded_at,
    coalesce(pg_xact_commit_timestamp(xmin), now()) as committed_at
from billing_prices p
order by p.key, p.valid_from
"""


@dataclass(frozen=True)
class Batch:
    """One transaction of billing, from the rows that it wrote about itself."""

    run: int
    term: int
    written_at: datetime
    committed_at: datetime
    hours: int
    amount: Decimal


@dataclass(frozen=True)
class Run:
    """A cycle or a collection. It charges what was due at `as_of`."""

    id: int
    kind: str
    term: int
    outcome: str
    as_of: datetime
    finished_at: datetime
    hours: int
    amount: Decimal

    @property
    def is_whole_cycle(self) -> bool:
        """True for a cycle that went through all organizations, even if some of them failed."""
        return self.kind == "cycle" and self.outcome in {"completed", "completed_with_failures"}


@dataclass(frozen=True)
class PriceRecord:
    """A price that billing recorded for a plan.

    Attributes:
        key: a text that names the plan.
        price: None if no plan matched.
        valid_from: the price applies to the hours that begin from then on; None for all earlier hours too.
        recorded_at: when the transaction that recorded it began.
    """

    key: str
    price: Decimal | None
    valid_from: datetime | None
    recorded_at: datetime
    committed_at: datetime


@dataclass(frozen=True)
class Ledger:
    """Everything that the database holds at the end."""

    wallets: Mapping[UUID, Decimal]
    baselines: Mapping[UUID, Decimal]
    paid_until: Mapping[UUID, datetime]
    periods: Sequence[Period]
    payments: Sequence[Payment]
    batches: Mapping[str, Batch]
    runs: Mapping[int, Run]
    prices: Sequence[PriceRecord]
    minted_at: Mapping[int, datetime]

    @classmethod
    def read(cls, conn: psycopg.Connection[dict[str, Any]]) -> Self:
        """Reads everything. Call this while nothing writes."""

        def rows(query: str) -> list[dict[str, Any]]:
            return conn.execute(query.encode()).fetchall()

        return cls(
            wallets={row["o"]: row["b"] for row in rows("select organization_id as o, balance as b from wallets")},
            baselines={row["o"]: row["b"] for row in rows(BASELINES)},
            paid_until={
                row["id"]: row["t"]
                for row in rows("select id, coalesce(last_billed_at, created_at) as t from vps_instances")
            },
            periods=[Period.from_row(row) for row in rows(PERIODS)],
            payments=[Payment(**row) for row in rows(PAYMENTS)],
            batches={
                row.pop("transaction"): Batch(**row)
                for row in rows(
                    "select xmin::text as transaction, min(run_id)::int as run, min(term)::int as term,"
                    " max(written_at) as written_at, sum(hours)::int as hours, sum(amount) as amount,"
                    " pg_xact_commit_timestamp(xmin) as committed_at from billing_batches group by xmin::text, 7"
                )
            },
            runs={row["id"]: Run(**row) for row in rows(RUNS)},
            prices=[PriceRecord(**row) for row in rows(PRICES)],
            minted_at={row["term"]: row["minted_at"] for row in rows("select term, minted_at from billing_terms")},
        )
