"""Reads what the pages and the metrics show: the public facts, which name no customer, and the operator's.

The public facts leave this module without anything that could name a customer. An error's text may quote a row, and an
operator's reason for a pause is free text, so neither is in them.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from controller import sql
from controller.billing.status import Status, read_history, read_status

Row = dict[str, Any]

#: Runs that a page lists.
SHOWN_RUNS: Final = 10
#: Organizations that the operator's page lists for each reason.
SHOWN_ORGANIZATIONS: Final = 10


@dataclass(frozen=True)
class PublicFacts:
    """Facts for anyone who reaches the HTTP port.

    Attributes:
        status: the status without the text of errors.
        runs: the newest runs, newest first, without the text of errors.
    """

    status: Status
    runs: tuple[Row, ...]


@dataclass(frozen=True)
class OperatorFacts:
    """Facts for operators, with the names of customers.

    Attributes:
        status: the complete status.
        runs: the newest runs, newest first, as `billing_history` has them.
        day: rows of `billing_last_day`.
        uncharged: rows of `billing_uncharged`, the first organizations for each reason, with the reason's totals.
        suspensions: suspended organizations, the newest first.
    """

    status: Status
    runs: tuple[Row, ...]
    day: tuple[Row, ...] = ()
    uncharged: tuple[Row, ...] = ()
    suspensions: tuple[Row, ...] = ()


def read_public_facts(connection: sql.Connection) -> PublicFacts:
    """Reads the public facts.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated. Its text may name a customer.
    """
    status = read_status(connection)
    return PublicFacts(
        replace(
            status,
            last_run=status.last_run and _without_error(status.last_run),
            notices=tuple(replace(each, message=each.public_message) for each in status.notices),
        ),
        tuple(_without_error(run) for run in read_history(connection, SHOWN_RUNS)),
    )


def read_operator_facts(connection: sql.Connection) -> OperatorFacts:
    """Reads the operator's facts.

    Raises:
        psycopg.Error: the database can't be reached, or is not migrated.
    """
    return OperatorFacts(
        read_status(connection),
        tuple(read_history(connection, SHOWN_RUNS)),
        tuple(sql.rows(connection, "last_day")),
        tuple(sql.rows(connection, "uncharged", limit=SHOWN_ORGANIZATIONS)),
        tuple(sql.rows(connection, "suspensions", limit=SHOWN_ORGANIZATIONS)),
    )


def _without_error(run: Row) -> Row:
    return {name: value for name, value in run.items() if name != "error"}
