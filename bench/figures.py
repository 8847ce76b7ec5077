"""Figures: the values of several rounds, what is aimed at, and whether it was reached. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: Which of the rounds an aim is held against: "every time" means the worst, a typical cost the median.
Held = Literal["worst", "median"]


@dataclass(frozen=True)
class Aim:
    """A bound of the design's section 11.

    Attributes:
        at_least: the bound is from below; else from above.
    """

    bound: float
    at_least: bool = False
    held: Held = "median"

    def reached(self, values: Sequence[float]) -> bool:
        """Whether these rounds reach it."""
        worst = min(values) if self.at_least else max(values)
        value = statistics.median(values) if self.held == "median" else worst
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {plain(self.bound)}{' every time' if self.held == 'worst' else ''}"


@dataclass(frozen=True)
class Figure:
    """One line of a table: a value for each round.

    Attributes:
        unit: of the values, after the name: `s`, `ms`, `MiB`, `instances a second`.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    aim: Aim | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def reached(self) -> bool | None:
        """None where nothing is aimed at."""
        return None if self.aim is None else self.aim.reached(self.values)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "unit": self.unit,
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
            "values": list(self.values),
            "aim": str(self.aim) if self.aim else None,
            "reached": self.reached,
        }


@dataclass(frozen=True)
class Section:
    """A table.

    Attributes:
        key: of its place in the document.
        how: a sentence on how it was measured, with what makes this run's settings different from the server's.
    """

    key: str
    title: str
    how: str
    figures: tuple[Figure, ...]

    @property
    def missed(self) -> list[Figure]:
        """The figures that do not reach their aims."""
        return [figure for figure in self.figures if figure.reached is False]


def ratios(values: Sequence[float], to: Sequence[float]) -> tuple[float, ...]:
    """Round by round: what ran in turn is compared in turn."""
    return tuple(value / other for value, other in zip(values, to, strict=True))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that is not below `share` of them all."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


def plain(value: float) -> str:
    """Three digits that mean something; large numbers whole, with thin groups."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}" if abs(value) >= 0.01 else f"{value:.2g}"  # noqa: PLR2004 - as said
