"""Breaks the SQL of billing and election on purpose, and fails if no test notices: `make mutants`.

mutants.txt lists the mutants. The program applies each one alone to a copy of the sources and runs there the tests that
should catch it. A mutant that isn't valid SQL proves nothing, so it counts as survived.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
TABLE: Final = Path(__file__).with_suffix(".txt")
COPIED: Final = ("controller", "migrations", "tests", "pyproject.toml")
STATEMENTS: Final = ("controller/billing/sql", "controller/postgres/sql")

_ENTRY: Final = re.compile(
    r"^(?P<place>\w+): (?P<change>.+) \[(?P<tests>[\w ]+)\]\n(?P<lines>(?:[-+].*\n)+)", re.MULTILINE
)
_FAILED: Final = re.compile(r"^FAILED tests/integration/test_(\S+?::\w+)", re.MULTILINE)
#: Errors of psycopg for invalid SQL.
_INVALID: Final = re.compile(r"psycopg\.(errors\.(Syntax|Undefined|Ambiguous|Datatype|Grouping)\w*|ProgrammingError)\b")


class MutantError(Exception):
    """An entry of mutants.txt no longer fits the SQL."""


@dataclass(frozen=True)
class Mutant:
    """One defect.

    Attributes:
        place: the name of a statement, or the number of a migration.
        change: what is wrong.
        tests: the files of tests/integration that should catch it.
        old: the text to replace; it occurs exactly once in that place.
        new: its replacement.
    """

    place: str
    change: str
    tests: tuple[str, ...]
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Changes the sources under `root`.

        Raises:
            MutantError: the place doesn't exist, or `old` doesn't occur exactly once in it.
        """
        file, start, end = _find(root, self.place)
        text = file.read_text("utf-8")
        found = text.count(self.old, start, end)
        if found != 1:
            raise MutantError(f"{self.place}: {found} occurrences of {self.old!r}; correct tests/support/mutants.txt")
        at = text.index(self.old, start)
        file.write_text(text[:at] + self.new + text[at + len(self.old) :], "utf-8")


@dataclass(frozen=True)
class Verdict:
    """The result of one mutant. `caught_by` is the first test that failed, or None if it survived; `note` says why."""

    caught_by: str | None
    note: str
    seconds: float


def _find(root: Path, place: str) -> tuple[Path, int, int]:
    """Returns the file of a statement or migration, and where the text of the statement begins and ends."""
    if place.isdigit():
        (file,) = (root / "migrations").glob(f"{place}_*.sql")
        return file, 0, len(file.read_text("utf-8"))
    for file in (each for folder in STATEMENTS for each in sorted((root / folder).glob("*.sql"))):
        found = re.search(rf"^-- name: {place}$.*?(?=^-- name: |\Z)", file.read_text("utf-8"), re.MULTILINE | re.DOTALL)
        if found:
            return file, *found.span()
    raise MutantError(f"no statement is named {place}; correct tests/support/mutants.txt")


def load() -> list[Mutant]:
    """Reads mutants.txt."""

    def text(lines: str, sign: str) -> str:
        return "\n".join(line[2:] for line in lines.splitlines() if line.startswith(sign))

    return [
        Mutant(m["place"], m["change"], tuple(m["tests"].split()), text(m["lines"], "-"), text(m["lines"], "+"))
        for m in _ENTRY.finditer(TABLE.read_text("utf-8"))
    ]


def _run_tests(tests: Sequence[str], mutant: Mutant | None = None) -> Verdict:
    """Runs test files on a copy of the sources, with a mutant applied."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        if mutant:
            mutant.apply(Path(folder))
        files = [f"tests/integration/test_{name}.py" for name in tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--postgres", "installed", *files],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    failed = _FAILED.search(done.stdout)
    if done.returncode == 0:
        note = "SURVIVED"
    elif failed is None:
        note = "NO TEST FAILED: " + done.stdout[-2000:]
    else:
        note = "INVALID SQL: " + invalid[0] if (invalid := _INVALID.search(done.stdout)) else ""
    return Verdict(failed[1] if failed and not note else None, note, time.monotonic() - began)


def judge(mutants: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Tries each mutant, in order."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(mutants, pool.map(lambda each: _run_tests(each.tests, each), mutants), strict=True)


def main() -> int:
    """Returns 1 if a mutant survived, or if the tests fail without one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="try only mutants whose place or change contains one of these")
    parser.add_argument("--jobs", type=int, default=2, help="how many to try at once (2)")
    options = parser.parse_args()
    chosen = [m for m in load() if not options.words or any(word in f"{m.place}: {m.change}" for word in options.words)]
    clean = _run_tests(sorted({name for each in chosen for name in each.tests}))
    if clean.note != "SURVIVED":
        sys.stdout.write(f"the tests fail without any mutant: {clean.caught_by or clean.note}\n")
        return 1
    survived = 0
    for mutant, verdict in judge(chosen, options.jobs):
        survived += verdict.caught_by is None
        told = verdict.caught_by or verdict.note
        sys.stdout.write(f"{mutant.place + ': ' + mutant.change:64} {verdict.seconds:5.1f} s  {told}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(chosen)} mutants, {len(chosen) - survived} caught, {survived} survived\n")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
