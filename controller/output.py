"""Prints the results of commands: text for people, JSON for programs. Computes nothing.

In a pipe, lines are as long as their content. On a terminal, long lines are wrapped, and a table that is too wide is
printed as one block per row.
"""

import json
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Self

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from controller import money_report
from controller.billing.audit import AuditReport, Finding
from controller.billing.values import BatchResult, CycleResult
from controller.terminal import note, printable, width, write
from controller.wording import json_value, time

#: The beginning of a line: a name, and the blanks before its value.
_NAME: Final = re.compile(r" *\S+(?: \S+)* {2,}")

__all__ = ["Progress", "audit", "clear", "cycle", "history", "json_line", "line", "note"]


def line(text: str) -> None:
    """Prints a line on standard output. On a terminal, a long line wraps, and is indented below its first value."""
    shown, columns = printable(text), width(sys.stdout)
    if columns is not None and len(shown) > columns:
        name = _NAME.match(shown)
        indent = " " * min(name.end() if name else 0, columns // 2)
        shown = "\n".join(textwrap.wrap(shown, columns, subsequent_indent=indent, break_on_hyphens=False))
    write(shown)


def clear() -> None:
    """Clears a terminal before the output is repeated. Writes nothing to a pipe."""
    if sys.stdout.isatty():
        write("\x1b[H\x1b[2J")


#: The columns of `history`. NUMBERS lists those that hold numbers.
COLUMNS: Final = ("cycle", "term", "leader", "started", "seconds", "outcome")
NUMBERS: Final = ("instances", "hours", "amount", "debts", "failures")


def history(rows: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    """Prints the result of `history`."""
    if as_json:
        json_line(list(rows))
        return
    table = [[*COLUMNS, *NUMBERS, "error"]]
    for row in rows:
        finished = row["finished_at"]
        table.append([
            str(row["id"]), str(row["term"]), row["holder"], time(row["started_at"]),
            f"{(finished - row['started_at']).total_seconds():.1f}" if finished else "",
            row["outcome"] if row["kind"] == "cycle" else f"{row['kind']} {row['outcome']}",
            *(str(row[number]) for number in NUMBERS), row["error"] or "",
        ])  # fmt: skip
    _print_table([[printable(cell) for cell in cells] for cells in table])


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
        if (more := finding.violations - len(finding.examples)) > 0:
            line(f"       and {more} more")
        if finding.invariant == "wallet_balance":  # each has an amount that an operator should know
            _print_differences(finding)
    if report.corrections:
        line(f"       {report.corrections} corrections by operators, of {report.corrected} in all")
    if report.older_rows:
        line(f"       {report.older_rows} billing rows were not written by this controller")
    line("audit clean" if report.clean else "audit found violations")


def _print_differences(finding: Finding) -> None:
    for example in finding.exempt_examples:
        line(f"       {example}")
    if (more := finding.exempt - len(finding.exempt_examples)) > 0:
        line(f"       and {more} more")
    if finding.exempt:
        line("       `containerstacks-billing reconcile ORG` explains and corrects a difference")


def cycle(result: CycleResult, unrecorded: Sequence[dict[str, Any]] = (), *, dry: bool, as_json: bool) -> None:
    """Prints the result of `bill`; for a dry run also its largest charges and the instances with many hours."""
    totals = result.totals
    if as_json:
        json_line(
            {
                "outcome": result.outcome, "dry_run": dry, "run": None if dry or not result.run else result.run.id,
                **asdict(totals), "seconds": round(result.seconds, 3), "error": result.error,
                "failures_by_reason": result.failures_by_reason or {}, "cause": result.cause,
                "largest": result.largest, "unrecorded": list(unrecorded),
            }
        )  # fmt: skip
        return
    facts = {"outcome": f"{result.outcome}{' (dry run: rolled back)' if dry else ''}"}
    if result.error:
        facts["error"] = result.error
    facts["would charge" if dry else "charged"] = (
        f"{totals.amount} for {totals.hours} hours of {totals.instances} instances"
    )
    facts["debts"] = f"{totals.debts} instances"
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted((result.failures_by_reason or {}).items()))
    facts["failures"] = f"{totals.failures} instances" + (f" ({reasons})" if reasons else "")
    facts["suspended"] = f"{totals.suspended} instances"
    facts["time"] = f"{result.seconds:.2f} s"
    _print_facts(list(facts.items()))
    for text in money_report.forecast(result.largest, unrecorded) if dry else ():
        line(text)


class Progress:
    """A progress bar on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._bar = Bar(
            TextColumn("billing"), BarColumn(), MofNCompleteColumn(), TextColumn("instances"), TimeRemainingColumn(),
            console=Console(stderr=True, width=width(sys.stderr)), transient=True, disable=not sys.stderr.isatty(),
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


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Prints a line for each fact."""
    indent = max(cell_len(name) for name, _ in facts) + 2
    for name, value in facts:
        line(_padded(name, indent) + value)


def _print_table(table: Sequence[Sequence[str]]) -> None:
    """Prints rows below their headings, or one block for each row if the table is wider than the terminal."""
    headings, *rows = table
    widths = [max(cell_len(cells[column]) for cells in table) for column in range(len(headings))]
    columns = width(sys.stdout)
    if columns is not None and sum(widths) + 2 * len(widths) > columns:
        for row in rows:
            _print_facts([(heading, cell) for heading, cell in zip(headings, row, strict=True) if cell])
            line("")
        return
    for cells in table:
        aligned = [
            _padded(cell, wide, right=heading in NUMBERS)
            for cell, wide, heading in zip(cells, widths, headings, strict=True)
        ]
        write("  ".join(aligned).rstrip())


def _padded(text: str, columns: int, *, right: bool = False) -> str:
    blanks = " " * (columns - cell_len(text))
    return blanks + text if right else text + blanks


def json_line(value: object) -> None:
    """Prints a value as one line of JSON."""
    write(json.dumps(value, default=json_value))
