"""Formats answers for people as lines of text that fit 80 columns. Computes nothing."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from controller.billing.answers import REMEDIES, Explanation, Subject, not_charged_because
from controller.billing.statement import Statement
from controller.billing.status import Status
from controller.billing.verdict import FALLBACK_SECONDS, verdict
from controller.wording import duration, json_value, next_cycle, time

Row = dict[str, Any]
Facts = list[tuple[str, str]]
#: The most instances of an organization that `explain` lists.
LISTED_INSTANCES: Final = 20
#: The longest time that `runway` shows: 100 years.
MOST_HOURS: Final = 876_000


def facts(rows: Facts) -> Iterator[str]:
    """Aligns names and values. A row without a name continues the one before it."""
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        yield f"{name:<{width}}  {value}".rstrip()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Iterator[str]:
    """Aligns columns; those in `numbers` to the right. Nothing is cut off."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = [
            f"{cell:>{width}}" if column in numbers else f"{cell:<{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def by_reason(counts: dict[str, int]) -> str:
    """Lists reasons with their counts, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items(), key=lambda each: -each[1]))


def status(status: Status) -> Iterator[str]:
    """The result of `status`: the verdict first."""
    yield verdict(status).line
    yield ""
    yield from facts([*_replicas(status), *_cycles(status), *_customers(status)])


def _replicas(status: Status) -> Facts:
    now = status.database_time
    rows = []
    for replica in status.replicas:
        since = datetime.fromisoformat(replica["since"]) if replica["since"] else now
        rows.append(
            (f"{replica['role']}", f"{replica['instance_id']}, for {duration((now - since).total_seconds())}"),
        )
    if status.leader is None:
        rows.insert(0, ("leader", "none"))
    if not status.standbys:
        rows.append(("standby", "none: no replica can take over"))
    rows.append(("term", str(status.term)))
    return rows


def _cycles(status: Status) -> Facts:
    cycle = next_cycle(status)
    age = status.heartbeat_age_seconds
    rows = [("next cycle", ", ".join(part for part in (cycle.when, cycle.detail) if part))]
    if age is None:
        rows.append(("heartbeat", "none yet"))
    else:
        left = FALLBACK_SECONDS - age
        rows.append(("heartbeat", f"{duration(age)} ago"))
        rows.append(
            ("", f"without another one, the application bills in {duration(left)}" if left > 0 else "application bills")
        )
    run = status.last_run
    if run is None:
        return [*rows, ("last cycle", "none yet")]
    rows.append(("last cycle", f"{run['outcome']}, {time(datetime.fromisoformat(run['started_at']))}, run {run['id']}"))
    rows.append(("", f"{run['instances']} instances, {run['hours']} hours, {run['amount']} charged"))
    if run.get("failures_by_reason"):
        rows.append(("", f"failures: {by_reason(run['failures_by_reason'])}"))
    if run["error"]:
        rows.append(("", run["error"]))
    return rows


def _customers(status: Status) -> Facts:
    return [
        ("debts", f"{counted(status.debts, 'instance')}, {status.owed} owed"),
        ("failures", counted(status.failures, "instance")),
        ("suspended", f"{status.suspended} by the guard, {status.suspended_by_operators} by operators"),
        (
            "backlog",
            counted(status.backlogs, "instance") + (f", {status.backlog} not charged" if status.backlogs else ""),
        ),
        (
            "wallets",
            f"{status.differing_wallets} differing from their transactions"
            + (f", by {status.difference}" if status.differing_wallets else ""),
        ),
    ]


def debts(rows: Sequence[Row]) -> Iterator[str]:
    """The result of `debts`: a block for each organization."""
    if not rows:
        yield "no debts"
        return
    total = sum((row["owed"] for row in rows), Decimal(0))
    yield f"{counted(len(rows), 'instance')} {'owes' if len(rows) == 1 else 'owe'} {total}"
    for organization, group in _grouped(rows, "organization_id"):
        first = group[0]
        yield ""
        yield f"{first['organization']} ({first['slug']}, {organization})"
        balance = first["balance"]
        yield f"  owes {sum(row['owed'] for row in group)}, wallet {'unusable' if balance is None else balance}"
        lines = [
            (
                row["label"] or "", row["provider_instance_id"] or "", str(row["hours"]), str(row["owed"]),
                day(row["since"]), "yes" if row["pays_next_hour"] else "no",
            )
            for row in group
        ]  # fmt: skip
        headings = ("instance", "provider id", "hours", "owed", "since", "pays next")
        yield from (f"  {line}" for line in table(headings, lines, numbers=(2, 3)))


def lost_debts(rows: Sequence[Row]) -> Iterator[str]:
    """The result of `debts --lost`."""
    if not rows:
        yield "no debts were lost"
        return
    yield f"{counted(len(rows), 'debt')} of {sum((row['owed'] for row in rows), Decimal(0))} written off by deletion"
    for row in rows:
        yield ""
        yield f"instance {row['instance_id']}{_in_brackets(row['label'])}"
        yield f"  of organization {row['organization_id']}"
        yield f"  {row['owed']} for {row['hours']} hours since {time(row['since'])}, {row['reason']}"
        yield f"  deleted {time(row['lost_at'])} by {row['deleted_by']}"


def explanation(explained: Explanation) -> Iterator[str]:
    """The result of `explain`."""
    subject = explained.subject
    if subject.instance_id is None:
        yield f"organization {subject.organization}"
    else:
        yield f"instance {subject.label or subject.instance_id}"
    yield from facts([*_ids(subject), *_wallet(explained.organization)])
    segments = dict(_grouped(explained.outlook, "instance_id"))
    if subject.instance_id is None:
        yield ""
        yield from _instances(explained, segments)
    else:
        for instance in explained.instances:
            yield from facts(_instance(instance))
            yield ""
            yield from _segments(explained, segments.get(instance["instance_id"], []))
    for reason in explained.reasons():
        yield ""
        yield f"{reason}:"
        yield f"  {REMEDIES.get(reason, 'see docs/money.md')}"


def _ids(subject: Subject) -> Facts:
    rows = [("id", str(subject.instance_id))] if subject.instance_id else []
    return [*rows, ("organization", f"{subject.slug}, {subject.organization_id}")]


def _wallet(organization: Row) -> Facts:
    match organization["wallets"]:
        case 0:
            wallet = "none"
        case 1:
            wallet = f"{organization['balance']} {organization['currency']}"
        case number:
            wallet = f"{number} wallets, and there may be only one"
    rows = [("wallet", wallet)]
    if organization["suspended"]:
        rows.append(("suspended", f"{time(organization['suspended_at'])}: {organization['suspended']}"))
        rows.append(("", organization["suspended_detail"]))
    return rows


def _instance(instance: Row) -> Facts:
    until = instance["billed_until"]
    price = instance["monthly_price"]
    since = instance["price_since"]
    rows = [
        ("provider id", instance["provider_instance_id"] or "none"),
        ("plan", f"{instance['plan_id'] or 'none'}"),
        ("price", "none" if price is None else f"{price} a month ({instance['price_source']})"),
        ("", f"since {time(since)}" if since else "since before the first recorded price"),
        ("billed until", time(until) if until else "unknown"),
    ]
    if instance["charged_from"]:
        rows += [
            (
                "last charge",
                f"{instance['charged_amount']} for {instance['charged_hours']} hours, run {instance['charged_run']}",
            ),
            ("", f"{time(instance['charged_from'])} to {time(instance['charged_until'])}"),
        ]
    else:
        rows.append(("last charge", "none"))
    if instance["open_reason"]:
        rows.append(("not charged", f"{instance['open_hours']} hours: {instance['open_reason']}"))
        rows.append(("", f"since {time(instance['open_since'])}"))
    if instance["open_error"]:
        rows.append(("error", instance["open_error"]))
    return rows


def _segments(explained: Explanation, segments: Sequence[Row]) -> Iterator[str]:
    yield f"next cycle, as of {time(explained.as_of)}:"
    if not segments:
        yield "  nothing is due"
        return
    lines = [
        (
            time(row["starts_at"]), str(row["hours"]),
            "none" if row["monthly_price"] is None else str(row["monthly_price"]),
            "?" if row["cost"] is None else str(row["cost"]), str(row["amount"]),
            not_charged_because(row) or "charged",
        )
        for row in segments
    ]  # fmt: skip
    headings = ("hours from", "hours", "a month", "cost", "paid", "result")
    yield from (f"  {line}" for line in table(headings, lines, numbers=(1, 2, 3, 4)))


def _instances(explained: Explanation, segments: dict[Any, list[Row]]) -> Iterator[str]:
    """Counts what the next cycle will do, then lists the instances that it won't charge in full."""
    short: list[tuple[str, ...]] = []
    amount = sum((row["amount"] for row in explained.outlook), Decimal(0))
    for instance in explained.instances:
        rows = segments.get(instance["instance_id"], [])
        reasons = sorted({reason for row in rows if (reason := not_charged_because(row))})
        if not reasons and instance["open_reason"] in {"error", "locked"}:
            reasons = [f"{instance['open_reason']}: tried again"]
        if rows and reasons:
            hours = sum(row["hours"] - row["paid_hours"] for row in rows)
            cost = sum((row["cost"] or 0) - row["amount"] for row in rows)
            label = instance["label"] or str(instance["instance_id"])
            short.append((label, day(rows[0]["starts_at"]), str(hours), str(cost), ", ".join(reasons)))
    yield f"next cycle, as of {time(explained.as_of)}:"
    yield f"  {counted(len(segments), 'instance')} of {len(explained.instances)} due, {amount} will be charged"
    if short:
        yield f"  {counted(len(short), 'instance')} can't be charged in full:"
        headings = ("instance", "unpaid from", "hours", "cost", "reason")
        yield from (f"  {line}" for line in table(headings, short[:LISTED_INSTANCES], numbers=(2, 3)))
        if len(short) > LISTED_INSTANCES:
            yield f"  and {len(short) - LISTED_INSTANCES} more: see --json"


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def day(moment: datetime) -> str:
    """Returns a time in UTC, to the minute, for a column."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _grouped(rows: Iterable[Row], key: str) -> Iterator[tuple[Any, list[Row]]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    yield from groups.items()


def statement(shown: Statement) -> Iterator[str]:
    """The result of `statement`."""
    balance = shown.balance
    currency = balance["currency"] or ""
    yield f"statement of {shown.organization.organization} ({shown.organization.slug})"
    yield f"from {time(shown.from_time)} to before {time(shown.to_time)}"
    yield ""
    lines = [_balance_line("opening balance", balance["opening"], currency)]
    lines += [
        (
            line["kind"].replace("_", "-"), day(line["booked_at"] if line["starts_at"] is None else line["starts_at"]),
            "" if line["hours"] is None else str(line["hours"]),
            "" if line["monthly_price"] is None else str(line["monthly_price"]), str(line["amount"]),
            line["label"] or line["description"] or "",
        )
        for line in shown.lines
    ]  # fmt: skip
    lines.append(_balance_line("closing balance", balance["closing"], currency))
    yield from table(("", "from", "hours", "a month", "amount", "instance"), lines, numbers=(2, 3, 4))
    yield ""
    if balance["opening"] is not None and balance["derived"]:
        adopted = balance["adopted_at"]
        yield "The opening balance is derived from the transactions: nothing recorded it then."
        if adopted:
            yield f"Billing adopted the wallet at {time(adopted)}."
    if shown.difference is None:
        yield "The organization has no usable wallet, so there is no balance to compare with."
    elif shown.difference == 0:
        yield "It adds up."
    else:
        yield f"It does not add up: the wallet differs from its transactions by {shown.difference:+}."


def _balance_line(name: str, amount: Decimal | None, currency: str) -> tuple[str, ...]:
    return (name, "", "", "", "unknown" if amount is None else str(amount), currency)


#: The columns of `statement --csv`.
STATEMENT_COLUMNS: Final = (
    "kind", "booked_at", "instance_id", "label", "starts_at", "ends_at", "hours", "monthly_price", "amount", "bookings",
    "description",
)  # fmt: skip


def statement_rows(shown: Statement) -> Iterator[list[str]]:
    """The rows of `statement --csv`: a heading, the opening balance, each line, and the closing balance.

    A spreadsheet reads a text that begins with =, +, - or @ as a formula, so a quote is put before it.
    """
    yield list(STATEMENT_COLUMNS)
    opening = {"kind": "opening_balance", "booked_at": shown.from_time, "amount": shown.balance["opening"]}
    closing = {"kind": "closing_balance", "booked_at": shown.to_time, "amount": shown.balance["closing"]}
    for line in (opening, *shown.lines, closing):
        yield [_cell(line.get(column)) for column in STATEMENT_COLUMNS]


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    return json_value(value)


def runway(rows: Sequence[Row]) -> Iterator[str]:
    """The result of `runway`."""
    if not rows:
        yield "no wallets"
        return
    lines = [
        (
            row["slug"], str(row["instances"]), str(row["monthly_price"]),
            "none" if row["balance"] is None else str(row["balance"]),
            "" if row["hours_left"] is None else duration(float(min(row["hours_left"], MOST_HOURS)) * 3600),
        )
        for row in rows
    ]  # fmt: skip
    headings = ("organization", "instances", "a month", "balance", "lasts about")
    yield from table(headings, lines, numbers=(1, 2, 3))


def run(shown: Row, failures: Sequence[Row]) -> Iterator[str]:
    """The result of `history RUN`."""
    finished = shown["finished_at"]
    planned = "unknown" if shown["planned"] is None else str(shown["planned"])
    rows = [
        ("run", f"{shown['id']}, a {shown['kind']}"),
        ("outcome", shown["outcome"] + (f", because of the {shown['cause']}" if shown["cause"] else "")),
        ("leader", f"{shown['holder']}, term {shown['term']}"),
        ("started", time(shown["started_at"])),
        ("finished", f"{time(finished)}, after {float(shown['seconds']):.1f} s" if finished else "not yet"),
        ("planned", f"{planned} instances"),
        ("charged", f"{shown['amount']} for {shown['hours']} hours of {counted(shown['instances'], 'instance')}"),
        ("debts", f"{counted(shown['debts'], 'instance')}, {shown['charged_in_part']} of them charged in part"),
        ("failures", counted(shown["failures"], "instance")),
        ("suspended", counted(shown["suspended"], "instance")),
    ]
    if shown["failures_by_reason"]:
        rows.insert(-1, ("", by_reason(shown["failures_by_reason"])))
    if shown["vanished"]:
        rows.append(("vanished", counted(shown["vanished"], "instance")))
    if shown["error"]:
        rows.append(("error", shown["error"]))
    yield from facts(rows)
    if failures:
        yield ""
        lines = [
            (row["label"] or str(row["instance_id"]), row["slug"], day(row["since"]), str(row["hours"]), row["reason"])
            for row in failures
        ]
        yield from table(("instance", "organization", "since", "hours", "reason"), lines, numbers=(3,))
    if shown["failures"] > len(failures):
        yield ""
        yield f"{shown['failures'] - len(failures)} more failed; they have since been charged, or count in a later run."
