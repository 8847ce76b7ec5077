"""Measurements: the values of several rounds, the aim for them, and whether they reach it. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.support.timings import RUNS_FOR_PERCENTILES, percentile

Rule = Literal["worst", "p99", "median"]
_JUDGED: Final[Mapping[Rule, str]] = {"worst": " every time", "p99": " at p99", "median": ""}


@dataclass(frozen=True)
class Aim:
    """A bound that a measurement should meet.

    Attributes:
        at_least: True for a lower bound, False for an upper one.
        judged_by: the value to compare with the bound. Promises are judged by the worst round, costs by the median. A
            99th percentile needs at least 100 rounds; fewer are judged by the worst.
    """

    bound: float
    at_least: bool = False
    judged_by: Rule = "median"

    def reached(self, values: Sequence[float]) -> bool:
        """True if these rounds meet the bound."""
        rule = self._rule(len(values))
        share = {"worst": 1.0, "p99": 0.99, "median": 0.5}[rule]
        value = percentile(values, 1 - share if self.at_least else share)
        if rule == "median":
            value = statistics.median(values)
        return value >= self.bound if self.at_least else value <= self.bound

    def text(self, rounds: int) -> str:
        """The bound, and the value that is compared with it after this many rounds."""
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {plain(self.bound)}{_JUDGED[self._rule(rounds)]}"

    def _rule(self, rounds: int) -> Rule:
        return "worst" if self.judged_by == "p99" and rounds < RUNS_FOR_PERCENTILES else self.judged_by


@dataclass(frozen=True)
class Measurement:
    """One row of a table, with one value per round.

    Attributes:
        unit: shown after the name, such as `s`, `ms`, `MiB` or `instances/s`; empty for counts and ratios.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    aim: Aim | None = None

    @property
    def label(self) -> str:
        """The name and the unit."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p99(self) -> float | None:
        """The 99th percentile, None of fewer than 100 values."""
        return percentile(self.values, 0.99) if len(self.values) >= RUNS_FOR_PERCENTILES else None

    @property
    def aim_text(self) -> str:
        """The aim, empty without one."""
        return "" if self.aim is None else self.aim.text(len(self.values))

    @property
    def reached(self) -> bool | None:
        """True if the values meet the aim, None without an aim."""
        return None if self.aim is None else self.aim.reached(self.values)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "min": min(self.values),
            "median": self.median,
            "p99": self.p99,
            "max": max(self.values),
            "values": list(self.values),
            "aim": self.aim_text or None,
            "reached": self.reached,
        }


@dataclass(frozen=True)
class Section:
    """One table.

    Attributes:
        key: the name of its file in bench/results, without `.md`.
        how: how it was measured, in a few sentences.
    """

    key: str
    title: str
    how: str
    measurements: tuple[Measurement, ...]

    @property
    def missed(self) -> list[Measurement]:
        """Measurements that don't meet their aim."""
        return [each for each in self.measurements if each.reached is False]


def ratios(values: Sequence[float], to: Sequence[float]) -> tuple[float, ...]:
    """Divides each round's value by the other's value of the same round.

    Raises:
        ValueError: the two have different numbers of rounds.
    """
    return tuple(value / other for value, other in zip(values, to, strict=True))


def plain(value: float) -> str:
    """Formats with three significant digits, or as a grouped whole number from 100 up."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 0.01 else f"{value:.2g}"  # noqa: PLR2004 - shorter below
