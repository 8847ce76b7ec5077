"""Backlog: instances with many hours that no one has billed or recorded, until an operator accepts them.

SQL functions of migrations 041 and 052 say which instances these are. Charging, `explain` and dry runs call them.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from controller import sql
from controller.billing.values import Pricing
from controller.errors import BillingError

#: A dry run names instances with more unrecorded hours than this.
LISTED_HOURS: Final = 48
#: The most instances that a dry run names.
LISTED: Final = 20


class OtherBacklogError(BillingError):
    """The instances in backlog are not the ones that the operator has seen. Nothing was accepted."""


@dataclass(frozen=True)
class Accepted:
    """What an operator has accepted: hours until `accepted_until` may be charged.

    Attributes:
        accepted_until: the end of the accepted hours, by the database's clock.
        instances: how many were accepted, by their open rows.
        owed: what their open rows say they cost.
    """

    accepted_until: datetime
    instances: int
    owed: Decimal


def read_unrecorded(connection: sql.Connection, pricing: Pricing) -> list[dict[str, Any]]:
    """Reads up to 20 instances with more than 48 unrecorded hours, the most hours first. `found` counts all of them.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    return sql.rows(
        connection,
        "unrecorded",
        min_hours=LISTED_HOURS,
        max_backlog_hours=pricing.max_backlog_hours,
        default_monthly_price=pricing.default_monthly_price,
        limit=LISTED,
    )


def read_backlogs(connection: sql.Connection, organization: UUID | None, pricing: Pricing) -> list[dict[str, Any]]:
    """Reads the instances in backlog, longest first: those that cycles have recorded, and those that the next would.

    Args:
        connection: a session in autocommit mode.
        organization: None for all.
        pricing: its limit and default price apply to hours that no cycle has recorded.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    return sql.rows(connection, "backlogs", **_subject(organization, pricing))


def accept_backlog(
    connection: sql.Connection,
    organization: UUID | None,
    pricing: Pricing,
    *,
    accepted_by: str,
    reason: str,
    expected: int | None = None,
) -> Accepted:
    """Accepts the hours of the instances that `read_backlogs` lists, up to now. The next cycle charges them.

    Args:
        connection: a session in autocommit mode; the command takes no lock.
        organization: None for all.
        pricing: its limit and default price apply to hours that no cycle has recorded.
        accepted_by: the operator, for the record.
        reason: the operator's reason, for the record.
        expected: how many instances the operator has seen; None for any number.

    Raises:
        OtherBacklogError: the number of instances in backlog is different.
        psycopg.Error: the database can't be reached, or refuses.
    """
    who = {"accepted_by": accepted_by, "reason": reason}
    row = sql.row(connection, "accept_backlog", expected=expected, **who, **_subject(organization, pricing))
    found = row.pop("found")
    if expected not in {None, found}:
        raise OtherBacklogError(
            f"{found} instances are in backlog, not {expected}; look again: `containerstacks-billing accept-backlog`"
        )
    return Accepted(**row)


def _subject(organization: UUID | None, pricing: Pricing) -> dict[str, Any]:
    return {
        "organization": organization,
        "max_backlog_hours": pricing.max_backlog_hours,
        "default_monthly_price": pricing.default_monthly_price,
    }
