"""The table at the end of a run: how often each fault happened, how long nothing was billed, and what it cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Final

from tests.support.ledger_probe import LedgerProbe, Verdict

HEADINGS: Final = ("fault", "runs", "p50", "p99", "worst", "bound", "hours lost", "hours doubled")
#: Fewer runs show only their worst.
RUNS_FOR_PERCENTILES: Final = 100


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: `share` of the values are at most this one."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass
class Fault:
    """All runs of one fault."""

    seconds: list[float] = field(default_factory=list)
    bounds: set[float] = field(default_factory=set)
    hours_lost: int = 0
    hours_doubled: int = 0

    def row(self, name: str) -> tuple[str, ...]:
        """The cells of the table's row."""
        enough = len(self.seconds) >= RUNS_FOR_PERCENTILES
        times = (*(percentile(self.seconds, share) if enough else None for share in (0.5, 0.99)), max(self.seconds))
        shown = ("" if each is None else f"{each * 1000:.0f} ms" for each in times)
        bound = f"{max(self.bounds):g} s" if self.bounds else ""
        return (name, str(len(self.seconds)), *shown, bound, str(self.hours_lost), str(self.hours_doubled))


class Timings:
    """Collects the measured times of a whole run."""

    def __init__(self) -> None:
        self._faults: dict[str, Fault] = {}
        self.servers: set[str] = set()

    def record(
        self, fault: str, seconds: float, verdict: Verdict | None = None, *, bound: float | None = None
    ) -> float:
        """Records one run and returns `seconds`. Raises: AssertionError if they reach the bound."""
        kept = self._faults.setdefault(fault, Fault())
        kept.seconds.append(seconds)
        if verdict is not None:
            kept.hours_lost += verdict.hours_lost
            kept.hours_doubled += verdict.hours_doubled
        if bound is not None:
            kept.bounds.add(bound)
            assert seconds < bound, f"{fault}: {seconds:.3f} s, and the bound is {bound:g} s"
        return seconds

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The headings and a row for each fault, sorted by name; empty if nothing was measured."""
        faults = sorted(self._faults.items())
        return [HEADINGS, *(fault.row(name) for name, fault in faults)] if faults else []

    @property
    def proof(self) -> str:
        """What the runs prove about wrong hours, by the rule of three: none in n runs bounds the rate by 3/n."""
        runs = sum(len(fault.seconds) for fault in self._faults.values())
        wrong = sum(fault.hours_lost + fault.hours_doubled for fault in self._faults.values())
        if not runs or wrong:
            return f"{runs:,} runs, {wrong:,} hours lost or doubled."
        return f"{runs:,} runs without a lost or doubled hour: with 95% confidence, fewer than {3 / runs:.2%} have one."

    def as_json(self) -> str:
        """Everything measured, for `add` in another process."""
        faults = {name: {**asdict(fault), "bounds": sorted(fault.bounds)} for name, fault in self._faults.items()}
        return json.dumps({"faults": faults, "servers": sorted(self.servers)})

    def add(self, text: str) -> None:
        """Adds what another process measured."""
        given = json.loads(text)
        self.servers |= set(given["servers"])
        for name, other in given["faults"].items():
            fault = self._faults.setdefault(name, Fault())
            fault.seconds += other["seconds"]
            fault.bounds |= set(other["bounds"])
            fault.hours_lost += other["hours_lost"]
            fault.hours_doubled += other["hours_doubled"]

    def lines(self) -> list[str]:
        """The table as aligned text."""
        rows = self.rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if column == 0 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]


def seconds_to_next_term(ledger: LedgerProbe, since: datetime) -> float:
    """Seconds from a moment to the next minted term, the first write of the next leader."""
    minted_at: datetime = ledger.one("select min(minted_at) from billing_terms where minted_at > %s", since)
    return (minted_at - since).total_seconds()


def seconds_to_next_charge(ledger: LedgerProbe, since: datetime, term: int = 0) -> float:
    """Seconds from a moment to the first batch after it with a term above `term`."""
    written_at: datetime = ledger.one(
        "select min(written_at) from billing_batches where written_at > %s and term > %s", since, term
    )
    return (written_at.astimezone(UTC) - since).total_seconds()


def handover_seconds(ledger: LedgerProbe) -> float:
    """Seconds from the end of the last cycle to the next leader's term."""
    return float(
        ledger.one(
            "select extract(epoch from max(t.minted_at) - max(r.finished_at))::float8 from billing_terms t,"
            " billing_runs r where r.term < (select max(term) from billing_terms)"
        )
    )
