"""Every named statement is valid on a migrated database, and every one is used."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from controller import sql
from controller.billing.audit import INVARIANTS
from tests.support.statements import numbered

STATEMENTS = sql.load()
UTILITY = {
    "close_leadership",
    "lock_state_tables",
    "check_constraints_now",
}  # can't be prepared
TEMPLATES = {"audit_summary"}

#: The functions and methods that take a statement's name.
EXECUTORS = {"rows", "row", "optional_row", "run", "_row", "_optional_row", "_write"}


@pytest.mark.parametrize("name", sorted(STATEMENTS.keys() - UTILITY - TEMPLATES))
def test_statement_can_be_prepared(conn: psycopg.Connection[Any], name: str) -> None:
    conn.execute(f"prepare statement as {numbered(STATEMENTS[name])}".encode())


def nodes() -> Iterator[ast.AST]:
    package = Path(sql.__file__).parent
    for file in package.rglob("*.py"):
        if file.parent != package / "demo":  # the demo has its own SQL
            yield from ast.walk(ast.parse(file.read_text("utf-8")))


def executed() -> Iterator[str]:
    """Yields the names that the code passes to `controller.sql`, directly or through a method."""
    for node in nodes():
        match node:
            case ast.Call(func=ast.Attribute(attr=method), args=arguments) if method in EXECUTORS:
                for argument in arguments:
                    listed = argument.elts if isinstance(argument, ast.List) else [argument]
                    yield from (
                        each.value for each in listed if isinstance(each, ast.Constant) and isinstance(each.value, str)
                    )
            case ast.Subscript(value=ast.Call(func=ast.Attribute(attr="load")), slice=ast.Constant(value=str(name))):
                yield name


def test_no_statement_is_unused() -> None:
    assert STATEMENTS.keys() == set(executed()) | {f"audit_{name}" for name in INVARIANTS}


def test_name_cannot_be_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "FOLDERS", (*sql.FOLDERS, sql.FOLDERS[0]))
    with pytest.raises(ValueError, match=r"^two statements are named \w+; rename the one in controller\.billing/sql/"):
        sql.load.__wrapped__()


def test_file_is_split_by_names() -> None:
    assert list(sql.parse("prose\n-- name: one\nselect 1\n\n-- name: two\nselect 2\n")) == ["one", "two"]
