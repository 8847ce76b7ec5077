"""Proves that the floor and a cycle did the same work, by a sum of row hashes for each table that billing writes.

The hashes cover what billing decides. They leave out the ids of new rows, write times, and the cycle's own history.
"""

from __future__ import annotations

from typing import Final

import psycopg

_COMPARED_COLUMNS: Final = {
    "wallets": "id, organization_id, balance, currency",
    "vps_instances": "id, organization_id, plan_id, label, status, created_at, last_billed_at",
    "payment_transactions": "organization_id, amount, currency, payment_method, payment_provider, status, description,"
    " metadata",
    "vps_billing_cycles": "vps_instance_id, organization_id, billing_period_start, billing_period_end, hourly_rate,"
    " total_amount, status, metadata, payment_transaction_id is null",
}

#: Row count and sum of hashes, by table.
Fingerprint = dict[str, tuple[int, int]]


def fingerprint(url: str) -> Fingerprint:
    with psycopg.connect(url) as connection:
        connection.execute("set local jit = off")
        return {table: _of_table(connection, table, columns) for table, columns in _COMPARED_COLUMNS.items()}


def differences(one: Fingerprint, other: Fingerprint) -> list[str]:
    """A message for each table that differs."""
    return [
        f"{table}: {rows} and {other[table][0]} rows{' with different contents' if rows == other[table][0] else ''}"
        for table, (rows, contents) in one.items()
        if (rows, contents) != other[table]
    ]


def _of_table(connection: psycopg.Connection[tuple[int, int]], table: str, columns: str) -> tuple[int, int]:
    query = f"select count(*), coalesce(sum(hashtextextended(row({columns})::text, 0)::numeric), 0) from {table}"  # noqa: S608 - names from above
    ((rows, contents),) = connection.execute(query.encode()).fetchall()
    return int(rows), int(contents)
