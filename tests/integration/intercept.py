"""Observes or changes each named statement before it is sent to the server."""

from collections.abc import Callable
from typing import Any

from controller import sql

#: Given a statement's name and text, returns the text to send.
OnStatement = Callable[[str, str], str]


def intercept(connection: sql.Connection, on_statement: OnStatement) -> None:
    """Calls `on_statement` for each named statement that is executed on this connection."""
    execute = connection.execute
    names = {text.encode(): name for name, text in sql.load().items()}

    def intercepted(query: bytes, parameters: Any = None, **options: Any) -> Any:  # noqa: ANN401 - as psycopg's own
        if name := names.get(query):
            query = on_statement(name, query.decode()).encode()
        return execute(query, parameters, **options)

    connection.execute = intercepted  # type: ignore[method-assign, assignment]
