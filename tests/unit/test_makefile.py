"""`make help` is how people find the other targets."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_make_help_lists_every_target_once_with_a_description() -> None:
    targets = re.findall(r"^\.PHONY: (\S+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    command = [
        "make",
        "--no-print-directory",
        "help",
    ]  # `make test` runs this test, and a make inside a make prints directories
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    listed = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [name for _, name, _ in listed] == sorted(targets)
    assert {"e2e", "help", "test"} <= set(targets)


@pytest.mark.parametrize(
    ("arguments", "exported", "uses_it"),
    [([], False, False), ([], True, False), (["DATABASE_URL=postgresql://x"], False, True)],
    ids=["unset", "exported", "argument"],
)
def test_make_run_uses_a_database_only_if_it_is_an_argument(
    arguments: list[str],
    exported: bool,  # noqa: FBT001 - a column of the table above
    uses_it: bool,  # noqa: FBT001
) -> None:
    environment = {**os.environ, "MAKEFLAGS": "", "DATABASE_URL": "postgresql://production"}
    if not exported:
        del environment["DATABASE_URL"]
    command = ["make", "--no-print-directory", "--dry-run", "run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    last = done.stdout.splitlines()[-1]
    assert "containerstacks-billing demo run" in last
    assert ("--use-database-url" in last) is uses_it


def test_make_faults_runs_every_slow_test() -> None:
    command = ["make", "--no-print-directory", "--dry-run", "faults"]
    environment = {**os.environ, "MAKEFLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=True)
    words = done.stdout.split()
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.slow" in path.read_text("utf-8")]
    names = [path.relative_to(ROOT).as_posix() for path in marked if path != Path(__file__)]
    assert [name for name in names if not (name.startswith("tests/faults/") or name in words)] == []
    assert "tests/faults" in words
