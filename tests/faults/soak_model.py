"""The application's acknowledged actions during a soak.

Nothing here comes from billing, except the rows that a deletion took with it. Times are of the wall clock, which the
server shares with the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, Generic, Self, TypeVar
from uuid import UUID

T = TypeVar("T")

#: The periods that billing wrote. `xmin` is the transaction that last wrote a row; billed rows are never rewritten.
PERIODS: Final = """
select xmin::text as transaction, vps_instance_id as instance, organization_id as organization, status,
    billing_period_start as start, billing_period_end as end, (metadata ->> 'hours')::int as hours,
    total_amount as amount, (metadata ->> 'monthly_price')::numeric as price, (metadata ->> 'term')::int as term,
    (metadata ->> 'run')::int as run, payment_transaction_id as payment, updated_at as begun_at,
    metadata ->> 'reason' as reason, (metadata ->> 'owed')::numeric as owed
from vps_billing_cycles
"""
PAYMENTS: Final = """
select id, xmin::text as transaction, organization_id as organization, amount,
    (metadata ->> 'vps_instance_id')::uuid as instance, (metadata ->> 'hours')::int as hours
from payment_transactions
"""


@dataclass(frozen=True)
class Period:
    """A row of `vps_billing_cycles`. `begun_at` is the start of its transaction."""

    transaction: str
    instance: UUID
    organization: UUID
    status: str
    start: datetime
    end: datetime
    hours: int
    amount: Decimal
    price: Decimal | None
    term: int
    run: int
    payment: UUID | None
    begun_at: datetime
    reason: str | None
    owed: Decimal | None

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """Makes a period from a row of PERIODS."""
        return cls(**row)


@dataclass(frozen=True)
class Payment:
    """A payment. `instance` is None for a top-up."""

    id: UUID
    transaction: str
    organization: UUID
    amount: Decimal
    instance: UUID | None
    hours: int | None


@dataclass(frozen=True)
class Acknowledged:
    """A transaction that committed between these two moments."""

    asked_at: datetime
    at: datetime


@dataclass
class History(Generic[T]):
    """Every value that something has had, oldest first, each with the transaction that set it."""

    values: list[tuple[T, Acknowledged]]

    @property
    def newest(self) -> T:
        return self.values[-1][0]

    def seen(self, begin: datetime, end: datetime) -> list[T]:
        """The values that a snapshot taken between two moments may have shown."""
        seen = [
            value for (value, since), (_, until) in pairwise(self.values) if since.asked_at <= end and until.at >= begin
        ]
        last, since = self.values[-1]
        return [*seen, last] if since.asked_at <= end else seen


@dataclass(frozen=True)
class TopUp:
    """A top-up. At `held_at` its transaction held the wallet's lock.

    Attributes:
        balance: what the application wrote into the wallet, if it wrote an absolute value.
    """

    organization: UUID
    amount: Decimal
    held_at: datetime
    balance: Decimal | None = None


@dataclass
class Instance:
    """An instance, with every plan that it named and every organization that owned it."""

    id: UUID
    plan_ids: History[str | None]
    organizations: History[UUID]
    created_at: datetime
    made: Acknowledged
    deleted: Acknowledged | None = None


@dataclass
class Model:
    """Everything that was acknowledged.

    Attributes:
        opening: each wallet's first balance.
        closed: the organizations that were deleted.
        prices: each plan's monthly prices, by both texts that may name the plan.
        taken_periods: the periods that deletions took with them.
        taken_payments: the payments that deletions took with them.
        taken_balances: what the wallets of deleted organizations held.
    """

    opening: dict[UUID, Decimal] = field(default_factory=dict)
    closed: dict[UUID, Acknowledged] = field(default_factory=dict)
    top_ups: dict[UUID, TopUp] = field(default_factory=dict)
    prices: dict[str, History[Decimal]] = field(default_factory=dict)
    instances: dict[UUID, Instance] = field(default_factory=dict)
    taken_periods: list[Period] = field(default_factory=list)
    taken_payments: list[Payment] = field(default_factory=list)
    taken_balances: dict[UUID, Decimal] = field(default_factory=dict)

    @property
    def live(self) -> list[Instance]:
        """The instances that were not deleted."""
        return [each for each in list(self.instances.values()) if each.deleted is None]

    @property
    def open(self) -> list[UUID]:
        """The organizations that were not deleted."""
        return [each for each in list(self.opening) if each not in self.closed]
