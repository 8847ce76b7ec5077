"""Executes named statements from `.sql` files. All SQL reaches a connection through this module.

Statements are next to the code that uses them: charging in `billing/sql/`; election, sessions and migrations in
`postgres/sql/`. A statement starts with the line `-- name: some_name`.

A `Session` may share its backend with other programs, behind a pooler. So each use of it is one transaction that first
states every setting it relies on, for this transaction only. No setting of another program affects our statements, and
none of ours outlives them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.sql import Literal

from controller.errors import BillingError

FOLDERS: Final = ("controller.billing", "controller.postgres")

Connection = psycopg.Connection[dict[str, Any]]
Row = dict[str, Any]

#: Values by setting, as PostgreSQL writes them (`'5s'`). None means the default of the role, the database or the
#: server.
Settings = Mapping[str, str | None]

_NAME: Final = re.compile(r"^-- name: (?P<name>\w+)$", re.MULTILINE)


class NotOneRowError(BillingError):
    """A statement that must return one row returned none or several, so a one-row table was emptied or doubled."""


class Session(psycopg.Connection[Row]):
    """A connection in autocommit mode that states its settings in each transaction.

    Attributes:
        local_settings: what each transaction states; None if the settings were stated once, for the whole session.
    """

    local_settings: Settings | None = None


def parse(text: str) -> dict[str, str]:
    """Splits a file into its statements by name. Text before the first name is commentary."""
    _, *parts = _NAME.split(text)
    return {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


@cache
def load() -> Mapping[str, str]:
    """Reads every named statement, once per process.

    Raises:
        ValueError: two statements share a name.
    """
    statements: dict[str, str] = {}
    for package in FOLDERS:
        for file in sorted((resources.files(package) / "sql").iterdir(), key=lambda f: f.name):
            for name, statement in parse(file.read_text("utf-8")).items():
                if name in statements:
                    raise ValueError(f"two statements are named {name}; rename the one in {package}/sql/{file.name}")
                statements[name] = statement
    return MappingProxyType(statements)


@contextmanager
def transaction(
    connection: Connection,
    *,
    keep: bool = True,
    isolation: str = "read committed",
    access: str = "read write",
    settings: Settings = MappingProxyType({}),
) -> Iterator[None]:
    """Opens a transaction that begins with the session's settings. BEGIN and the settings take one round trip.

    Args:
        connection: a session in autocommit mode, outside a transaction.
        keep: False rolls back at the end.
        isolation: the transaction's isolation level.
        access: `read write` or `read only`.
        settings: settings for this transaction, on top of the session's.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    stated = (isinstance(connection, Session) and connection.local_settings) or {}
    begin = _begin(isolation, access, tuple({**stated, **settings}.items()))
    try:
        connection.execute(begin, prepare=False)  # several statements can't be prepared
        yield
        if keep:
            # COMMIT would roll back, and report no error
            if connection.info.transaction_status is TransactionStatus.INERROR:
                raise psycopg.errors.InFailedSqlTransaction("a statement failed, so the transaction can't commit")
            connection.commit()
    finally:
        if connection.info.transaction_status is not TransactionStatus.IDLE:
            with suppress(psycopg.Error):  # a lost connection has rolled back already
                connection.rollback()


@cache
def _begin(isolation: str, access: str, settings: tuple[tuple[str, str | None], ...]) -> bytes:
    begin = f"BEGIN ISOLATION LEVEL {isolation} {access} NOT DEFERRABLE"
    if not settings:
        return begin.encode()
    state = load()["state_settings"].replace("%(local)s", "true")
    begin += "; SET LOCAL statement_timeout = 0"  # of the role, which the next statement might exceed
    return f"{begin};\n{state.replace('%(settings)s', Literal(json.dumps(dict(settings))).as_string())}".encode()


def rows(connection: Connection, name: str, /, **parameters: Any) -> list[Row]:  # noqa: ANN401 - whatever psycopg adapts
    """Executes a named statement and returns its rows.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    return execute(connection, load()[name], parameters)


def row(connection: Connection, name: str, /, **parameters: Any) -> Row:  # noqa: ANN401 - as above
    """Executes a named statement and returns its only row.

    Raises:
        NotOneRowError: there is none, or there are several.
        psycopg.Error: as the server or libpq reports it.
    """
    found = rows(connection, name, **parameters)
    if len(found) != 1:
        raise NotOneRowError(
            f"{name} returned {len(found)} rows instead of one, so a table that holds one row was emptied or doubled;"
            " run `containerstacks-billing migrate`, which repairs it"
        )
    return found[0]


def optional_row(connection: Connection, name: str, /, **parameters: Any) -> Row | None:  # noqa: ANN401 - as above
    """Executes a named statement and returns its first row, or None.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    return next(iter(rows(connection, name, **parameters)), None)


def run(connection: Connection, name: str, /, **parameters: Any) -> None:  # noqa: ANN401 - as above
    """Executes a named statement and ignores its result.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    rows(connection, name, **parameters)


def execute(connection: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
    """Executes SQL text of this project: a named statement, a variation of one, or a migration. Returns its rows.

    Outside a transaction, the text runs in one that states the session's settings. The rows are read before it ends,
    because their format depends on these settings.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    if (
        isinstance(connection, Session)
        and connection.local_settings is not None
        and connection.info.transaction_status is TransactionStatus.IDLE
    ):
        with transaction(connection):
            return _fetch(connection, text, parameters)
    return _fetch(connection, text, parameters)


def _fetch(connection: Connection, text: str, parameters: Mapping[str, Any] | None) -> list[Row]:
    cursor = connection.execute(text.encode(), parameters or None)
    return cursor.fetchall() if cursor.description else []
