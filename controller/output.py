"""Prints the results of commands: tables for people, JSON for programs. Computes nothing."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from controller.billing.audit import AuditReport
from controller.billing.other_billers import Notice
from controller.billing.status import Status
from controller.billing.values import BatchResult, CycleResult
from controller.wording import json_value, time

OUT = Console(highlight=False, soft_wrap=True)


def line(text: str) -> None:
    """Prints one line on standard output."""
    OUT.print(text, markup=False)


def clear() -> None:
    """Clears a terminal, before something is shown again. Writes nothing in a pipe."""
    if OUT.is_terminal:
        OUT.clear()


def note(text: str) -> None:
    """Prints one line on standard error: progress that is not part of the result."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def resumed(accepted: Sequence[Notice], after: Status) -> None:
    """Prints the result of `resume`."""
    for notice in accepted:
        line(f"accepted: {notice.message}")
    for notice in after.notices:
        line(f"still {'halted' if notice.halts else 'noticed'}: {notice.message}")
    if not accepted and not after.notices:
        line("nothing to accept: no other program has billed")
    elif not any(notice.halts for notice in after.notices):
        line(f"{after.leader} bills again within seconds" if after.leader else "recorded; no replica leads")


def history(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Prints the result of `history`."""
    if as_json:
        json_line(list(rows))
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
            str(row["id"]), str(row["term"]), row["holder"], time(row["started_at"]),
            f"{(finished - row['started_at']).total_seconds():.1f}" if finished else "",
            row["outcome"], str(row["instances"]), str(row["hours"]), str(row["amount"]),
            str(row["debts"]), str(row["failures"]), row["error"] or "",
        )  # fmt: skip
    OUT.print(table)


def audit(report: AuditReport, *, as_json: bool) -> None:
    """Prints the result of `audit`, one line for each invariant."""
    if as_json:
        json_line({"clean": report.clean, **asdict(report)})
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
    """Prints the result of `bill`."""
    totals = result.totals
    if as_json:
        json_line(
            {
                "outcome": result.outcome, "dry_run": dry, "run": None if dry or not result.run else result.run.id,
                **asdict(totals), "seconds": round(result.seconds, 3), "error": result.error,
                "failures_by_reason": result.failures_by_reason or {}, "cause": result.cause,
            }
        )  # fmt: skip
        return
    would = "would charge" if dry else "charged"
    table = _facts()
    table.add_row("outcome", f"{result.outcome}{' (dry run: rolled back)' if dry else ''}")
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
    table.add_row("suspended", f"{totals.suspended} instances")
    table.add_row("time", f"{result.seconds:.2f} s")
    OUT.print(table)


class Progress:
    """A progress bar on standard error, if that is a terminal."""

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
        """Sets the number of due instances."""
        self._bar.update(self._task, total=instances)

    def charged(self, result: BatchResult) -> None:
        """Advances by the instances of one batch."""
        self._bar.advance(self._task, result.due)


def _facts() -> Table:
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    return table


def json_line(value: object) -> None:
    """Prints a value as one line of JSON."""
    sys.stdout.write(json.dumps(value, default=json_value) + "\n")
