"""Sections as a table for people, as JSON, and as the generated parts of docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.figures import Figure, Section, plain
from bench.machine import ROOT

DOCUMENT: Final = ROOT / "docs" / "performance.md"
HEADINGS: Final = ("", "min", "median", "max", "runs", "aim", "")


class UnknownPlaceError(Exception):
    """The document has no place for a section."""


def cells(figure: Figure) -> tuple[str, ...]:
    """As a table shows it."""
    verdict = {None: "", True: "reached", False: "MISSED"}[figure.reached]
    return (
        f"{figure.name}, {figure.unit}" if figure.unit else figure.name,
        plain(min(figure.values)),
        plain(figure.median),
        plain(max(figure.values)),
        str(len(figure.values)),
        str(figure.aim) if figure.aim else "",
        verdict,
    )


def as_text(section: Section) -> str:
    """For the terminal."""
    rows = [HEADINGS, *map(cells, section.figures)]
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
    """For the document."""
    lines = [
        section.how,
        "",
        f"| {' | '.join(HEADINGS)} |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(f"| {' | '.join(cells(figure))} |" for figure in section.figures),
        "",
        f"<sub>{'; '.join(machine.values())}</sub>",
    ]
    return "\n".join(lines)


def as_json(sections: Sequence[Section], machine: Mapping[str, str]) -> str:
    """Everything, every round."""
    content = {
        "machine": dict(machine),
        "sections": [
            {
                "key": section.key,
                "title": section.title,
                "how": section.how,
                "figures": [figure.as_dict() for figure in section.figures],
            }
            for section in sections
        ],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def filled(document: str, sections: Iterable[Section], machine: Mapping[str, str]) -> str:
    """The document with each section between its markers; what people wrote stays as it is.

    Raises:
        UnknownPlaceError: a section has no markers.
    """
    for section in sections:
        begin, end = f"<!-- bench:{section.key} -->", f"<!-- /bench:{section.key} -->"
        text = f"{begin}\n{as_markdown(section, machine)}\n{end}"
        document, places = re.subn(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: text, document, flags=re.DOTALL)  # noqa: B023 - used at once
        if places != 1:
            raise UnknownPlaceError(f"the document needs one place for {section.key}: a line {begin} and a line {end}")
    return document


def write_document(sections: Iterable[Section], machine: Mapping[str, str], to: Path = DOCUMENT) -> None:
    """Fills the sections' places."""
    to.write_text(filled(to.read_text("utf-8"), sections, machine), "utf-8")
