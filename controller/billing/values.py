"""The values that a cycle passes around."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol, Self
from uuid import UUID


class Leadership(Protocol):
    """The leadership that a cycle works under; implemented by the election."""

    @property
    def term(self) -> int:
        """The term that was minted for this leadership. A newer one may exist already; only the fence knows."""

    def still_leads(self) -> bool:
        """True while this replica may believe that it leads. Check it before each step."""


class Outcome(StrEnum):
    """How a cycle ended. The first four are values of `billing_runs.outcome`.

    A cycle that was deposed, or superseded by a migration to another generation, can't write there.
    """

    COMPLETED = "completed"
    COMPLETED_WITH_FAILURES = "completed_with_failures"
    FAILED = "failed"
    STOPPED = "stopped"
    DEPOSED = "deposed"
    SUPERSEDED = "superseded"


class Cause(StrEnum):
    """What is at fault in a failed cycle, or what stopped a cycle."""

    CONTROLLER = "controller"
    """The cycle ended with an error, or every organization failed with the same one. It is tried again at once."""
    ORGANIZATIONS = "organizations"
    """No organization could be charged, each for a reason in its own rows. The next cycle starts after the interval."""
    DRAIN = "drain"
    """The replica was told to stop, and the cycle had not ended by the deadline."""
    HALT = "halt"
    """A pause or another biller halted billing during the cycle."""


@dataclass(frozen=True)
class Pricing:
    """The settings that a charge depends on.

    Attributes:
        default_monthly_price: price of an instance whose plan has none; None records a failure instead.
        currency: the currency that every wallet must have, as an ISO 4217 code.
        accepted_columns: columns of plans and instances that look like prices and may be ignored.
        max_backlog_hours: an instance with more unrecorded hours before the last successful cycle is not charged; None
            for no limit.
    """

    default_monthly_price: Decimal | None
    currency: str
    accepted_columns: tuple[str, ...] = ()
    max_backlog_hours: int | None = None


@dataclass(frozen=True)
class Totals:
    """Committed totals.

    They count the charged instances, their hours and the amount in the wallets' currency, the instances with an open
    debt, the instances that could not be charged for a reason other than their balance, and the instances of suspended
    organizations. An instance that was charged in part counts as charged and as a debt.
    """

    instances: int = 0
    hours: int = 0
    amount: Decimal = Decimal(0)
    debts: int = 0
    failures: int = 0
    suspended: int = 0

    def __add__(self, other: Self) -> "Totals":
        return Totals(
            self.instances + other.instances,
            self.hours + other.hours,
            self.amount + other.amount,
            self.debts + other.debts,
            self.failures + other.failures,
            self.suspended + other.suspended,
        )

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        """Reads a row with columns of these names."""
        return cls(
            int(row["instances"]),
            int(row["hours"]),
            Decimal(row["amount"]),
            int(row["debts"]),
            int(row["failures"]),
            int(row["suspended"]),
        )


@dataclass(frozen=True)
class Run:
    """A cycle in progress: its row in `billing_runs`.

    Attributes:
        as_of: the cycle charges what was due at this time of the database's clock.
        late_seconds: how long after it was due the cycle started; negative if it was triggered early. None for the
            first cycle and for a dry run.
    """

    id: int
    term: int
    as_of: datetime
    late_seconds: float | None = None


@dataclass(frozen=True)
class TakeoverWait:
    """A takeover's delay that is running. It is longer if another program bills in the meantime.

    Attributes:
        until: its end, by the database's clock.
        seconds: until then.
    """

    until: datetime
    seconds: float


@dataclass(frozen=True)
class TermStart:
    """Who billed before a term began.

    Attributes:
        silent: True if no heartbeat is younger than 90 minutes, so the application may be billing.
        after_other: True if the newest heartbeat is another daemon's.
        waits_until: the end of a takeover delay that an earlier leader began; None if no delay is running.
    """

    silent: bool
    after_other: bool
    waits_until: datetime | None = None


@dataclass(frozen=True)
class ResumePoint:
    """The last instance of a large organization that has been processed, in charging order.

    `created_at` is text as the server prints it, since Python can't represent infinity or years BC.
    """

    created_at: str
    id: UUID


@dataclass(frozen=True)
class Batch:
    """A range of organizations, both ends included.

    Attributes:
        instances: due in this range, as planned.
        large: True for a single organization that is charged in several transactions.
        failed_before: True for a single organization that an earlier cycle could not charge.
        locked_by_others: True if another session held locks on its rows when it was last tried.
        after: where earlier transactions of this cycle ended in a large organization; None if there were none.
        limit: the most instances in one transaction of a single organization, found by earlier transactions of this
            cycle; None if there were none.
    """

    first_organization: UUID
    last_organization: UUID
    instances: int
    large: bool = False
    failed_before: bool = False
    locked_by_others: bool = False
    after: ResumePoint | None = None
    limit: int | None = None


@dataclass(frozen=True)
class BatchResult:
    """The result of one transaction.

    Attributes:
        due: how many due instances it processed.
        locked_by_others: organizations left out because another session holds a lock on one of their rows.
        failures_by_reason: number of instances that could not be charged, by reason.
        unrecorded: organizations whose failure is counted but could not be recorded on their instances.
        failed: organizations that the database refused or whose rows are locked, each with the reason and the error.
        priced_by_default: up to 20 instances whose plan has no price, for a warning that names them.
        rewound: up to 20 instances whose last_billed_at was behind the ledger and has been corrected.
        last: where a large organization continues; None if none of its instances was processed.
        largest: the largest charges of a dry run's transaction: instance, organization, hours and amount.
    """

    totals: Totals
    due: int
    locked_by_others: tuple[UUID, ...] = ()
    failures_by_reason: Mapping[str, int] = field(default_factory=dict)
    unrecorded: tuple[UUID, ...] = ()
    failed: Mapping[UUID, str] = field(default_factory=dict)
    priced_by_default: tuple[dict[str, str], ...] = ()
    rewound: tuple[dict[str, str], ...] = ()
    last: ResumePoint | None = None
    largest: tuple[dict[str, Any], ...] = ()

    def __add__(self, other: Self) -> "BatchResult":
        """Combines the two parts of one step: the fast path and the ordered one."""
        return BatchResult(
            self.totals + other.totals,
            max(self.due, other.due),
            self.locked_by_others + other.locked_by_others,
            Counter(self.failures_by_reason) + Counter(other.failures_by_reason),
            self.unrecorded + other.unrecorded,
            {**self.failed, **other.failed},
            self.priced_by_default + other.priced_by_default,
            self.rewound + other.rewound,
            # The ordered path has the later snapshot. The fast path's may lack an instance that has appeared since.
            other.last or self.last,
            self.largest + other.largest,
        )


@dataclass(frozen=True)
class CycleResult:
    """A cycle that has ended.

    Attributes:
        run: None if it failed before its row was written.
        error: one line; None if it completed.
        failures_by_reason: number of instances that could not be charged, by reason.
        cause: what failed the cycle; None for a cycle that did not fail.
        largest: the ten largest charges of a dry run, the largest first.
    """

    outcome: Outcome
    totals: Totals
    seconds: float
    run: Run | None = None
    error: str | None = None
    failures_by_reason: dict[str, int] | None = None
    cause: Cause | None = None
    largest: tuple[dict[str, Any], ...] = ()
