"""Writes the answers to people's questions as lines of text that fit 80 columns. Computes nothing."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from controller.billing.status import Status
from controller.billing.verdict import FALLBACK_SECONDS, verdict
from controller.wording import duration, next_cycle, time

Facts = Sequence[tuple[str, str]]


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
        ("debts", f"{status.debts} instances owe {status.owed}"),
        ("failures", f"{status.failures} instances"),
        ("suspended", f"{status.suspended} organizations"),
    ]
