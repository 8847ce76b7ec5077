"""Links between the documents lead somewhere, headings included."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from controller.cli import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for folder in (".", "docs", "docs/runbooks", "bench/results", "manifests", "charts/containerstacks-billing")
    for path in (ROOT / folder).glob("*.md")
)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(#[^)\s]+)?\)")


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_document_lead_to_files_and_headings(path: Path) -> None:
    broken = []
    for file, anchor in LINK.findall(path.read_text("utf-8")):
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(file + anchor)
    assert broken == []


def test_index_lists_every_document() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    documents = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in documents if f"({name})" not in index} == set()


def test_tests_that_documents_cite_exist() -> None:
    cited = {
        (path.parent / file, name)
        for path in DOCUMENTS
        for file, name in re.findall(r"\]\(([^)]*\.py)\)`::(\w+)`", path.read_text("utf-8"))
    }
    assert cited
    assert {(str(file), name) for file, name in cited if f"def {name}(" not in file.read_text("utf-8")} == set()


def test_commands_and_options_in_documents_exist() -> None:
    program: Any = typer.main.get_command(app)
    wrong = []
    for path in DOCUMENTS:
        for line in re.findall(r"containerstacks-billing ([a-z].*)", path.read_text("utf-8")):
            name, *words = re.split(r"[`#|]", line)[0].split() or [""]
            if (command := program.commands.get(name)) is None:
                continue  # a sentence about the program
            known = {option for each in command.params for option in each.opts}
            wrong += [f"{path.name}: {name} {word}" for word in words if word.startswith("--") and word not in known]
    assert wrong == []


def test_every_command_is_in_the_readme() -> None:
    program: Any = typer.main.get_command(app)
    text = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in program.commands if f"`{name}" not in text] == []
