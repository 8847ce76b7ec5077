"""An error is one line, without what PostgreSQL adds to it and without a customer's row."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import errors

from controller.cli import explain
from controller.errors import BillingError, one_line

REFUSED = """new row for relation "wallets" violates check constraint "positive"
DETAIL:  Failing row contains (7, -1.00).
HINT:  Try again.
CONTEXT:  PL/pgSQL function inline
LINE 1: update wallets
               ^
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("connection refused", "connection refused"),
        ("first\n\tsecond\r\nthird\n", "first; second; third"),
        (REFUSED, 'new row for relation "wallets" violates check constraint "positive"'),
        ("two  blanks\tand a tab", "two blanks and a tab"),
    ],
)
def test_error_is_one_line_of_its_message(text: str, line: str) -> None:
    assert one_line(ValueError(text)) == line
    assert one_line(text) == line


def test_detail_is_kept_on_request_only() -> None:
    assert "Failing row" not in one_line(REFUSED)
    assert one_line(REFUSED, with_detail=True).endswith("DETAIL: Failing row contains (7, -1.00).")


def test_error_without_a_message_is_named_by_its_class() -> None:
    assert one_line(TimeoutError()) == "TimeoutError"


def test_billing_error_is_one_line_for_any_text_it_quotes() -> None:
    assert str(BillingError("can't connect:\n  refused")) == "can't connect: refused"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (psycopg.OperationalError("server closed the connection unexpectedly"), 3),
        (errors.AdminShutdown("terminating connection due to administrator command"), 3),
        (errors.IdleInTransactionSessionTimeout("terminating connection due to idle-in-transaction timeout"), 3),
        (errors.QueryCanceled("canceling statement due to statement timeout"), 1),
        (errors.LockNotAvailable("canceling statement due to lock timeout"), 1),
        (errors.UndefinedTable("relation does not exist"), 1),
    ],
)
def test_only_an_ended_session_is_called_a_lost_connection(error: psycopg.Error, status: int) -> None:
    what, exit_status = explain(error)
    assert exit_status == status
    assert ("lost" in what) == (status == 3)
