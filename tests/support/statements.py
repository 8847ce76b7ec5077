"""Named statements as the server sees them, and how it would execute them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.sql import Literal

from controller import sql

_PARAMETER = re.compile(r"%\((\w+)\)s")


def numbered(statement: str) -> str:
    """Replaces psycopg's named parameters by the server's numbered ones, in the order of their first use."""
    names: dict[str, str] = {}
    return _PARAMETER.sub(lambda found: names.setdefault(found[1], f"${len(names) + 1}"), statement)


def plan(connection: psycopg.Connection[Any], name: str, parameters: Mapping[str, Any]) -> str:
    """Returns the plan of a named statement under the session's own planner settings."""
    statement = sql.load()[name]
    values = [parameters[each] for each in dict.fromkeys(_PARAMETER.findall(statement))]
    arguments = ", ".join(Literal(value).as_string(connection) for value in values)
    connection.execute(f"prepare explained as {numbered(statement)}".encode())
    lines = connection.execute(f"explain execute explained ({arguments})".encode()).fetchall()
    connection.execute("deallocate explained")
    return "\n".join(line["QUERY PLAN"] for line in lines)
