"""What the commands print: tables for people, JSON for machines. Computes nothing."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from controller.billing.audit import AuditReport
from controller.billing.status import Status
from controller.billing.values import BatchResult, CycleResult

OUT = Console(highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """Prints one line on standard output."""
    OUT.print(text, markup=False)


def note(text: str) -> None:
    """Prints one line on standard error: progress that is not part of the result."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def status(view: Status, *, as_json: bool) -> None:
    """The answer of `status`."""
    if as_json:
        _json(view.as_dict())
        return
    table = _facts()
    table.add_row("leader", view.leader or "nobody")
    table.add_row(
        "term",
        f"{view.term}" + (f", since {_when(view.leading_since)}" if view.leading_since else ""),
    )
    table.add_row("standbys", ", ".join(view.standbys) or "none")
    if view.running_since:
        table.add_row("cycle under way", f"since {_when(view.running_since)}")
    run = view.last_run
    table.add_row(
        "last cycle",
        f"{run['outcome']}, {_when(datetime.fromisoformat(run['started_at']))}: {run['instances']} instances,"
        f" {run['hours']} hours, {run['amount']} charged"
        if run
        else "none yet",
    )
    if run and run["error"]:
        table.add_row("its error", run["error"])
    table.add_row(
        "next cycle",
        _when(view.next_cycle_at) if view.next_cycle_at else "as soon as somebody leads",
    )
    table.add_row(
        "heartbeat",
        "none yet" if view.heartbeat_age_seconds is None else f"{view.heartbeat_age_seconds:.0f} s ago",
    )
    table.add_row("debts", f"{view.debts} instances owe {view.owed}")
    table.add_row("failures", f"{view.failures} instances")
    table.add_row(
        "suspended", f"{view.suspended} organizations" + ("; see billing_suspensions" if view.suspended else "")
    )
    OUT.print(table)


def history(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """The answer of `history`."""
    if as_json:
        _json(list(rows))
        return
    table = Table(box=None, header_style="bold")
    for heading in ("cycle", "term", "leader", "started", "seconds", "outcome"):
        table.add_column(heading)
    for heading in ("instances", "hours", "amount", "debts", "failures"):
        table.add_column(heading, justify="right")
    table.add_column("error")
    for row in rows:
        finished = row["finished_at"]
        table.add_row(
            str(row["id"]), str(row["term"]), row["holder"], _when(row["started_at"]),
            f"{(finished - row['started_at']).total_seconds():.1f}" if finished else "",
            row["outcome"], str(row["instances"]), str(row["hours"]), str(row["amount"]),
            str(row["debts"]), str(row["failures"]), row["error"] or "",
        )  # fmt: skip
    OUT.print(table)


def audit(report: AuditReport, *, as_json: bool) -> None:
    """The answer of `audit`: a line an invariant."""
    if as_json:
        _json({"clean": report.clean, **asdict(report)})
        return
    for finding in report.findings:
        mark = "ok  " if finding.violations == 0 else "FAIL"
        counts = f": {finding.violations} violations" if finding.violations else ""
        exempt = f" ({finding.exempt} exempt: older than adoption, or another program's)" if finding.exempt else ""
        line(f"{mark} {finding.invariant:<14} {finding.meaning}{counts}{exempt}")
        for example in finding.examples:
            line(f"       {example}")
    if report.older_rows:
        line(f"       {report.older_rows} billing rows were not written by this controller")
    line("audit clean" if report.clean else "audit found violations")


def cycle(result: CycleResult, *, dry: bool, as_json: bool) -> None:
    """The answer of `bill`."""
    totals = result.totals
    if as_json:
        _json(
            {
                "outcome": result.outcome, "dry_run": dry, "run": None if dry or not result.run else result.run.id,
                **asdict(totals), "seconds": round(result.seconds, 3), "error": result.error,
                "failures_by_reason": result.failures_by_reason or {},
            }
        )  # fmt: skip
        return
    would = "would charge" if dry else "charged"
    table = _facts()
    table.add_row("outcome", f"{result.outcome}{' (dry run: nothing was kept)' if dry else ''}")
    if result.error:
        table.add_row("error", result.error)
    table.add_row(would, f"{totals.amount} for {totals.hours} hours of {totals.instances} instances")
    table.add_row("debts", f"{totals.debts} instances")
    failures_by_reason = ", ".join(
        f"{reason} {count}" for reason, count in sorted((result.failures_by_reason or {}).items())
    )
    table.add_row(
        "failures", f"{totals.failures} instances" + (f" ({failures_by_reason})" if failures_by_reason else "")
    )
    table.add_row("time", f"{result.seconds:.2f} s")
    OUT.print(table)


class Progress:
    """A progress bar on a terminal's standard error, and nothing elsewhere."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("billing"), BarColumn(), MofNCompleteColumn(), TextColumn("instances"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._bar.add_task("billing", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._bar.stop()

    def planned(self, instances: int) -> None:
        """So many are due."""
        self._bar.update(self._task, total=instances)

    def charged(self, charged: BatchResult) -> None:
        """So many more are done."""
        self._bar.advance(self._task, charged.due)


def _facts() -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def _json(value: object) -> None:
    """Times in RFC 3339, amounts as text, so that nobody reads them as floats."""
    sys.stdout.write(json.dumps(value, default=_plain) + "\n")


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
