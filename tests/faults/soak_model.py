"""What the application did during a soak, if the database acknowledged it. Nothing here comes from billing.

Times are of the wall clock, which the server shares with the test.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final, Self
from uuid import UUID

from tests.model import DEFAULT_PRICE

#: The periods that billing wrote. `xmin` is the transaction that last wrote a row; billed rows are never rewritten.
PERIODS: Final = """
select xmin::text as transaction, vps_instance_id as instance, organization_id as organization, status,
    billing_period_start as start, billing_period_end as end, (metadata ->> 'hours')::int as hours,
    total_amount as amount, (metadata ->> 'monthly_price')::numeric as price, (metadata ->> 'term')::int as term,
    (metadata ->> 'run')::int as run, payment_transaction_id as payment, updated_at as begun_at,
    metadata ->> 'reason' as reason, (metadata ->> 'owed')::numeric as owed
from vps_billing_cycles
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
        """Makes a period of a row of PERIODS."""
        return cls(**row)


@dataclass(frozen=True)
class Acknowledged:
    """A transaction that committed between these two moments."""

    asked_at: datetime
    at: datetime


@dataclass(frozen=True)
class TopUp:
    """A top-up. At `held_at` its transaction held the wallet's lock."""

    organization: UUID
    amount: Decimal
    held_at: datetime


@dataclass
class Plan:
    """A plan with all prices that it has had, oldest first."""

    prices: list[tuple[Decimal, Acknowledged]]

    @property
    def price(self) -> Decimal:
        """The newest price."""
        return self.prices[-1][0]

    def seen(self, begin: datetime, end: datetime) -> set[Decimal]:
        """The prices that a snapshot taken between two moments may have shown."""
        seen = {
            price for (price, since), (_, until) in pairwise(self.prices) if since.asked_at <= end and until.at >= begin
        }
        last, since = self.prices[-1]
        return seen | {last} if since.asked_at <= end else seen


@dataclass
class Instance:
    """An instance. For a deleted one, `periods` are those that its deletion saw."""

    id: UUID
    organization: UUID
    plan: Plan
    created_at: datetime
    made: Acknowledged
    deleted: Acknowledged | None = None
    archive: list[Period] = field(default_factory=list)


@dataclass
class Model:
    """Everything that was acknowledged. `opening` is each wallet's first balance."""

    opening: dict[UUID, Decimal] = field(default_factory=dict)
    top_ups: dict[UUID, TopUp] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    instances: dict[UUID, Instance] = field(default_factory=dict)
    #: Commits whose answer was lost, by what a later look found.
    looked_up: int = 0

    @property
    def live(self) -> list[Instance]:
        """The instances that were not deleted."""
        return [each for each in self.instances.values() if each.deleted is None]

    def expected_balance(self, organization: UUID, charges: Decimal) -> Decimal:
        """Opening + top-ups - charges."""
        paid_in = sum((each.amount for each in self.top_ups.values() if each.organization == organization), Decimal(0))
        return self.opening[organization] + paid_in - charges


def no_plan(since: datetime) -> Plan:
    """The default price, for an instance without a plan."""
    return Plan([(DEFAULT_PRICE, Acknowledged(since, since))])
