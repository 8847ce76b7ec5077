"""Sections as text for the terminal, as JSON, and as the files in bench/results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.machine import ROOT
from bench.measurement import Measurement, Section, plain

RESULTS: Final = ROOT / "bench" / "results"

#: One section for each server, by its title. All have the same key.
SideBySide = Mapping[str, Section]


def table(sections: SideBySide) -> list[tuple[str, ...]]:
    """The headings and one row for each measurement, with one column for each server."""
    rows = [("", *sections, "runs", "aim", "")]
    names = dict.fromkeys(each.label for section in sections.values() for each in section.measurements)
    for name in names:
        found = [{each.label: each for each in section.measurements}.get(name) for section in sections.values()]
        made = [each for each in found if each is not None]
        aims = dict.fromkeys(each.aim_text for each in made if each.aim is not None)
        missed = any(each.reached is False for each in made)
        rows.append(
            (
                name,
                *("" if each is None else values(each) for each in found),
                "/".join(sorted({str(len(each.values)) for each in made})),
                " / ".join(aims),
                "" if not aims else "MISSED" if missed else "reached",
            )
        )
    return rows


def values(measurement: Measurement) -> str:
    """The median of all rounds, in parentheses the least and the greatest value, then the p99 if there is one."""
    if len(measurement.values) == 1:
        return plain(measurement.median)
    spread = f"{plain(measurement.median)} ({plain(min(measurement.values))} to {plain(max(measurement.values))})"
    return spread if measurement.p99 is None else f"{spread}, p99 {plain(measurement.p99)}"


def as_text(sections: SideBySide) -> str:
    """An aligned table for the terminal."""
    section = next(iter(sections.values()))
    rows = table(sections)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    last = len(widths) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([section.title.upper(), section.how, "", *lines, ""])


def as_markdown(sections: SideBySide, machine: Mapping[str, str]) -> str:
    """A whole document with one table; says which command writes it and on which machine it ran."""
    section = next(iter(sections.values()))
    headings, *rows = table(sections)
    has_p99 = any(each.p99 is not None for found in sections.values() for each in found.measurements)
    then = ", then the 99th percentile of at least 100 rounds" if has_p99 else ""
    lines = [
        f"# {section.title}",
        "",
        f"{section.how} Values are medians, with the least and the greatest of all rounds in parentheses{then}.",
        "",
        f"| {' | '.join(headings)} |",
        f"|---|{'---:|' * (len(headings) - 2)}---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"<sub>Written by `python -m bench {section.key} --write`. {'; '.join(machine.values())}</sub>",
    ]
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[SideBySide], machine: Mapping[str, str]) -> str:
    """All sections with the value of every round."""
    content = {
        "machine": dict(machine),
        "sections": [
            {
                "key": section.key,
                "title": section.title,
                "how": section.how,
                "server": server,
                "measurements": [each.as_dict() for each in section.measurements],
            }
            for sections in results
            for server, section in sections.items()
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_result(sections: SideBySide, machine: Mapping[str, str], folder: Path = RESULTS) -> Path:
    """Writes the sections to their file, and returns the path. Replaces what an earlier run wrote."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{next(iter(sections.values())).key}.md"
    file.write_text(as_markdown(sections, machine), "utf-8")
    return file
