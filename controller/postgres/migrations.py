"""Brings a ContainerStacks database to the schema that this version works on.

Migrations are plain SQL, forward only, each safe to run twice (so also by hand with `psql -f`), each in one
transaction. An advisory lock lets any number of replicas run them at once. A new version's migrations keep the
previous version working, since it goes on billing during a rollout.
"""

import re
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import psycopg

from controller.errors import BillingError
from controller.postgres.connections import MIGRATION, BoundedConnection, Database, one_line

# Any constant serves that no election uses: the elections' are hashes of names.
_LOCK_KEY: Final = 0x636F_6E73_6269_6C6D

_FILE: Final = re.compile(r"\d+_\w+\.sql")

#: What the application must have made before: table, and the columns of it that are read or written here.
REQUIRED: Final = {
    "organizations": ("id",),
    "wallets": ("id", "organization_id", "balance", "currency", "updated_at"),
    "vps_plans": ("id", "provider_plan_id", "base_price", "markup_price", "active", "created_at"),
    "vps_instances": ("id", "organization_id", "plan_id", "label", "created_at", "last_billed_at"),
    "payment_transactions": (
        "id", "organization_id", "amount", "currency", "payment_method", "payment_provider", "status",
        "description", "metadata", "created_at",
    ),
    "vps_billing_cycles": (
        "id", "vps_instance_id", "organization_id", "billing_period_start", "billing_period_end", "hourly_rate",
        "total_amount", "status", "payment_transaction_id", "metadata",
    ),
}  # fmt: skip


class SchemaError(BillingError):
    """The database is not a ContainerStacks database, or is not migrated."""


@dataclass(frozen=True)
class Migration:
    """`name` is the file's, without `.sql`."""

    name: str
    sql: str


def available() -> list[Migration]:
    """The migrations of this version, in order."""
    packaged: Traversable = resources.files("controller") / "migrations"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"
    # schema.sql lies beside them: the generated result, which is never applied
    files = sorted((f for f in folder.iterdir() if _FILE.fullmatch(f.name)), key=lambda f: f.name)
    return [Migration(f.name.removesuffix(".sql"), f.read_text("utf-8")) for f in files]


def missing(connection: psycopg.Connection[Any]) -> list[str]:
    """The tables, and `table.column`s, of the application that are not there."""
    rows = connection.execute(
        """
        select r.relname, array_agg(a.attname::text) as columns
        from pg_class r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
        where r.oid = any (select to_regclass(t)::oid from unnest(%s::text[]) as t)
        group by r.relname
        """,
        (list(REQUIRED),),
    ).fetchall()
    present = {row["relname"]: set(row["columns"]) for row in rows}
    return [table for table in REQUIRED if table not in present] + [
        f"{table}.{column}"
        for table, columns in REQUIRED.items()
        for column in columns
        if table in present and column not in present[table]
    ]


def pending(connection: psycopg.Connection[Any]) -> list[Migration]:
    """The migrations that this database has not had yet."""
    # from the catalog itself: to_regclass could answer from before another replica's migration
    row = connection.execute(
        "select exists (select from pg_class where relname = 'billing_schema_migrations'"
        " and pg_table_is_visible(oid)) as made"
    ).fetchone()
    if row is None or not row["made"]:
        return available()
    applied = {r["name"] for r in connection.execute("select name from billing_schema_migrations").fetchall()}
    return [migration for migration in available() if migration.name not in applied]


def check(connection: psycopg.Connection[Any]) -> None:
    """Raises SchemaError unless billing can work here."""
    if absent := missing(connection):
        raise SchemaError(
            f"this is not a ContainerStacks database: {', '.join(absent)} missing;"
            " check the database name in DATABASE_URL, or run the application's own migrations first"
        )
    if names := [migration.name for migration in pending(connection)]:
        raise SchemaError(f"migrations not applied: {', '.join(names)}; run `containerstacks-billing migrate`")


def migrate_url(url: str) -> None:
    """Migrates the database at `url`; see `migrate`."""
    with Database(lambda: url, "DATABASE_URL", "migrate").connect(MIGRATION) as connection:
        migrate(connection)


def migrate(connection: BoundedConnection) -> list[str]:
    """Applies what is pending, and gives the names of what it applied.

    Raises:
        SchemaError: the application's tables are missing, or a migration failed (its transaction is rolled back).
    """
    if absent := missing(connection):
        raise SchemaError(
            f"this is not a ContainerStacks database: {', '.join(absent)} missing;"
            " check the database name in DATABASE_URL, or run the application's own migrations first"
        )
    applied = []
    for migration in pending(connection):
        try:
            with connection.transaction():
                connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
                # a table lock that waits queues everyone behind it
                connection.execute("set local lock_timeout = '10s'")
                if migration.name in {m.name for m in pending(connection)}:  # another replica may have been faster
                    connection.execute(migration.sql.encode())
                    applied.append(migration.name)
        except psycopg.Error as error:
            raise SchemaError(f"migration {migration.name} failed and was rolled back: {one_line(error)}") from error
    return applied
