"""`reconcile` compares, corrects, accepts and refuses, with the documented exit statuses."""

from __future__ import annotations

from functools import partial

import psycopg
import pytest

from tests.acceptance.program import run_here

SLUG = "organization-4"
#: A wallet that was changed by hand, and payments that are old enough to be settled.
DIFFERS = """
set session_replication_role = replica;
update payment_transactions set created_at = now() - interval '1 hour', updated_at = now() - interval '1 hour';
update wallets w set balance = w.balance + 2.50
from organizations o where o.id = w.organization_id and o.slug = 'organization-4'
"""


def test_difference_is_shown_refused_accepted_and_corrected(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.billing.reconcile.READ_AGAIN_SECONDS", 0)
    program = partial(run_here, database)
    program("bill")
    same = program("reconcile", SLUG)
    assert same.status == 0, same
    with psycopg.connect(database) as conn:
        conn.execute(DIFFERS)
    shown = program("reconcile", SLUG)
    assert shown.status == 1
    assert "+2.50 unexplained" in shown.out
    assert f"reconcile {SLUG} --correct --amount 2.50 --reason TEXT" in shown.out
    assert program("reconcile", SLUG, "--json").json["difference"] == "2.50"
    wrong = program("reconcile", SLUG, "--correct", "--amount", "-2.50", "--reason", "typing error")
    assert "the difference is 2.50, not -2.50" in wrong.failed_with(1)
    done = program("reconcile", SLUG, "--correct", "--amount", "2.5", "--reason", "by hand", "--by", "ann")
    assert (done.status, done.out.splitlines()[1]) == (0, "Changed the wallet by -2.50."), done
    with psycopg.connect(database) as conn:
        conn.execute(DIFFERS)
    accepted = program("reconcile", SLUG, "--accept", "--amount", "2.50", "--reason", "a gift", "--json")
    assert accepted.status == 0
    assert [(each["kind"], each["amount"]) for each in accepted.json["corrections"]] == [
        ("accept", "2.50"),
        ("correct", "-2.50"),
    ]
    statement = program("statement", SLUG, "--from", "2020-01-01")
    assert (statement.status, statement.out.count("correction")) == (0, 2), statement
    audit = program("audit")
    assert (audit.status, "2 corrections by operators, of 5.00 in all" in audit.out) == (0, True)
    assert "by ann on " in program("reconcile", SLUG).out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (SLUG, "--correct", "--accept", "--amount", "1", "--reason", "x"),
        (SLUG, "--correct", "--reason", "x"),
        (SLUG, "--accept", "--amount", "1"),
        (SLUG, "--correct", "--amount", "1", "--reason", " "),
        (SLUG, "--correct", "--amount", "NaN", "--reason", "x"),
        (SLUG, "--amount", "1"),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = run_here("postgresql://nowhere.invalid/none", "reconcile", *arguments)
    assert (done.status, done.out) == (2, "")
