"""Brings a ContainerStacks database to the schema that this version needs.

Migrations are plain SQL, go forward only, and are safe to run twice, also by hand with `psql -f`. A file runs in one
transaction. A file that begins with `-- concurrently` holds one statement on an index of an application's table, which
runs outside a transaction so that the application never waits for it. Any number of replicas may migrate at once.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

import psycopg
from psycopg import errors

from controller import sql
from controller.errors import BillingError, one_line
from controller.postgres.connections import MIGRATION, BoundedConnection, Database

#: The advisory lock that serializes migrations. Election locks are hashes of names, so any constant is free.
_LOCK_KEY: Final = 0x636F_6E73_6269_6C6D

#: A statement that waits for an exclusive lock blocks all later statements on that table: wait briefly, then retry.
LOCK_TIMEOUT: Final = "2s"
#: A concurrent index build blocks nobody while it waits for older transactions; giving up early would waste the build.
CONCURRENT_LOCK_TIMEOUT: Final = "10min"
LOCK_PATIENCE_SECONDS: Final = 3600.0
LOCK_RETRY_SECONDS: Final = 1.0

_FILE: Final = re.compile(r"\d+_\w+\.sql")
CONCURRENTLY: Final = "-- concurrently"
_UNLESS_INDEXED: Final = re.compile(r"^-- unless indexed: (?P<table>\w+) \((?P<column>\w+)\)$", re.MULTILINE)
_CREATED_INDEX: Final = re.compile(
    r"create (?:unique )?index concurrently if not exists (?P<name>\w+)\s+on (?P<table>\w+)"
)

#: The application's tables, with the columns that the controller reads or writes.
REQUIRED: Final = {
    "organizations": ("id",),
    "wallets": ("id", "organization_id", "balance", "currency", "updated_at"),
    "vps_plans": ("id", "provider_plan_id", "base_price", "markup_price", "active", "created_at", "updated_at"),
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

Progress = Callable[[str], None]


class SchemaError(BillingError):
    """The database is not a ContainerStacks database, or is not migrated."""


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
    """Raises SchemaError unless billing can work on this database."""
    _refuse_foreign_database(connection)
    if names := [migration.name for migration in pending(connection)]:
        raise SchemaError(f"migrations not applied: {', '.join(names)}; run `containerstacks-billing migrate`")


def migrate_url(url: str) -> None:
    """Migrates the database at `url`; see `migrate`."""
    with Database(lambda: url, "DATABASE_URL", "migrate").connect(MIGRATION) as connection:
        migrate(connection)


def migrate(connection: BoundedConnection, progress: Progress = lambda _line: None) -> list[str]:
    """Applies pending migrations and returns their names.

    Args:
        connection: in autocommit mode.
        progress: called with one line before each migration that may take long.

    Raises:
        SchemaError: the application's tables are missing, or a migration failed. A failed transaction is rolled back; a
            failed index build is dropped and built again next time.
    """
    _refuse_foreign_database(connection)
    applied = []
    for migration in pending(connection):
        try:
            if _apply(connection, migration, progress):
                applied.append(migration.name)
        except psycopg.Error as error:
            detail = one_line(error, with_detail=True)
            raise SchemaError(f"migration {migration.name} failed and was rolled back: {detail}") from error
    return applied


def _refuse_foreign_database(connection: sql.Connection) -> None:
    if absent := missing(connection):
        raise SchemaError(
            f"this is not a ContainerStacks database: {', '.join(absent)} missing;"
            " check the database name in DATABASE_URL, or run the application's own migrations first"
        )


def _apply(connection: BoundedConnection, migration: Migration, progress: Progress) -> bool:
    """Applies one migration; returns False if another replica has applied it meanwhile."""
    give_up_at = time.monotonic() + LOCK_PATIENCE_SECONDS
    while True:
        try:
            with _serialized(connection, CONCURRENT_LOCK_TIMEOUT if migration.concurrent else LOCK_TIMEOUT):
                if migration.name not in {m.name for m in pending(connection)}:
                    return False
                if migration.concurrent:
                    _run_concurrently(connection, migration, progress)
                else:
                    with connection.transaction():
                        sql.execute(connection, migration.text)
                return True
        except errors.LockNotAvailable:
            if time.monotonic() >= give_up_at:
                raise
            progress(f"{migration.name}: waiting for a table lock")
            time.sleep(LOCK_RETRY_SECONDS)


@contextmanager
def _serialized(connection: BoundedConnection, lock_timeout: str) -> Iterator[None]:
    """Holds the migrations' lock, with this session's own timeouts, for the length of a block.

    The lock belongs to the session and not to a transaction: an index is built outside any transaction. It is polled,
    because a statement that waits for it holds a snapshot, for which a concurrent index build would wait in turn.
    """
    while not sql.row(connection, "try_lock_migrations", lock_key=_LOCK_KEY)["locked"]:
        time.sleep(LOCK_RETRY_SECONDS)
    try:
        sql.run(
            connection,
            "set_session_settings",
            names=["statement_timeout", "lock_timeout"],
            settings=["0", lock_timeout],
        )
        yield
    finally:
        if not connection.closed:
            sql.run(connection, "unlock_migrations", lock_key=_LOCK_KEY)


def _run_concurrently(connection: BoundedConnection, migration: Migration, progress: Progress) -> None:
    """Runs a statement on an index outside a transaction, then records the migration."""
    code = "\n".join(line for line in migration.text.splitlines() if not line.startswith("--"))
    statement, _, record = code.partition(";\n")
    wanted = _UNLESS_INDEXED.search(migration.text)
    if wanted is None or not sql.row(connection, "leading_index_exists", **wanted.groupdict())["found"]:
        if created := _CREATED_INDEX.search(statement):
            # an interrupted build leaves an invalid index, which `if not exists` would accept
            for row in sql.rows(connection, "invalid_index", index=created["name"]):
                sql.execute(connection, f"drop index concurrently if exists {row['name']}")
            if sql.row(connection, "is_partitioned", table=created["table"])["partitioned"]:
                statement = statement.replace("index concurrently", "index")  # PostgreSQL can't combine the two
            progress(f"{migration.name}: building the index {created['name']} on {created['table']}")
        sql.execute(connection, statement)
    sql.execute(connection, record)
