"""The table at the end of a run: each fault, how often, how long billing was without a leader, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from tests.faults.books import Books, Verdict

HEADINGS: Final = ("fault", "runs", "p50", "p99", "worst", "hours lost", "hours doubled")


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of them all."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass
class Fault:
    """Every run of one fault."""

    seconds: list[float] = field(default_factory=list)
    hours_lost: int = 0
    hours_doubled: int = 0

    def row(self, name: str) -> tuple[str, ...]:
        """As the table shows it."""
        times = [f"{each * 1000:.0f} ms" for each in (
            percentile(self.seconds, 0.5), percentile(self.seconds, 0.99), max(self.seconds)
        )]  # fmt: skip
        return (name, str(len(self.seconds)), *times, str(self.hours_lost), str(self.hours_doubled))


class Timings:
    """Collects them over a whole run."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}

    def record(self, fault: str, seconds: float, verdict: Verdict | None = None) -> float:
        """One run; gives the seconds back, to be asserted."""
        kept = self._faults.setdefault(fault, Fault())
        kept.seconds.append(seconds)
        if verdict is not None:
            kept.hours_lost += verdict.hours_lost
            kept.hours_doubled += verdict.hours_doubled
        return seconds

    def lines(self) -> list[str]:
        """The table, or nothing."""
        if not self._faults:
            return []
        rows = [HEADINGS, *(fault.row(name) for name, fault in self._faults.items())]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        return [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]


def seconds_to_next_term(books: Books, since: datetime) -> float:
    """From a moment to the first write of the next leader: its term."""
    minted_at: datetime = books.one("select min(minted_at) from billing_terms where minted_at > %s", since)
    return (minted_at - since).total_seconds()


def seconds_to_next_charge(books: Books, since: datetime, term: int) -> float:
    """From a moment to the first batch under a term newer than `term`."""
    written_at: datetime = books.one("select min(written_at) from billing_batches where term > %s", term)
    return (written_at.astimezone(UTC) - since).total_seconds()
