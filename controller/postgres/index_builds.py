"""Applies a migration that begins with `-- concurrently`: one statement on an index of an application's table.

Such a statement runs outside a transaction and never blocks the application. If it is interrupted, it leaves an invalid
index, which `if not exists` would accept; so a leftover is dropped first, and the index is built again.

PostgreSQL can't build an index on a partitioned table concurrently. There the index is built concurrently on each
partition, and then created on the table, which only attaches the partitions' indexes.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controller import sql
from controller.postgres.bounded_connection import BoundedConnection
from controller.postgres.connections import state

#: A statement that waits for a strong lock blocks every later statement on that table: wait briefly, then retry. This
#: is less than a batch's `lock_timeout` (`ledger.TRANSACTION_BOUNDS`), so a batch that queues behind it doesn't fail.
LOCK_TIMEOUT: Final = "300ms"
#: A concurrent build blocks no other session while it waits for older transactions, and giving up wastes its work.
CONCURRENT_LOCK_TIMEOUT: Final = "10min"

Progress = Callable[[str], None]

_CREATE: Final = re.compile(
    r"create (?P<unique>unique )?index concurrently if not exists (?P<name>\w+)\s+"
    r"on (?P<table>\w+)\s+(?P<definition>\(.*)",
    re.DOTALL,
)
_UNLESS_INDEXED: Final = re.compile(r"^-- unless indexed: (?P<table>\w+) \((?P<column>\w+)\)$", re.MULTILINE)


@dataclass(frozen=True)
class _Build:
    """A `create index concurrently if not exists` statement, taken apart.

    Attributes:
        unique: `unique ` or nothing.
        name: the index's name.
        table: the table that is indexed.
        definition: what follows the table's name.
    """

    unique: str
    name: str
    table: str
    definition: str

    def statement(self, name: str, table: str, concurrently: str = "concurrently ") -> str:
        """Returns the statement for an index of this definition on another table."""
        return f"create {self.unique}index {concurrently}if not exists {name} on {table} {self.definition}"


def apply(connection: BoundedConnection, migration: str, progress: Progress) -> None:
    """Runs the migration's statement, and then records the migration.

    Raises:
        psycopg.errors.LockNotAvailable: another session holds a lock for too long; call again later.
        psycopg.Error: the build failed and may have left an invalid index, which the next call drops.
    """
    code = "\n".join(line for line in migration.splitlines() if not line.startswith("--"))
    statement, _, record = code.partition(";\n")
    state(connection, {"lock_timeout": CONCURRENT_LOCK_TIMEOUT})
    if created := _CREATE.fullmatch(statement):
        _create(connection, _Build(**created.groupdict("")), _UNLESS_INDEXED.search(migration), progress)
    else:
        sql.execute(connection, statement)
    sql.execute(connection, record)


def _create(
    connection: BoundedConnection, build: _Build, unless_indexed: re.Match[str] | None, progress: Progress
) -> None:
    partitioned = sql.row(connection, "is_partitioned", table=build.table)["partitioned"]
    if not partitioned:
        _drop_invalid(connection, build.table, build.name)
    if unless_indexed and sql.row(connection, "leading_index_exists", **unless_indexed.groupdict())["found"]:
        return
    if partitioned:
        _create_on_partitions(connection, build, progress)
        return
    progress(f"building the index {build.name} on {build.table}")
    sql.execute(connection, build.statement(build.name, build.table))


def _create_on_partitions(connection: BoundedConnection, build: _Build, progress: Progress) -> None:
    for partition in sql.rows(connection, "partitions", table=build.table):
        name = f"{build.name}_{partition['oid']}"
        _drop_invalid(connection, partition["name"], name)
        progress(f"building the index {name} on {partition['name']}")
        sql.execute(connection, build.statement(name, partition["name"]))
    # this locks the table against writes, but attaches indexes that exist and therefore ends at once
    state(connection, {"lock_timeout": LOCK_TIMEOUT})
    sql.execute(connection, build.statement(build.name, build.table, concurrently=""))


def _drop_invalid(connection: BoundedConnection, table: str, index: str) -> None:
    """Drops the index if an interrupted build or an interrupted drop has left it invalid."""
    for row in sql.rows(connection, "invalid_index", table=table, index=index):
        sql.execute(connection, f"drop index concurrently if exists {row['name']}")
