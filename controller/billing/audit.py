"""The audit: checks the invariants of money. Each invariant is a query that returns a row for each violation."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final
from uuid import UUID

import psycopg

from controller import sql

INVARIANTS: Final = {
    "wallet_balance": "a wallet holds the sum of its completed transactions since adoption",
    "wallet_state": "no wallet is negative, null, NaN or a duplicate",
    "periods": "billed periods of an instance neither overlap nor leave a gap",
    "last_billed": "last_billed_at is the end of the last billed period",
    "whole_hours": "only whole and past hours are billed",
    "transactions": "every billed amount has one transaction of its organization, and every transaction its period",
    "price_clock": "every amount is what the price clock gives",
    "open_rows": "the open rows of an instance are contiguous",
    "overdue": "nothing is overdue without a recorded reason",
    "terms": "nothing was written under a term that was not the newest",
}
EXAMPLES: Final = 5
#: A generic plan would read whole tables even for one organization.
ONE_ORGANIZATION: Final = {"plan_cache_mode": "force_custom_plan"}
#: An audit of every organization reads whole tables. The server's own settings limit how many processes it may use.
WHOLE: Final = {
    **ONE_ORGANIZATION,
    # The planner can't know that violations are rare. It expects nearly every row to be one. So it would read on one
    # core to avoid passing a million rows between processes, and compile each statement (JIT), which takes seconds.
    "parallel_tuple_cost": "0",
    "jit": "off",
    # Sorts and hash tables of a million periods stay in memory. Larger ones still go to temporary files.
    "work_mem": "64MB",
}


@dataclass(frozen=True)
class Finding:
    """An invariant and what breaks it.

    Attributes:
        violations: how many rows break it.
        exempt: how many more rows are older than the adoption, or written by another program.
        examples: up to five violations, each a line.
        exempt_examples: up to five of the exempt rows.
    """

    invariant: str
    meaning: str
    violations: int
    exempt: int
    examples: tuple[str, ...]
    exempt_examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        findings: one for each invariant.
        older_rows: billing rows that this controller did not write.
        corrections: how often operators corrected or accepted the difference of a wallet.
        corrected: the sum of these amounts, each without its sign.
    """

    findings: tuple[Finding, ...]
    older_rows: int
    corrections: int = 0
    corrected: Decimal = Decimal(0)

    @property
    def clean(self) -> bool:
        """True if no invariant is violated."""
        return all(finding.violations == 0 for finding in self.findings)


def audit(connection: sql.Connection, organization: UUID | None = None) -> AuditReport:
    """Checks every invariant in one snapshot, for one organization or for all. Locks and writes nothing.

    A row that can't be read, such as one with malformed metadata, counts as a violation.

    Raises:
        psycopg.Error: the database can't be reached, or lacks the controller's tables.
    """
    settings = ONE_ORGANIZATION if organization else WHOLE
    with sql.transaction(connection, isolation="repeatable read", access="read only", settings=settings):
        findings = tuple(_check(connection, name, organization) for name in INVARIANTS)
        older = sql.row(connection, "audit_older_rows", organization=organization)
        made = sql.row(connection, "audit_corrections", organization=organization)
    return AuditReport(findings, older["older_rows"], made["corrections"], made["amount"])


def _check(connection: sql.Connection, name: str, organization: UUID | None) -> Finding:
    text = sql.load()["audit_summary"].replace("{invariant}", sql.load()[f"audit_{name}"])
    try:
        with connection.transaction():
            (row,) = sql.execute(connection, text, {"organization": organization, "examples": EXAMPLES})
    except psycopg.DataError as error:
        unreadable = f"a row can't be read: {error.diag.message_primary}"
        row = {"violations": 1, "exempt": 0, "examples": [unreadable], "exempt_examples": []}
    examples, exempt_examples = tuple(row["examples"]), tuple(row["exempt_examples"])
    return Finding(name, INVARIANTS[name], row["violations"], row["exempt"], examples, exempt_examples)
