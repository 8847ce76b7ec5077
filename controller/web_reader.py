"""Reads what the HTTP servers show, each on a short session with a statement timeout."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

import psycopg

from controller import sql
from controller.billing.answers import Explanation, NameNotFoundError, Subject, explain, find_all
from controller.billing.page_facts import OperatorFacts, PublicFacts, read_operator_facts, read_public_facts
from controller.billing.values import Pricing
from controller.errors import DatabaseUnreachableError, one_line
from controller.postgres import state_tables

#: Instances and periods that an explanation reads. An organization may have any number, and memory is limited.
EXPLAINED_ROWS: Final = 101
#: Classes of SQLSTATE whose messages name only our own objects and the connection. Messages about data quote the data,
#: and the application's triggers may raise any text.
_PUBLIC_CLASSES: Final = {"08", "0A", "25", "28", "3D", "42", "53", "55", "57"}


class WebReader:
    """Reads facts for the pages and the metrics. Every method is bounded in time.

    Args:
        connect: opens a session with a statement timeout.
        pricing: the settings that explanations depend on.
        redact: removes passwords from a text.
    """

    def __init__(
        self,
        connect: Callable[[], sql.Connection],
        pricing: Pricing,
        redact: Callable[[str], str],
    ) -> None:
        self._connect = connect
        self._pricing = pricing
        self._redact = redact

    def public_facts(self) -> PublicFacts:
        """Reads the facts that name no customer.

        Raises:
            DatabaseUnreachableError: they can't be read; one line that names no customer.
        """
        with self._session(public=True) as connection, sql.transaction(connection):
            state_tables.check(connection)
            return read_public_facts(connection)

    def operator_facts(self) -> OperatorFacts:
        """Reads the facts for operators.

        Raises:
            DatabaseUnreachableError: they can't be read; one line.
        """
        with self._session() as connection, sql.transaction(connection):
            state_tables.check(connection)
            facts = read_operator_facts(connection)
        return replace(
            facts,
            runs=tuple(self._redacted(row) for row in facts.runs),
            uncharged=tuple(self._redacted(row) for row in facts.uncharged),
        )

    def find(self, name: str) -> Sequence[Subject]:
        """Returns the organizations and instances with an id, slug or label.

        Raises:
            DatabaseUnreachableError: the database can't be read; one line.
        """
        with self._session() as connection:
            return find_all(connection, name)

    def explain(self, subject: UUID) -> Explanation:
        """Explains an organization or an instance.

        Raises:
            NameNotFoundError: there is none with this id.
            DatabaseUnreachableError: the database can't be read; one line.
        """
        with self._session() as connection:
            found = find_all(connection, str(subject))
            if not found:
                raise NameNotFoundError(f"no organization or instance has the id {subject}")
            explained = explain(connection, found[0], self._pricing, limit=EXPLAINED_ROWS)
        return replace(explained, instances=tuple(self._redacted(row, "open_error") for row in explained.instances))

    @contextmanager
    def _session(self, *, public: bool = False) -> Iterator[sql.Connection]:
        try:
            with self._connect() as connection:
                yield connection
        except psycopg.Error as error:
            raise DatabaseUnreachableError(public_text(error) if public else one_line(error)) from None

    def _redacted(self, row: dict[str, Any], key: str = "error") -> dict[str, Any]:
        return {**row, key: self._redact(str(row[key]))} if row.get(key) else row


def public_text(error: psycopg.Error) -> str:
    """Returns the text of an error for the public port: without what the error may quote from a row."""
    state = error.sqlstate
    if state is None or state[:2] in _PUBLIC_CLASSES:
        return one_line(error)
    return f"PostgreSQL refused the query (SQLSTATE {state}); the operator's page says why"
