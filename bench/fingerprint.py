"""The proof that floor and cycle did the same work: all that billing decides, of every row, as a sum of hashes.

Left out is what can't be equal: ids of new rows, times of writing, and the cycle's own history.
"""

from __future__ import annotations

from typing import Final

import psycopg

_DECIDED: Final = {
    "wallets": "id, organization_id, balance, currency",
    "vps_instances": "id, organization_id, plan_id, label, status, created_at, last_billed_at",
    "payment_transactions": "organization_id, amount, currency, payment_method, payment_provider, status, description,"
    " metadata",
    "vps_billing_cycles": "vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,"
    " total_amount, status, metadata, payment_transaction_id is null",
}

Fingerprint = dict[str, tuple[int, int]]


def fingerprint(url: str) -> Fingerprint:
    """Rows and hash of each table that billing writes."""
    with psycopg.connect(url) as connection:
        connection.execute("set local jit = off")
        return {table: _of_table(connection, table, columns) for table, columns in _DECIDED.items()}


def differences(one: Fingerprint, other: Fingerprint) -> list[str]:
    """The tables in which they differ, for people."""
    return [
        f"{table}: {rows} and {other[table][0]} rows{', of other contents' if rows == other[table][0] else ''}"
        for table, (rows, contents) in one.items()
        if (rows, contents) != other[table]
    ]


def _of_table(connection: psycopg.Connection[tuple[int, int]], table: str, columns: str) -> tuple[int, int]:
    query = f"select count(*), coalesce(sum(hashtextextended(row({columns})::text, 0)::numeric), 0) from {table}"  # noqa: S608 - names from above
    ((rows, contents),) = connection.execute(query.encode()).fetchall()
    return int(rows), int(contents)
