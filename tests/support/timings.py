"""The table at the end of a run: how often each fault happened, how long nothing was billed, and what it cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Final

from tests.support.ledger_probe import LedgerProbe, Verdict

#: Fewer runs show only their worst.
RUNS_FOR_PERCENTILES: Final = 100


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: `share` of the values are at most this one."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


@dataclass
class Fault:
    """All runs of one fault on one server."""

    seconds: list[float] = field(default_factory=list)
    bounds: set[float] = field(default_factory=set)
    hours_lost: int = 0
    hours_doubled: int = 0

    def cells(self) -> tuple[str, str, str]:
        """The number of runs, the 99th percentile of at least 100 runs, and the worst time. Empty without a run."""
        if not self.seconds:
            return ("", "", "")
        enough = len(self.seconds) >= RUNS_FOR_PERCENTILES
        p99 = f"{percentile(self.seconds, 0.99) * 1000:.0f} ms" if enough else ""
        return (str(len(self.seconds)), p99, f"{max(self.seconds) * 1000:.0f} ms")

    def add(self, other: Fault) -> None:
        """Adds runs of the same fault on the same server."""
        self.seconds += other.seconds
        self.bounds |= set(other.bounds)
        self.hours_lost += other.hours_lost
        self.hours_doubled += other.hours_doubled


class Timings:
    """Collects the measured times of a whole run.

    Attributes:
        server: the version of the server on which the next faults happen.
    """

    def __init__(self) -> None:
        self._faults: dict[str, dict[str, Fault]] = {}
        self.server = ""

    def record(
        self, fault: str, seconds: float, verdict: Verdict | None = None, *, bound: float | None = None
    ) -> float:
        """Records one run and returns `seconds`. Raises: AssertionError if they reach the bound."""
        kept = self._kept(fault, self.server)
        kept.seconds.append(seconds)
        if verdict is not None:
            kept.hours_lost += verdict.hours_lost
            kept.hours_doubled += verdict.hours_doubled
        if bound is not None:
            kept.bounds.add(bound)
            assert seconds < bound, f"{fault}: {seconds:.3f} s, and the bound is {bound:g} s"
        return seconds

    def _kept(self, fault: str, server: str) -> Fault:
        return self._faults.setdefault(fault, {}).setdefault(server, Fault())

    @property
    def servers(self) -> list[str]:
        """The versions of the servers, newest first."""
        found = {server for servers in self._faults.values() for server in servers}
        return sorted(found, key=lambda server: [int(each) for each in re.findall(r"\d+", server)], reverse=True)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The headings and a row for each fault, sorted by name; empty if nothing was measured."""
        if not self._faults:
            return []
        names = [server.partition(" ")[0] for server in self.servers]
        names = names if len(set(names)) == len(names) else self.servers
        measured = (f"{name}: {what}" for name in names for what in ("runs", "p99", "worst"))
        return [
            ("fault", "bound", *measured, "hours lost", "hours doubled"),
            *(self._row(name) for name in sorted(self._faults)),
        ]

    def _row(self, name: str) -> tuple[str, ...]:
        faults = self._faults[name]
        bounds = [bound for fault in faults.values() for bound in fault.bounds]
        return (
            name,
            f"{max(bounds):g} s" if bounds else "",
            *(cell for server in self.servers for cell in faults.get(server, Fault()).cells()),
            str(sum(fault.hours_lost for fault in faults.values())),
            str(sum(fault.hours_doubled for fault in faults.values())),
        )

    @property
    def proof(self) -> str:
        """What the runs prove about wrong hours, by the rule of three: none in n runs bounds the rate by 3/n."""
        faults = [fault for servers in self._faults.values() for fault in servers.values()]
        runs = sum(len(fault.seconds) for fault in faults)
        wrong = sum(fault.hours_lost + fault.hours_doubled for fault in faults)
        if not runs or wrong:
            return f"{runs:,} runs, {wrong:,} hours lost or doubled."
        return f"{runs:,} runs without a lost or doubled hour: with 95% confidence, fewer than {3 / runs:.2%} have one."

    def as_json(self) -> str:
        """Everything measured, for `add` in another process."""
        return json.dumps(
            [
                (name, server, {**asdict(fault), "bounds": sorted(fault.bounds)})
                for name, servers in self._faults.items()
                for server, fault in servers.items()
            ]
        )

    def add(self, text: str) -> None:
        """Adds what another process measured."""
        for name, server, fault in json.loads(text):
            self._kept(name, server).add(Fault(**fault))

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
