"""An independent model of the money, in whole numbers and fractions.

It implements docs/money.md and shares nothing with the SQL that it checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Final

HOUR: Final = timedelta(hours=1)
MICROSECOND: Final = timedelta(microseconds=1)
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The moment at which most tests bill.
NOON: Final = datetime(2025, 3, 1, 12, tzinfo=UTC)
HOURS_A_MONTH: Final = 730
DEFAULT_PRICE: Final = Decimal("19.71")  # 0.027 an hour


def clock_cents(monthly_price: Decimal, moment: datetime) -> int:
    """F(t): the cost of a monthly price from the Unix epoch to `moment`, in whole cents, rounded half up."""
    hours = Fraction((moment - EPOCH) // MICROSECOND, HOUR // MICROSECOND)
    return floor(Fraction(monthly_price) * 100 * hours / HOURS_A_MONTH + Fraction(1, 2))


def charge_of(monthly_price: Decimal, start: datetime, hours: int) -> Decimal:
    """The charge F(end) - F(start), in dollars."""
    cents = clock_cents(monthly_price, start + hours * HOUR) - clock_cents(monthly_price, start)
    return Decimal(cents).scaleb(-2)


def whole_hours(since: datetime, until: datetime) -> int:
    """Whole elapsed hours."""
    return (until - since) // HOUR


@dataclass(frozen=True)
class Owed:
    """Hours that an instance owes at one price, from `start` on."""

    monthly_price: Decimal
    start: datetime
    hours: int

    def cost(self, hours: int) -> Decimal:
        """The price of the oldest `hours` hours, in dollars."""
        return charge_of(self.monthly_price, self.start, hours)

    @property
    def end(self) -> datetime:
        """When the last hour ends."""
        return self.start + self.hours * HOUR

    def affordable(self, balance: Decimal) -> int:
        """How many of the oldest hours a balance can pay. It counts hour by hour."""
        hours = 0
        while hours < self.hours and self.cost(hours + 1) <= max(balance, Decimal(0)):
            hours += 1
        return hours


def settle(balance: Decimal, owed: Sequence[Owed]) -> list[int]:
    """How many hours of each instance a balance can pay, instance by instance, oldest hours first."""
    paid = []
    for each in owed:
        paid.append(each.affordable(balance))
        balance -= each.cost(paid[-1])
    return paid
