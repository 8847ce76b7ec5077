"""What billing wrote during a soak, read without the controller's SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

import psycopg

from tests.faults.soak_model import PERIODS, Period


@dataclass(frozen=True)
class Payment:
    """A completed payment transaction. `instance` is None for a top-up."""

    id: UUID
    transaction: str
    organization: UUID
    amount: Decimal
    instance: UUID | None
    hours: int | None


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
    """One cycle."""

    id: int
    term: int
    outcome: str
    as_of: datetime
    finished_at: datetime
    hours: int
    amount: Decimal


@dataclass(frozen=True)
class Ledger:
    """Everything that the database holds at the end."""

    wallets: Mapping[UUID, Decimal]
    paid_until: Mapping[UUID, datetime]
    periods: Sequence[Period]
    payments: Sequence[Payment]
    batches: Mapping[str, Batch]
    runs: Mapping[int, Run]
    minted_at: Mapping[int, datetime]

    @classmethod
    def read(cls, conn: psycopg.Connection[dict[str, Any]]) -> Self:
        """Reads everything. Call this while nothing writes."""

        def rows(query: str) -> list[dict[str, Any]]:
            return conn.execute(query.encode()).fetchall()

        return cls(
            wallets={row["o"]: row["b"] for row in rows("select organization_id as o, balance as b from wallets")},
            paid_until={
                row["id"]: row["t"]
                for row in rows("select id, coalesce(last_billed_at, created_at) as t from vps_instances")
            },
            periods=[Period.from_row(row) for row in rows(PERIODS)],
            payments=[
                Payment(**row)
                for row in rows(
                    "select id, xmin::text as transaction, organization_id as organization, amount,"
                    " (metadata ->> 'vps_instance_id')::uuid as instance, (metadata ->> 'hours')::int as hours"
                    " from payment_transactions where status = 'completed'"
                )
            ],
            batches={
                row.pop("transaction"): Batch(**row)
                for row in rows(
                    "select xmin::text as transaction, min(run_id)::int as run, min(term)::int as term,"
                    " max(written_at) as written_at, sum(hours)::int as hours, sum(amount) as amount,"
                    " pg_xact_commit_timestamp(xmin) as committed_at from billing_batches group by xmin::text, 7"
                )
            },
            runs={
                row["id"]: Run(**row)
                for row in rows(
                    "select id, term, outcome, started_at as as_of, finished_at, hours, amount"
                    " from billing_runs where outcome <> 'running'"
                )
            },
            minted_at={row["term"]: row["minted_at"] for row in rows("select term, minted_at from billing_terms")},
        )
