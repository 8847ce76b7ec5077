"""Formats what the commands about money found and did, as lines of text. Computes nothing."""

import shlex
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, Final

from controller.billing.answers import REMEDIES, Subject
from controller.billing.backlog import LISTED_HOURS, Accepted
from controller.billing.reconcile import READ_AGAIN_SECONDS, Comparison, Correction
from controller.report import counted, day, facts, table
from controller.wording import time

#: What each part of a difference means.
PARTS: Final = {
    "overwritten_debit": "the application overwrote our debit with a balance that it had read before the debit",
    "overwritten_credit": "two of the application's payments started from the same balance, so one overwrote the other",
    "in_flight": "a top-up is completed but not in the wallet yet, or the reverse",
    "half_cents": "rounding by the application",
    "deleted_rows": "completed transactions were deleted",
    "unexplained": "no known cause; look for manual changes to the wallet",
}


def comparison(
    subject: Subject, compared: Comparison, correction: Correction | None, made: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """The result of `reconcile`."""
    yield subject.title
    if compared.not_compared is not None:
        remedy = REMEDIES.get(compared.not_compared, "the next cycle adopts the wallet")
        yield f"There is nothing to compare: {compared.not_compared}; {remedy}."
        return
    if correction is not None:
        yield from _corrected(correction)
    rows = [
        ("wallet", str(compared.wallet_id)),
        ("holds", f"{compared.balance} {compared.currency or ''}".rstrip()),
        ("should hold", f"{compared.expected}: baseline {compared.baseline} and transactions {compared.completed}"),
        ("difference", _signed(compared.difference)),
    ]
    rows += [
        ("", f"{_signed(amount)} {kind.replace('_', ' ')}: {PARTS.get(kind, '')}")
        for kind, amount in sorted(compared.explanation.items())
    ]
    if compared.other_wallets:
        rows.append(("other wallets", f"{compared.other_wallets} in transactions that don't count for this one"))
    if compared.unsettled:
        rows.append(("unsettled", compared.unsettled))
    rows += [
        (
            "earlier",
            f"{time(each['made_at'])} {each['kind']} {_signed(each['amount'])} by {each['made_by']}: {each['reason']}",
        )
        for each in made
    ]
    yield from facts(rows)
    if compared.difference:
        command = f"containerstacks-billing reconcile {shlex.quote(subject.slug)}"
        amount = f"--amount {compared.difference} --reason TEXT"
        yield ""
        yield f"To change the wallet by {_signed(-compared.difference)}: {command} --correct {amount}"
        yield f"To keep the wallet: {command} --accept {amount}"


def _corrected(correction: Correction) -> Iterator[str]:
    moved = "the wallet" if correction.kind == "correct" else "the baseline"
    yield f"Changed {moved} by {_signed(correction.amount)}."
    if correction.overwritten:
        now = _signed(correction.after.difference)
        yield f"The wallet was overwritten within {READ_AGAIN_SECONDS:.0f} s: the difference is {now}."
    elif correction.rest:
        yield f"The wallet doesn't go below zero, so {correction.rest} could not be taken."
    yield ""


def _signed(amount: Decimal | None) -> str:
    return "unknown" if amount is None else "0.00" if amount == 0 else f"{amount:+}"


def forecast(largest: Sequence[dict[str, Any]], unrecorded: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What a dry run adds: its largest charges, and the instances with many unrecorded hours."""
    if largest:
        yield ""
        yield "largest charges"
        rows = [
            (str(each["amount"]), str(each["hours"]), each["slug"], each["label"] or str(each["instance_id"]))
            for each in largest
        ]
        yield from table(("amount", "hours", "organization", "instance"), rows, numbers=(0, 1))
    if unrecorded:
        found = unrecorded[0]["found"]
        yield ""
        yield f"{counted(found, 'instance')} with more than {LISTED_HOURS} hours neither billed nor recorded"
        yield from table(
            ("hours", "amount", "since", "organization", "instance", ""),
            [
                (
                    str(each["hours"]), "unknown" if each["amount"] is None else str(each["amount"]),
                    day(each["since"]), each["slug"], each["label"] or str(each["instance_id"]),
                    "backlog: not charged" if each["in_backlog"] else "",
                )
                for each in unrecorded
            ],
            numbers=(0, 1),
        )  # fmt: skip
        if found > len(unrecorded):
            yield f"and {found - len(unrecorded)} more"
    if any(each["in_backlog"] for each in unrecorded):
        yield "A cycle records a backlog, and charges it only after `containerstacks-billing accept-backlog`."


def backlogs(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The result of `accept-backlog` without an organization: the backlogs that could be accepted."""
    if not rows:
        yield "no instance is in backlog"
        return
    total = sum((each["owed"] for each in rows), Decimal(0))
    yield f"{counted(len(rows), 'instance')} in backlog, {total} not charged"
    yield from table(
        ("hours", "amount", "since", "organization", "instance"),
        [
            (
                str(each["hours"]), str(each["owed"]), day(each["since"]), each["slug"],
                each["label"] or str(each["instance_id"]),
            )
            for each in rows
        ],
        numbers=(0, 1),
    )  # fmt: skip
    yield (
        f"To charge them: `accept-backlog ORG|--all --reason TEXT` (`--instances {len(rows)}` accepts no others). Or"
        " `waive` them."
    )


def accepted(done: Accepted, whose: str) -> str:
    """The result of `accept-backlog`."""
    if not done.instances:
        return f"nothing to accept: no instance of {whose} is in backlog"
    recorded = f"{counted(done.instances, 'instance')} in backlog with {done.owed}"
    return f"accepted: hours of {whose} until {time(done.accepted_until)}, {recorded}; the next cycle charges them"
