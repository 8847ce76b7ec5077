"""What the doctor finds, and how it is printed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is. Only a failure keeps customers from being billed correctly and sets exit status 1."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """The result of a check. A check may have several.

    Attributes:
        check: what was examined.
        level: how bad it is.
        message: what was found; one line.
        remedy: what to do; empty if there is nothing to do.
    """

    check: str
    level: Level
    message: str
    remedy: str = ""


def as_finding(check: str, level: Level, text: str) -> Finding:
    """Makes a finding from an error or a notice whose last clause, after `; `, is the remedy."""
    message, _, remedy = text.rpartition("; ")
    return Finding(check, level, message or remedy, remedy if message else "")


def failed(findings: Sequence[Finding]) -> bool:
    """Returns True if a finding is a failure."""
    return any(finding.level is Level.FAILURE for finding in findings)


def lines(findings: Sequence[Finding]) -> Iterator[str]:
    """Yields the findings as text, each remedy below its finding, and a summary."""
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        level = finding.level.upper() if finding.level is Level.FAILURE else finding.level
        yield f"{level:<7}  {finding.check:<{width}}  {finding.message}"
        if finding.remedy:
            yield f"{'':<7}  {'':<{width}}  remedy: {finding.remedy}"
    counts = [(level, sum(finding.level is level for finding in findings)) for level in Level if level is not Level.OK]
    shown = [
        f"{count} {level}{'s' if count > 1 and level is not Level.SKIPPED else ''}" for level, count in counts if count
    ]
    yield ", ".join(shown) or "everything is in order"
