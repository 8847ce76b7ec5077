"""Facts for tests of the operator's pages, without a database: the same at every run, so a picture can be compared."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from controller.billing.answers import Explanation, Subject
from controller.billing.page_facts import OperatorFacts
from controller.election import Role
from controller.web import Identity, Snapshot, Vitals
from controller.web.operator_page import render
from tests.statuses import NOW, status

Row = dict[str, Any]
#: The names of the sample's customers. One of them tries to break out of the page.
NAMES: Final = ("Aurora Hosting", "Bluebird Labs", "Cedar & Sons", "<b>Delta</b>", "Evergreen GmbH")

IDENTITY: Final = Identity(
    "containerstacks-billing-5d9f-fghij:02d7",
    "0.2.0",
    "containerstacks-billing",
    "USD",
    "containerstacks-billing-5d9f-fghij",
    "node-2",
)
READY: Final = Vitals(Role.STANDBY, None, 0.5)


def picture() -> str:
    """Returns the document that the picture in the README shows."""
    facts = troubled()
    return render(IDENTITY, READY, (), Snapshot(facts, None, 0.0, facts), refresh_seconds=None)


def organization_id(number: int) -> UUID:
    return UUID(int=0xA0000000000040008000000000000000 + number)


def run(number: int, **changes: Any) -> Row:  # noqa: ANN401 - fields of any type
    """Returns a run as `billing_history` has it: `number` hours ago."""
    started = NOW - timedelta(hours=number, minutes=40)
    return {
        "id": 941 - number,
        "kind": "cycle",
        "term": 7,
        "holder": "containerstacks-billing-5d9f-abcde:9c1e",
        "started_at": started,
        "finished_at": started + timedelta(seconds=2.4),
        "outcome": "completed",
        "instances": 1204,
        "hours": 1207,
        "amount": Decimal("1204.17"),
        "debts": 14,
        "failures": 0,
        "failures_by_reason": {},
        "error": None,
    } | changes


def day() -> tuple[Row, ...]:
    """Returns `billing_last_day`: hourly cycles that grow, one that failed, a gap, and a few failures at the end."""
    rows = []
    for hours in reversed(range(24)):
        if hours == 15:
            continue
        failed = hours == 9
        amount = Decimal("0.00") if failed else Decimal(1040 + 7 * (24 - hours) + 41 * (hours % 5))
        rows.append(
            {
                "starts_at": NOW - timedelta(hours=hours, minutes=40),
                "cycles": 1,
                "instances": 0 if failed else 1180 + hours,
                "hours": 0 if failed else 1183 + hours,
                "amount": amount * 2 if hours in {8, 14} else amount,
                "collected": Decimal("61.20") if hours in {3, 4, 17} else Decimal("0.00"),
                "seconds": 2.1 + 0.13 * (hours % 4) + (3.5 if hours in {8, 14} else 0),
                "debts": 14,
                "failures": 3 if hours < 3 else 0,
                "failed": failed,
            }
        )
    return tuple(rows)


def uncharged() -> tuple[Row, ...]:
    """Returns `uncharged`: two failure reasons, and debts of more organizations than are listed."""

    def row(number: int, reason: str, totals: tuple[int, int, str], **changes: Any) -> Row:  # noqa: ANN401
        return {
            "organization_id": organization_id(number),
            "organization": NAMES[number % 5],
            "slug": f"org-{number}",
            "reason": reason,
            "instances": 1,
            "hours": Decimal(30 - number),
            "owed": Decimal("4.10") + number,
            "since": NOW - timedelta(hours=30 - number),
            "error": None,
            "all_organizations": totals[0],
            "all_instances": totals[1],
            "all_owed": Decimal(totals[2]),
            "place": 1,
        } | changes

    error = 'new row for relation "vps_billing_cycles" violates check constraint "plan_known"'
    debts = [row(number, "insufficient_balance", (14, 14, "118.40"), instances=1 + number % 3) for number in range(10)]
    return (
        row(7, "error", (1, 1, "0.80"), error=error),
        *debts,
        row(2, "wallet_missing", (2, 2, "1.60")),
        row(3, "wallet_missing", (2, 2, "1.60")),
    )


def healthy() -> OperatorFacts:
    """Facts of an installation without trouble."""
    quiet = tuple(row | {"failures": 0, "debts": 0} for row in day() if not row["failed"])
    view = status(debts=0, owed=Decimal("0.00"), last_run={**run(0), "started_at": run(0)["started_at"].isoformat()})
    return OperatorFacts(view, tuple(run(number, debts=0) for number in range(6)), quiet)


def troubled() -> OperatorFacts:
    """Facts of an installation with failures, debts, a suspension and a failed cycle."""
    last = run(0, outcome="completed_with_failures", failures=3, failures_by_reason={"wallet_missing": 2, "error": 1})
    view = status(
        leader="containerstacks-billing-5d9f-abcde:9c1e",
        standbys=("containerstacks-billing-5d9f-fghij:02d7",),
        replicas=(
            {
                "instance_id": "containerstacks-billing-5d9f-abcde:9c1e",
                "role": "leader",
                "since": (NOW - timedelta(hours=3)).isoformat(),
            },
            {
                "instance_id": "containerstacks-billing-5d9f-fghij:02d7",
                "role": "standby",
                "since": (NOW - timedelta(hours=2)).isoformat(),
            },
        ),
        failures=3,
        suspended=1,
        debts=14,
        owed=Decimal("118.40"),
        last_run={**last, "started_at": last["started_at"].isoformat()},
    )
    runs = [last, *(run(number) for number in range(1, 9))]
    runs.append(
        run(
            9,
            outcome="failed",
            instances=0,
            hours=0,
            amount=Decimal("0.00"),
            error="the connection to the database was lost: server closed the connection unexpectedly",
        )
    )
    suspension = {
        "organization_id": organization_id(4),
        "organization": NAMES[4],
        "slug": "org-4",
        "kind": "guard",
        "reason": "one_payment_each",
        "until": None,
        "detail": "1 billed period has two payments",
        "suspended_at": NOW - timedelta(hours=5),
        "all_organizations": 1,
    }
    return OperatorFacts(view, tuple(runs), day(), uncharged(), (suspension,))


def explanation() -> Explanation:
    """Explains an organization with a debt and a failed instance."""
    subject = Subject(organization_id(3), NAMES[3], "org-3")
    organization = {
        "organization_id": subject.organization_id,
        "organization": subject.organization,
        "slug": subject.slug,
        "wallets": 1,
        "balance": Decimal("0.31"),
        "currency": "USD",
        "suspended": None,
        "suspended_detail": None,
        "suspended_at": None,
        "instances": 3,
    }
    instances, outlook = [], []
    for number in range(3):
        instance_id = UUID(int=0xB0000000000040008000000000000000 + number)
        owes = number == 1
        instances.append(
            {
                "instance_id": instance_id,
                "label": f"web-{number}",
                "provider_instance_id": f"vm-77{number}",
                "plan_id": "plan-s",
                "billed_until": NOW - timedelta(minutes=10, hours=5 if owes else 0),
                "monthly_price": Decimal("5.00"),
                "price_source": "plan",
                "price_since": NOW - timedelta(days=12) if number else None,
                "charged_from": NOW - timedelta(hours=2, minutes=10),
                "charged_until": NOW - timedelta(hours=1, minutes=10),
                "charged_hours": 1,
                "charged_price": Decimal("5.00"),
                "charged_amount": Decimal("0.01"),
                "charged_run": 940,
                "open_reason": "insufficient_balance" if owes else "error" if number == 2 else None,
                "open_since": NOW - timedelta(hours=5),
                "open_hours": 5,
                "open_error": 'violates check constraint "plan_known"' if number == 2 else None,
            }
        )
        outlook.append(
            {
                "instance_id": instance_id,
                "starts_at": NOW - timedelta(hours=5 if owes else 1),
                "hours": 6 if owes else 1,
                "monthly_price": Decimal("5.00"),
                "price_source": "plan",
                "recorded": owes,
                "cost": Decimal("0.05") if owes else Decimal("0.01"),
                "failure_reason": None,
                "paid_hours": 0 if owes else 1,
                "amount": Decimal("0.00") if owes else Decimal("0.01"),
            }
        )
    return Explanation(subject, organization, tuple(instances), NOW + timedelta(minutes=20), tuple(outlook))
