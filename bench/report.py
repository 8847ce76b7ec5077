"""Sections as text for the terminal, as JSON, and as the files in bench/results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.machine import ROOT
from bench.measurement import Measurement, Section, plain

RESULTS: Final = ROOT / "bench" / "results"
HEADINGS: Final = ("", "min", "median", "max", "runs", "aim", "")


def cells(measurement: Measurement) -> tuple[str, ...]:
    """One table row, in the order of `HEADINGS`."""
    verdict = {None: "", True: "reached", False: "MISSED"}[measurement.reached]
    return (
        f"{measurement.name}, {measurement.unit}" if measurement.unit else measurement.name,
        plain(min(measurement.values)),
        plain(measurement.median),
        plain(max(measurement.values)),
        str(len(measurement.values)),
        str(measurement.aim) if measurement.aim else "",
        verdict,
    )


def as_text(section: Section) -> str:
    """An aligned table for the terminal."""
    rows = [HEADINGS, *map(cells, section.measurements)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([section.title.upper(), section.how, "", *lines, ""])


def as_markdown(section: Section, machine: Mapping[str, str]) -> str:
    """A whole document with one table; says which command writes it and on which machine it ran."""
    lines = [
        f"# {section.title}",
        "",
        section.how,
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(cells(each))} |" for each in section.measurements),
        "",
        f"<sub>Written by `python -m bench {section.key} --write`. {'; '.join(machine.values())}</sub>",
    ]
    return "\n".join(lines) + "\n"


def as_json(sections: Sequence[Section], machine: Mapping[str, str]) -> str:
    """All sections with the value of every round."""
    content = {
        "machine": dict(machine),
        "sections": [
            {
                "key": section.key,
                "title": section.title,
                "how": section.how,
                "measurements": [each.as_dict() for each in section.measurements],
            }
            for section in sections
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_result(section: Section, machine: Mapping[str, str], folder: Path = RESULTS) -> Path:
    """Writes the section to its file, and returns the path. Replaces what an earlier run wrote."""
    folder.mkdir(exist_ok=True)
    file = folder / f"{section.key}.md"
    file.write_text(as_markdown(section, machine), "utf-8")
    return file
