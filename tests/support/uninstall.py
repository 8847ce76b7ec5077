"""The lists in manifests/uninstall.sql: everything that migrations/schema.sql shows. `make schema` writes them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Final

from tests.support import schema

FILE: Final = Path(__file__).parents[2] / "manifests" / "uninstall.sql"
#: The application reads it, and may have created it.
KEPT: Final = "billing_daemon_status"
#: Indexes that migrations 021 to 023 create unless the application has such an index, as the sample has.
OPTIONAL: Final = (
    "billing_payment_transactions_organization",
    "billing_vps_instances_organization",
    "billing_wallets_organization",
)


def current() -> str:
    """Returns the text that manifests/uninstall.sql should have."""
    text = FILE.read_text("utf-8")
    for kind, names in _lists(schema.FILE.read_text("utf-8")).items():
        quoted = textwrap.fill(", ".join(f"'{name}'" for name in names), 116, break_on_hyphens=False)
        listed = textwrap.indent(f"{kind} := array[\n{textwrap.indent(quoted, '    ')}\n];", "    ")
        text = re.sub(rf"^    {kind} := array\[[^\]]*\];", listed, text, flags=re.MULTILINE)
    return text


def _lists(text: str) -> dict[str, list[str]]:
    tables = re.findall(r"^CREATE TABLE (\w+)", text, re.MULTILINE)
    triggers = re.findall(r"^CREATE TRIGGER (\w+) [\w ]*? ON (\w+)", text, re.MULTILINE)
    indexes = re.findall(r"^CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+)", text, re.MULTILINE)
    return {
        "triggers": sorted(f"{name} {table}" for name, table in triggers if table not in tables),
        "indexes": sorted([*(name for name, table in indexes if table not in tables), *OPTIONAL]),
        "views": sorted(re.findall(r"^CREATE VIEW (\w+)", text, re.MULTILINE)),
        "tables": sorted({*tables} - {KEPT}),
        "functions": sorted({*re.findall(r"^CREATE FUNCTION (\w+)", text, re.MULTILINE)}),
    }


def write() -> None:
    """Brings the file up to date."""
    FILE.write_text(current(), "utf-8")
