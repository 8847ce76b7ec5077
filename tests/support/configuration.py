"""Writes the tables of docs/configuration.md from the settings: `make docs`."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from controller.settings import Settings
from controller.settings_help import described

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "configuration.md"
TABLES: Final = re.compile(r"(?<=<!-- settings; written by `make docs` -->\n).*(?=<!-- /settings -->)", re.DOTALL)
PATTERNS: Final = {"^[A-Z]{3}$": "three capital letters"}


def tables() -> str:
    """A heading and a table for each group of settings."""
    schemas = Settings.model_json_schema()["properties"]
    lines = []
    for group, members in groupby(described(), key=lambda each: each.group):
        lines += ["", f"### {group}", "", "| variable | default | values | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{each.name}` | {each.default} | {values(schemas[each.name])} | {each.description} |"
            for each in members
        ]
    return "\n".join([*lines, "", ""])


def values(schema: dict[str, Any]) -> str:
    """What a JSON schema accepts, in words; empty for free text."""
    schema = {
        **schema,
        **schema.get("anyOf", [{}])[0],
    }  # the first alternative: the others are null, or a number's text
    if choices := schema.get("enum"):
        return ", ".join(f"`{choice}`" for choice in choices)
    if pattern := schema.get("pattern"):
        return PATTERNS[pattern]
    if "maxLength" in schema:
        return f"{schema['minLength']} to {schema['maxLength']} characters"
    if "exclusiveMinimum" in schema:
        return f"more than {schema['exclusiveMinimum']:g}, up to {schema['maximum']:g}"
    if "minimum" in schema:
        return f"{schema['minimum']:g} to {schema['maximum']:g}"
    return "path" if schema.get("format") == "path" else ""


def written(document: str) -> str:
    """The document with its tables up to date; the rest of the text stays."""
    return TABLES.sub(lambda _: tables(), document)


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8")), "utf-8")
