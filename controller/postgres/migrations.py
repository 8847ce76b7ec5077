"""Brings a ContainerStacks database to the schema that this version needs.

Migrations are plain SQL, go forward only, and are safe to run twice, even by hand with `psql -f`. Any number of
processes may migrate at once: one applies a migration while the others wait.

A file runs in one transaction. A file that begins with `-- concurrently` holds one statement on an index of an
application's table, which runs outside a transaction (see `index_builds`). A migration never makes the application wait
longer than LOCK_TIMEOUT: if it can't get a lock in that time, it rolls back and tries again later.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import psycopg
from psycopg import errors

from controller import sql
from controller.errors import BillingError, DatabaseUnreachableError, one_line
from controller.generation import refuse_other_generation
from controller.postgres import index_builds, state_tables
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.index_builds import LOCK_TIMEOUT, Progress

#: The advisory lock that serializes migrations. Election locks are hashes of names, so any constant is free.
_LOCK_KEY: Final = 0x636F_6E73_6269_6C6D

#: Seconds to try for a table's lock before the command fails.
PATIENCE_SECONDS: Final = 3600.0
LOCK_RETRY_SECONDS: Final = 1.0
#: Seconds between two reports of a wait.
REPORT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.2

CONCURRENTLY: Final = "-- concurrently"
_FILE: Final = re.compile(r"\d+_\w+\.sql")

#: The application's tables, with the columns that the controller reads or writes.
REQUIRED: Final = {
    "organizations": ("id",),
    "wallets": ("id", "organization_id", "balance", "currency", "updated_at"),
    "vps_plans": ("id", "provider_plan_id", "base_price", "markup_price", "active", "created_at", "updated_at"),
    "vps_instances": ("id", "organization_id", "plan_id", "label", "created_at", "last_billed_at"),
    "payment_transactions": (
        "id", "organization_id", "amount", "currency", "payment_method", "payment_provider", "status",
        "description", "metadata", "created_at", "updated_at",
    ),
    "vps_billing_cycles": (
        "id", "vps_instance_id", "organization_id", "billing_period_start", "billing_period_end", "hourly_rate",
        "total_amount", "status", "payment_transaction_id", "metadata", "created_at",
    ),
}  # fmt: skip


class SchemaError(BillingError):
    """The database is not a ContainerStacks database, or is not migrated."""


class ForeignDatabaseError(SchemaError):
    """The application's tables are missing. The application may still create them."""


class PendingMigrationsError(SchemaError):
    """This version's migrations have not all been applied."""


@dataclass(frozen=True)
class Migration:
    """One file of `migrations/`; `name` is the file's name without `.sql`."""

    name: str
    text: str

    @property
    def concurrent(self) -> bool:
        """True if its statement must run outside a transaction."""
        return self.text.startswith(CONCURRENTLY)


def available() -> list[Migration]:
    """Returns this version's migrations in order."""
    packaged: Traversable = resources.files("controller") / "migrations"
    folder = packaged if packaged.is_dir() else Path(__file__).parents[2] / "migrations"
    # schema.sql beside them is generated and never applied
    files = sorted((f for f in folder.iterdir() if _FILE.fullmatch(f.name)), key=lambda f: f.name)
    return [Migration(f.name.removesuffix(".sql"), f.read_text("utf-8")) for f in files]


def missing(connection: sql.Connection) -> list[str]:
    """Returns the application's tables, and columns as `table.column`, that do not exist."""
    rows = sql.rows(connection, "columns_of_tables", tables=list(REQUIRED))
    present = {row["relname"]: set(row["columns"]) for row in rows}
    return [table for table in REQUIRED if table not in present] + [
        f"{table}.{column}"
        for table, columns in REQUIRED.items()
        for column in columns
        if table in present and column not in present[table]
    ]


def pending(connection: sql.Connection) -> list[Migration]:
    """Returns the migrations that have not been applied to this database."""
    if not sql.row(connection, "migrations_table_exists")["made"]:
        return available()
    applied = {row["name"] for row in sql.rows(connection, "applied_migrations")}
    return [migration for migration in available() if migration.name not in applied]


def check(connection: sql.Connection) -> None:
    """Raises unless billing can work on this database.

    Raises:
        ForeignDatabaseError: it is not a ContainerStacks database.
        PendingMigrationsError: it is not migrated.
        StateTableError: a table that holds one row was emptied or doubled.
        GenerationError: it follows the rules of another generation.
    """
    _refuse_foreign_database(connection)
    if names := [migration.name for migration in pending(connection)]:
        raise PendingMigrationsError(
            f"migrations not applied: {', '.join(names)}; run `containerstacks-billing migrate`"
        )
    state_tables.check(connection)
    refuse_other_generation(connection)


def migrate(connection: BoundedConnection, progress: Progress = lambda _line: None) -> list[str]:
    """Applies pending migrations and returns the names of those that this call applied.

    Args:
        connection: opened with MIGRATION.
        progress: called with one line for each step that may take long.

    Raises:
        SchemaError: the application's tables are missing, or a migration failed. A failed transaction has been rolled
            back; the next call drops an invalid index that a failed build has left.
        DatabaseUnreachableError: the connection was lost. The next call continues.
    """
    _refuse_foreign_database(connection)
    applied = []
    for migration in pending(connection):
        try:
            if _apply(connection, migration, progress):
                applied.append(migration.name)
        except psycopg.Error as error:
            detail = one_line(error, with_detail=True)
            if connection.closed:
                raise DatabaseUnreachableError(
                    f"the connection was lost during migration {migration.name}: {detail}; run migrate again"
                ) from error
            failed = "failed" if migration.concurrent else "failed and was rolled back"
            denied = isinstance(error, errors.InsufficientPrivilege)
            remedy = "; run migrate as the owner of the application's tables" if denied else ""
            raise SchemaError(f"migration {migration.name} {failed}: {detail}{remedy}") from error
    return applied


def _refuse_foreign_database(connection: sql.Connection) -> None:
    if absent := missing(connection):
        raise ForeignDatabaseError(
            f"this is not a ContainerStacks database: {', '.join(absent)} missing;"
            " check the database name in DATABASE_URL, or run the application's own migrations first"
        )


def _apply(connection: BoundedConnection, migration: Migration, progress: Progress) -> bool:
    """Applies one migration; returns False if another process has applied it meanwhile."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    report_at = time.monotonic()
    while True:
        try:
            with _serialized(connection, migration, progress):
                if migration.name not in {m.name for m in pending(connection)}:
                    return False
                progress(f"{migration.name}: applying")
                if migration.concurrent:
                    index_builds.apply(connection, migration.text, progress)
                else:
                    with sql.transaction(connection, settings={"lock_timeout": LOCK_TIMEOUT}):
                        sql.execute(connection, migration.text)
                return True
        except (errors.LockNotAvailable, errors.DeadlockDetected):
            if time.monotonic() >= give_up_at:
                raise
            if time.monotonic() >= report_at:
                progress(f"{migration.name}: waiting for a lock that another session holds")
                report_at = time.monotonic() + REPORT_SECONDS
            time.sleep(LOCK_RETRY_SECONDS)


@contextmanager
def _serialized(connection: BoundedConnection, migration: Migration, progress: Progress) -> Iterator[None]:
    """Holds the migrations' lock for the length of a block.

    The lock belongs to the session and not to a transaction, because indexes are built outside any transaction. It is
    polled, because a statement that waits for it would hold a snapshot, and a concurrent index build waits for older
    snapshots to end. The wait has no bound: the other process may build an index on years of rows, and its lock ends
    with its session.
    """
    report_at = time.monotonic()
    while not sql.row(connection, "try_lock_migrations", lock_key=_LOCK_KEY)["locked"]:
        if time.monotonic() >= report_at:
            progress(f"{migration.name}: waiting for another process that is migrating")
            report_at = time.monotonic() + REPORT_SECONDS
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        if not connection.closed:
            sql.run(connection, "unlock_migrations", lock_key=_LOCK_KEY)
