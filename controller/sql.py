"""Executes named statements from `.sql` files. All SQL reaches a connection through this module.

Statements are next to the code that uses them: charging in `billing/sql/`; election, sessions and migrations in
`postgres/sql/`. A statement starts with the line `-- name: some_name`.
"""

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Final

import psycopg

from controller.errors import BillingError

FOLDERS: Final = ("controller.billing", "controller.postgres")

Connection = psycopg.Connection[dict[str, Any]]
Row = dict[str, Any]

_NAME: Final = re.compile(r"^-- name: (?P<name>\w+)$", re.MULTILINE)


class NoRowError(BillingError):
    """A statement that always returns one row returned none."""


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


def rows(connection: Connection, name: str, /, **parameters: Any) -> list[Row]:  # noqa: ANN401 - whatever psycopg adapts
    """Executes a named statement and returns its rows.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    return execute(connection, load()[name], parameters).fetchall()


def row(connection: Connection, name: str, /, **parameters: Any) -> Row:  # noqa: ANN401 - as above
    """Executes a named statement and returns its only row.

    Raises:
        NoRowError: there is none.
        psycopg.Error: as the server or libpq reports it.
    """
    found = optional_row(connection, name, **parameters)
    if found is None:
        raise NoRowError(f"{name} returned no row; run `containerstacks-billing migrate --check`")
    return found


def optional_row(connection: Connection, name: str, /, **parameters: Any) -> Row | None:  # noqa: ANN401 - as above
    """Executes a named statement and returns its first row, or None.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    return execute(connection, load()[name], parameters).fetchone()


def run(connection: Connection, name: str, /, **parameters: Any) -> None:  # noqa: ANN401 - as above
    """Executes a named statement and ignores its result.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    execute(connection, load()[name], parameters)


def execute(connection: Connection, text: str, parameters: Mapping[str, Any] | None = None) -> psycopg.Cursor[Row]:
    """Executes SQL text of this project: a named statement, a variation of one, or a migration.

    Raises:
        psycopg.Error: as the server or libpq reports it.
    """
    return connection.execute(text.encode(), parameters or None)
