"""Reads the answers to questions about customers: who owes what, why an instance was not charged, what happens next.

The facts are SQL functions of the migrations from 034 on, so `psql` shows the same answers.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from controller import sql
from controller.billing.audit import AuditReport
from controller.billing.values import Pricing
from controller.errors import BillingError

#: How many candidates a message lists.
LISTED: Final = 5
_ID: Final = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")

#: What to do about hours that can't be charged, by failure reason.
REMEDIES: Final = {
    "insufficient_balance": "top up the wallet; the leader collects the debt within a minute",
    "wallet_missing": "give the organization a wallet",
    "wallet_duplicate": "leave the organization exactly one wallet",
    "balance_null": "correct the wallet's balance",
    "balance_nan": "correct the wallet's balance",
    "balance_infinite": "correct the wallet's balance",
    "currency_mismatch": "the wallet's currency must be BILLING_CURRENCY",
    "price_missing": "give the plan a price, or set BILLING_DEFAULT_HOURLY_RATE",
    "price_negative": "correct the price of the plan",
    "price_nan": "correct the price of the plan",
    "price_infinite": "correct the price of the plan",
    "start_unknown": "give the instance a created_at",
    "backlog": "run `containerstacks-billing accept-backlog ORG --reason TEXT` to charge these hours, or `waive` them",
    "audit_violation": "run `containerstacks-billing audit --organization ID`; a clean audit ends the suspension",
    "suspended": "run `containerstacks-billing unsuspend ORG`; the hours are then charged at their recorded prices",
    "locked": "find the transaction that keeps the organization's rows locked; the next cycle tries again",
    "error": "the database refused the rows; correct the rows, the constraint or the trigger that the error names",
}


class NameNotFoundError(BillingError):
    """No organization or instance has the given name, or several have it. Exit status 2."""

    exit_status = 2


@dataclass(frozen=True)
class Subject:
    """The organization or instance that a name refers to."""

    organization_id: UUID
    organization: str
    slug: str
    instance_id: UUID | None = None
    label: str | None = None

    @property
    def title(self) -> str:
        """Returns a description for people."""
        organization = f"organization {self.organization} ({self.slug}, {self.organization_id})"
        if self.instance_id is None:
            return organization
        return f"instance {self.label or 'without a label'} ({self.instance_id}) of {self.slug}"


@dataclass(frozen=True)
class Explanation:
    """The reasons why a subject was or was not charged, and what the next cycle will do.

    Attributes:
        subject: what was asked about.
        organization: the row of `billing_organization`.
        instances: rows of `billing_instances`.
        as_of: when the next cycle is due; now if it is already due.
        outlook: rows of `billing_outlook` for that time.
    """

    subject: Subject
    organization: dict[str, Any]
    instances: tuple[dict[str, Any], ...]
    as_of: datetime
    outlook: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the facts for JSON, with the remedy of each reason."""
        return {
            "organization": self.organization,
            "as_of": self.as_of,
            "instances": [
                {
                    **instance,
                    "next_cycle": [row for row in self.outlook if row["instance_id"] == instance["instance_id"]],
                }
                for instance in self.instances
            ],
            "remedies": {reason: REMEDIES.get(reason) for reason in self.reasons()},
        }

    def reasons(self) -> list[str]:
        """Returns the distinct reasons why hours can't be charged."""
        expected = {reason for row in self.outlook if (reason := not_charged_because(row))}
        # the database refused or could not lock these rows; only the next cycle can tell whether that has changed
        recorded = {row["open_reason"] for row in self.instances if row["open_reason"] in {"error", "locked"}}
        return sorted(expected | recorded)


def not_charged_because(segment: dict[str, Any]) -> str | None:
    """Returns why a segment of the outlook isn't charged in full; None if it is."""
    reason: str | None = segment["failure_reason"]
    return reason or ("insufficient_balance" if segment["paid_hours"] < segment["hours"] else None)


def find(connection: sql.Connection, name: str, *, organizations_only: bool = False) -> Subject:
    """Finds the only organization or instance with an id, slug or label.

    Raises:
        NameNotFoundError: there is none, or there are several.
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    found = find_all(connection, name)
    if organizations_only:
        found = [subject for subject in found if subject.instance_id is None]
    match found:
        case [subject]:
            return subject
        case []:
            kinds = "organization has the id or slug" if organizations_only else "id, slug or label is"
            raise NameNotFoundError(f"no {kinds} {name}")
    raise NameNotFoundError(f"{name} may refer to {_listed(subject.title for subject in found)}: use an id")


def find_all(connection: sql.Connection, name: str) -> list[Subject]:
    """Finds every organization and instance with an id, slug or label.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    rows = sql.rows(connection, "find", wanted=name.replace("\0", ""))
    return [Subject(**{key: row[key] for key in Subject.__dataclass_fields__}) for row in rows]


def _listed(titles: Iterable[str]) -> str:
    titles = list(titles)
    more = len(titles) - LISTED
    return ", or ".join(titles[:LISTED]) + (f", and {more} more" if more > 0 else "")


def read_runway(
    connection: sql.Connection, organization: UUID | None, within: timedelta | None, pricing: Pricing
) -> list[dict[str, Any]]:
    """Reads how long wallets last, shortest first. `within` leaves out wallets that last longer."""
    return sql.rows(
        connection,
        "runway",
        organization=organization,
        within_hours=None if within is None else within / timedelta(hours=1),
        default_monthly_price=pricing.default_monthly_price,
    )


def read_run(connection: sql.Connection, run: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a run, and the instances that it could not charge.

    Raises:
        NameNotFoundError: there is no such run.
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    row = sql.optional_row(connection, "run", run=run)
    if row is None:
        raise NameNotFoundError(f"there is no run {run}; see `containerstacks-billing history`")
    return row, sql.rows(connection, "run_failures", run=run)


def with_names(connection: sql.Connection, report: AuditReport) -> AuditReport:
    """Returns the report with the owner of the first id added to each example."""
    texts = [text for each in report.findings for text in (*each.examples, *each.exempt_examples)]
    first_ids = {UUID(match[0]) for text in texts if (match := _ID.search(text))}
    names = {row["id"]: row["name"] for row in sql.rows(connection, "names", ids=list(first_ids))}

    def named(example: str) -> str:
        match = _ID.search(example)
        name = names.get(UUID(match[0])) if match else None
        return f"{example} ({name})" if name else example

    return replace(
        report,
        findings=tuple(
            replace(
                each,
                examples=tuple(map(named, each.examples)),
                exempt_examples=tuple(map(named, each.exempt_examples)),
            )
            for each in report.findings
        ),
    )


def read_debts(
    connection: sql.Connection, organization: UUID | None, older_than: timedelta | None
) -> list[dict[str, Any]]:
    """Reads the debts by instance, oldest first."""
    return sql.rows(connection, "instance_debts", organization=organization, older_than=older_than)


def read_lost_debts(
    connection: sql.Connection, organization: UUID | None, older_than: timedelta | None
) -> list[dict[str, Any]]:
    """Reads the debts that were written off by the deletion of their instance or organization."""
    return sql.rows(connection, "lost_debts", organization=organization, older_than=older_than)


def explain(connection: sql.Connection, subject: Subject, pricing: Pricing, *, limit: int | None = None) -> Explanation:
    """Reads everything known about a subject, in one snapshot. `limit` bounds the instances and the segments.

    Raises:
        NameNotFoundError: it has been deleted.
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    price: dict[str, Decimal | None] = {"default_monthly_price": pricing.default_monthly_price}
    one = {"organization": subject.organization_id}
    with sql.transaction(connection, isolation="repeatable read", access="read only"):
        organization = sql.optional_row(connection, "organization", **one)
        if organization is None:
            raise NameNotFoundError(f"{subject.title} has been deleted")
        as_of = sql.row(connection, "next_cycle_at")["as_of"]
        instances = sql.rows(connection, "instances", **one, **price, instance=subject.instance_id, limit=limit)
        outlook = sql.rows(
            connection,
            "outlook",
            **one,
            **price,
            instance=subject.instance_id,
            as_of=as_of,
            currency=pricing.currency,
            limit=limit,
            max_backlog_hours=pricing.max_backlog_hours,
        )
    return Explanation(subject, organization, tuple(instances), as_of, tuple(outlook))
