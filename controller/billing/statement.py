"""An organization's statement: what was paid and charged in a period, and whether it adds up."""

import re
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from controller import sql
from controller.billing.answers import Subject
from controller.errors import BillingError

WORDS: Final = frozenset({"today", "yesterday", "now"})
_MOMENT: Final = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}(:?\d{2})?)?)?")


class PeriodError(BillingError):
    """The period of a statement can't be read. Exit status 2."""

    exit_status = 2


@dataclass(frozen=True)
class Statement:
    """A statement from `from_time` up to, but excluding, `to_time`, by the payments' `created_at`.

    Attributes:
        organization: the wallet's owner.
        from_time: the start of the period.
        to_time: the end of the period, which is not part of it.
        balance: the row of `billing_statement_balance`.
        lines: the rows of `billing_statement`.
    """

    organization: Subject
    from_time: datetime
    to_time: datetime
    balance: dict[str, Any]
    lines: tuple[dict[str, Any], ...]

    @property
    def difference(self) -> Decimal | None:
        """The amount by which the statement doesn't add up; None if there is no usable wallet to compare with."""
        unexplained: Decimal | None = self.balance["difference"]
        if unexplained is None:
            return None
        listed = sum((line["amount"] for line in self.lines), Decimal(0))
        unlisted: Decimal = self.balance["closing"] - self.balance["opening"] - listed
        return unexplained + unlisted

    def as_dict(self) -> dict[str, Any]:
        """Returns the statement for JSON."""
        return {
            "organization": asdict(self.organization),
            "from": self.from_time,
            "to": self.to_time,
            **self.balance,
            "difference": self.difference,
            "lines": self.lines,
        }


def read_statement(connection: sql.Connection, organization: Subject, from_text: str, to_text: str | None) -> Statement:
    """Reads a statement in one snapshot.

    Args:
        connection: a session on the database.
        organization: id of the organization.
        from_text: a date or a time as ISO 8601, in UTC unless it has an offset; or today or yesterday.
        to_text: the end, in the same forms; None is now.

    Raises:
        PeriodError: a time can't be read, or the period is empty.
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    for option, text in (("--from", from_text), ("--to", to_text)):
        if text is not None and text not in WORDS and not is_moment(text):
            raise PeriodError(f"{option} {text} is not a date such as 2026-11-25, or a time such as 2026-11-25T14:00Z")
    with sql.transaction(connection, isolation="repeatable read", access="read only"):
        period = sql.row(connection, "period", from_time=from_text, to_time=to_text)
        if period["from_time"] >= period["to_time"]:
            raise PeriodError(f"--from {from_text} is not before --to {to_text or 'now'}")
        of = {"organization": organization.organization_id, **period}
        balance = sql.row(connection, "statement_balance", **of)
        lines = sql.rows(connection, "statement", **of)
    return Statement(organization, period["from_time"], period["to_time"], balance, tuple(lines))


def is_moment(text: str) -> bool:
    """Returns True if a text is a date or a time as ISO 8601."""
    if not _MOMENT.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
