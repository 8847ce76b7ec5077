"""Checks that this role sees every row that billing reads and may write every row that it writes.

Row-level security hides rows without an error: no instance is due, every wallet is missing. A narrow type changes what
is written. So billing refuses to start on a database where that can happen, and says what to change.
"""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Final

from controller import sql
from controller.errors import BillingError

#: The rights that billing needs, by table. Where columns are listed, a right on those columns is enough.
RIGHTS: Final = {
    "organizations": {"select": "", "update": "id"},  # row locks need an update right
    "wallets": {"select": "", "update": "balance, updated_at"},
    "vps_plans": {"select": ""},
    "vps_instances": {"select": "", "update": "last_billed_at"},
    "payment_transactions": {"select": "", "insert": "", "update": "metadata"},
    "vps_billing_cycles": {"select": "", "insert": "", "update": "", "delete": ""},
    "billing_daemon_status": {"select": "", "insert": "", "update": "", "delete": ""},
    "billing_leadership": {"select": "", "update": ""},
    "billing_terms": {"select": "", "insert": ""},
    "billing_wallet_baselines": {"select": "", "insert": "", "update": ""},
    "billing_wallet_differences": {"select": "", "insert": "", "update": "", "delete": ""},
    "billing_corrections": {"select": "", "insert": ""},
    "billing_accepted_backlogs": {"select": "", "insert": ""},
    "billing_runs": {"select": "", "insert": "", "update": ""},
    "billing_batches": {"select": "", "insert": "", "delete": ""},
    "billing_prices": {"select": "", "insert": "", "update": ""},
    "billing_price_check": {"select": "", "insert": "", "update": ""},
    "billing_suspensions": {"select": "", "insert": "", "delete": ""},
    "billing_guard": {"select": "", "update": ""},
    "billing_daemon_sightings": {"select": "", "insert": "", "update": "", "delete": ""},
    "billing_foreign_periods": {"select": "", "insert": "", "delete": ""},
    "billing_commands": {"select": "", "insert": "", "update": ""},
}
#: The types that hold what billing writes; for numeric, the decimals that it needs.
TYPES: Final = {
    "wallets.balance": ("numeric", 2),
    "payment_transactions.amount": ("numeric", 2),
    "payment_transactions.metadata": ("jsonb", 0),
    "vps_billing_cycles.billing_period_start": ("timestamptz", 0),
    "vps_billing_cycles.billing_period_end": ("timestamptz", 0),
    "vps_billing_cycles.hourly_rate": ("numeric", 4),
    "vps_billing_cycles.total_amount": ("numeric", 2),
    "vps_billing_cycles.metadata": ("jsonb", 0),
    "vps_instances.last_billed_at": ("timestamptz", 0),
    "vps_instances.created_at": ("timestamptz", 0),
    "vps_plans.base_price": ("numeric", 2),
    "vps_plans.markup_price": ("numeric", 2),
    "billing_daemon_status.heartbeat_at": ("timestamptz", 0),
}


class AccessError(BillingError):
    """The database hides rows from this role, denies a right, or can't hold what billing writes."""


def check(connection: sql.Connection, accepted_columns: Collection[str]) -> None:
    """Raises AccessError unless billing sees and may write everything that it needs.

    Args:
        connection: a session on the workers' database, under the workers' role.
        accepted_columns: `column` or `table.column` names of BILLING_ACCEPT_COLUMNS.

    Raises:
        AccessError: one line: the first problem with its remedy, and how many more there are.
        psycopg.Error: the database can't be reached.
    """
    with sql.transaction(connection):
        problems = [
            *not_tables(connection),
            *(
                f"this role lacks the right to {row['right']}; run manifests/role.sql as the owner"
                for row in missing_rights(connection)
            ),
            *hidden_rows(connection),
            *unfit_columns(connection),
            *unknown_prices(connection, accepted_columns),
        ]
    if problems:
        more = f" (and {len(problems) - 1} more problems of this kind)" if len(problems) > 1 else ""
        raise AccessError(problems[0] + more)


def require(connection: sql.Connection, rights: Mapping[str, Mapping[str, str]], purpose: str) -> None:
    """Raises AccessError if this role lacks a right.

    Args:
        connection: a session under the role to check.
        rights: table, then right, then columns, as in RIGHTS.
        purpose: what the rights are for, such as `to give commands`.
    """
    with sql.transaction(connection):
        missing = missing_rights(connection, rights)
    if missing:
        raise AccessError(f"this role lacks the right {purpose}: {missing[0]['right']}; use the controller's role")


def missing_rights(
    connection: sql.Connection, rights: Mapping[str, Mapping[str, str]] = MappingProxyType(RIGHTS)
) -> list[sql.Row]:
    """Returns `table_name` and `right` of each of these rights that this role lacks, ordered by table."""
    wanted = [(table, right, columns) for table, needed in rights.items() for right, columns in needed.items()]
    tables, privileges, columns = (list(each) for each in zip(*wanted, strict=True))
    return sql.rows(connection, "missing_rights", tables=tables, privileges=privileges, columns=columns)


def not_tables(connection: sql.Connection) -> list[str]:
    """Returns a problem for each relation that is not a table."""
    return [
        f"{row['table_name']} is not a table and may hide rows; billing needs the application's own table"
        for row in sql.rows(connection, "not_tables", tables=list(RIGHTS))
    ]


def hidden_rows(connection: sql.Connection) -> list[str]:
    """Returns a problem, with its remedy, for each table whose policies may hide rows from this role."""
    problems = []
    for row in sql.rows(connection, "hidden_rows", tables=list(RIGHTS)):
        others = f" and drop or narrow its other policies ({row['others']})" if row["others"] else ""
        problems.append(
            f"row-level security may hide rows of {row['table_name']} from role {row['role']}; run"
            f" `alter role {row['role']} bypassrls`, or `create policy billing on {row['table_name']} to {row['role']}"
            f" using (true) with check (true)`{others}"
        )
    return problems


def unfit_columns(connection: sql.Connection) -> list[str]:
    """Returns a problem, with its remedy, for each column that can't hold what billing reads or writes."""
    names = [name.split(".") for name in TYPES]
    rows = sql.rows(
        connection,
        "unfit_columns",
        tables=[table for table, _ in names],
        columns=[column for _, column in names],
        types=[wanted for wanted, _ in TYPES.values()],
        scales=[scale for _, scale in TYPES.values()],
    )
    return [
        f"{row['table_name']}.{row['column_name']} is {row['actual']} and can't hold what billing writes; make it"
        f" {row['wanted']} in full precision"
        for row in rows
    ]


def unknown_prices(connection: sql.Connection, accepted_columns: Collection[str]) -> list[str]:
    """Returns a problem, with its remedy, for each column that looks like a price and is not accepted."""
    return [
        f"{row['name']} looks like a price that this version does not charge; add it to BILLING_ACCEPT_COLUMNS if it is"
        " not one"
        for row in sql.rows(connection, "unknown_price_columns", accepted=sorted(accepted_columns))
    ]
