"""Every mutant of `make mutants` still fits the SQL, and names test files that exist."""

import shutil
from pathlib import Path

import pytest

from tests.support.mutants import ROOT, TABLE, Mutant, load

MUTANTS = load()


def test_every_entry_of_the_table_is_read() -> None:
    removed = [lines for lines in TABLE.read_text("utf-8").split("\n\n") if "\n- " in lines]
    assert len(MUTANTS) == len(removed)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{each.place}: {each.change}" for each in MUTANTS])
def test_mutant_changes_the_sql(tmp_path: Path, mutant: Mutant) -> None:
    for folder in ("controller/billing/sql", "controller/postgres/sql", "migrations"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    mutant.apply(tmp_path)
    assert mutant.old != mutant.new
    for name in mutant.tests:
        assert (ROOT / f"tests/integration/test_{name}.py").is_file()
