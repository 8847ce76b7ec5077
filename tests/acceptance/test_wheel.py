"""An installed wheel works in an empty folder, without the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.acceptance.program import ROOT, Program

#: Runs the installed package, not the checkout, with the dependencies of this environment.
STARTER = "import sys; sys.argv[0] = 'containerstacks-billing'; from controller.__main__ import main; main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the installed backend and without a download."""
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert built.returncode == 0, built.stderr
    (found,) = target.glob("containerstacks_billing-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files, unpacked outside the checkout."""
    target = tmp_path_factory.mktemp("installed")
    with ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture
def program(installed: Path, foreign_database: str, tmp_path: Path) -> Program:
    settings = {"DATABASE_URL": foreign_database, "PYTHONPATH": str(installed)}
    return Program(tmp_path, settings, (sys.executable, "-P", "-c", STARTER))


def test_wheel_has_migrations_statements_licence_and_types_and_no_tests(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    for wanted in (
        "controller/migrations/012_billing_daemon_status.sql",
        "controller/billing/sql/cycle.sql",
        "controller/postgres/sql/election.sql",
        "controller/demo/sample/ledger.sql",
        "controller/py.typed",
    ):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench", "docs", "charts"))]
    assert not [name for name in names if name.endswith((".pyc", ".env"))]
    sources = {file.name for file in (ROOT / "migrations").glob("*.sql")}
    assert sources == {Path(name).name for name in names if name.startswith("controller/migrations/")}


def test_installed_wheel_in_an_empty_folder_migrates_bills_and_audits(program: Program, installed: Path) -> None:
    assert str(installed) in program.environment["PYTHONPATH"]
    assert "applied 012_billing_daemon_status" in program("migrate").out
    assert program("migrate", "--check").status == 0
    assert program("bill").status == 0
    assert program("audit").status == 0
    assert list(program.folder.iterdir()) == [], "it leaves no files behind"


def test_wheel_names_its_command(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "containerstacks-billing = controller.__main__:main" in archive.read(entry).decode()
