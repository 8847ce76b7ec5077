"""Every named statement is valid SQL on a migrated database, and every one is used."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller.billing.audit import INVARIANTS
from controller.postgres import queries

STATEMENTS = queries.load()
UTILITY = {"close_leadership"}  # LOCK can't be prepared


def numbered(statement: str) -> str:
    """With the server's parameters instead of psycopg's."""
    names: dict[str, str] = {}
    return re.sub(r"%\((\w+)\)s", lambda m: names.setdefault(m[1], f"${len(names) + 1}"), statement)


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - UTILITY))
def test_statement_can_be_prepared(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute(f"prepare statement as {numbered(STATEMENTS[name])}".encode())


def sources() -> Iterator[str]:
    for file in Path(queries.__file__).parents[1].rglob("*.py"):
        yield file.read_text("utf-8")


def test_no_statement_is_unused() -> None:
    code = "\n".join(sources())
    used = {name for name in STATEMENTS if f'"{name}"' in code} | {f"audit_{name}" for name in INVARIANTS}
    assert STATEMENTS.keys() == used


def test_a_name_can_not_be_used_twice() -> None:
    assert list(queries.parse("prose\n-- name: one\nselect 1\n\n-- name: two\nselect 2\n")) == ["one", "two"]
