"""The audit: the invariants of money, each a query that finds nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import IsolationLevel

INVARIANTS: Final = {
    "wallet_balance": "a wallet holds the sum of its completed transactions since adoption",
    "wallet_state": "no wallet is negative, null, NaN or double",
    "periods": "billed periods of an instance neither overlap nor leave a gap",
    "last_billed": "last_billed_at is the end of the last billed period",
    "whole_hours": "only whole and past hours are billed",
    "transactions": "every billed amount has its transaction of the same organization, and the other way round",
    "price_clock": "every amount is the price clock's",
    "open_debts": "an instance has at most one open debt",
    "overdue": "nothing is overdue without a recorded reason",
    "terms": "nothing was written under a term that was not the newest",
}
EXAMPLES: Final = 5


@dataclass(frozen=True)
class Finding:
    """An invariant and what breaks it.

    Attributes:
        violations: how many rows break it.
        apart: how many more are older than the adoption, or another program's.
        examples: up to five violations, each a line.
    """

    invariant: str
    meaning: str
    violations: int
    apart: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class AuditReport:
    """What an audit found; `older_rows` are billing rows that this controller did not write."""

    findings: tuple[Finding, ...]
    older_rows: int

    @property
    def clean(self) -> bool:
        """No invariant is violated."""
        return all(finding.violations == 0 for finding in self.findings)


def audit(
    connection: psycopg.Connection[dict[str, Any]], statements: Mapping[str, str], organization: UUID | None = None
) -> AuditReport:
    """Checks every invariant in one snapshot, of all or of one organization; locks nothing, and writes nothing.

    A row that an invariant can't even be computed from breaks it.

    Raises:
        psycopg.Error: the database is away, or lacks the controller's tables.
    """
    connection.autocommit = False
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    with connection.transaction():
        findings = tuple(_check(connection, statements, name, organization) for name in INVARIANTS)
        row = connection.execute(statements["audit_older_rows"].encode()).fetchone()
    return AuditReport(findings, row["older_rows"] if row else 0)


def _check(
    connection: psycopg.Connection[dict[str, Any]], statements: Mapping[str, str], name: str, organization: UUID | None
) -> Finding:
    query = (
        "select count(*) filter (where not apart) as violations, count(*) filter (where apart) as apart,"  # noqa: S608 - the statement is ours, from a file
        f" coalesce((array_agg(subject || ': ' || detail) filter (where not apart))[1:{EXAMPLES}], '{{}}') as examples"
        f" from ({statements[f'audit_{name}']}) as broken"
    )
    try:
        with connection.transaction():
            row = connection.execute(query.encode(), {"organization": organization}).fetchone()
    except psycopg.DataError as error:
        row = {"violations": 1, "apart": 0, "examples": [f"a row can't be read: {error.diag.message_primary}"]}
    row = row or {"violations": 0, "apart": 0, "examples": []}
    return Finding(name, INVARIANTS[name], row["violations"], row["apart"], tuple(row["examples"]))
