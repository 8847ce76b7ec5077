"""The values that a cycle is made of."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, Self
from uuid import UUID


class Leadership(Protocol):
    """Under what a cycle works; implemented by the election."""

    @property
    def term(self) -> int:
        """The newest term, as far as is known."""

    def still_leads(self) -> bool:
        """Asked before each step."""


class Outcome(StrEnum):
    """How a cycle ended. The first three are `billing_runs.outcome`; a deposed leader can't write its own."""

    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    DEPOSED = "deposed"


@dataclass(frozen=True)
class Pricing:
    """What a charge depends on besides the rows.

    Attributes:
        default_monthly_price: for an instance without a priced plan; None records a failure instead.
        currency: the one that wallets must have.
    """

    default_monthly_price: Decimal | None
    currency: str


@dataclass(frozen=True)
class Totals:
    """What was committed: instances charged, hours, amount in the wallets' currency; instances with an open debt, and
    instances that failed for another reason.
    """

    instances: int = 0
    hours: int = 0
    amount: Decimal = Decimal(0)
    debts: int = 0
    failures: int = 0

    def __add__(self, other: Self) -> "Totals":
        return Totals(
            self.instances + other.instances,
            self.hours + other.hours,
            self.amount + other.amount,
            self.debts + other.debts,
            self.failures + other.failures,
        )

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """From a row with these columns."""
        return cls(
            int(row["instances"]),
            int(row["hours"]),
            Decimal(row["amount"]),
            int(row["debts"]),
            int(row["failures"]),
        )


@dataclass(frozen=True)
class Run:
    """A cycle under way: its row in `billing_runs`. What is due is what was due at `as_of`."""

    id: int
    term: int
    as_of: datetime


@dataclass(frozen=True)
class Batch:
    """A range of organizations, both ends included.

    A `large` batch is one organization, charged in steps. `locked_by_others`: another session held row locks.
    """

    first_organization: UUID
    last_organization: UUID
    instances: int
    large: bool = False
    locked_by_others: bool = False


@dataclass(frozen=True)
class ResumePoint:
    """The last instance of a large organization that has been dealt with, in charging order.

    `created_at` as the server writes it: Python has no word for infinity, or for years before Christ.
    """

    created_at: str
    id: UUID


@dataclass(frozen=True)
class BatchResult:
    """What one transaction did.

    Attributes:
        due: instances looked at.
        locked_by_others: organizations left out because someone else holds a lock on one of their rows.
        failures_by_reason: instances by the reason for which they could not be charged.
        priced_by_default: up to 20 instances without a priced plan, for a warning that names them.
        last: where a large organization's next step goes on.
    """

    figures: Totals
    due: int
    locked_by_others: tuple[UUID, ...] = ()
    failures_by_reason: Mapping[str, int] = field(default_factory=dict)
    priced_by_default: tuple[dict[str, str], ...] = ()
    last: ResumePoint | None = None

    def __add__(self, other: Self) -> "BatchResult":
        """Both parts of one step: what was plainly covered, and what had to go in order."""
        return BatchResult(
            self.figures + other.figures,
            max(self.due, other.due),
            self.locked_by_others + other.locked_by_others,
            Counter(self.failures_by_reason) + Counter(other.failures_by_reason),
            self.priced_by_default + other.priced_by_default,
            other.last or self.last,  # the later of two snapshots: an instance between them would displace one
        )


@dataclass(frozen=True)
class CycleResult:
    """A cycle that has ended. `error` is one line, where there is one."""

    outcome: Outcome
    figures: Totals
    seconds: float
    run: Run | None = None
    error: str | None = None
    failures_by_reason: dict[str, int] | None = None
