"""The table shows what was measured, and is written between the document's markers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import BEGIN, END, write_report
from tests.support.ledger_probe import Verdict
from tests.support.timings import Timings


@pytest.fixture
def measured() -> Timings:
    timings = Timings()
    timings.server = "18.1"
    for number in range(1, 101):
        timings.record("leader killed: idle", number / 1000, Verdict(0, 0), bound=2.0)
    return timings


def row(timings: Timings, name: str) -> dict[str, str]:
    """The cells of a fault's row by their headings."""
    headings, *rows = timings.rows
    (found,) = [each for each in rows if each[0] == name]
    return dict(zip(headings, found, strict=True))


def test_row_gives_the_bound_and_the_times_of_each_server(measured: Timings) -> None:
    measured.server = "15.14 (Debian 15.14-1)"
    measured.record("leader killed: idle", 0.25, Verdict(0, 0), bound=2.0)
    assert row(measured, "leader killed: idle") == {
        "fault": "leader killed: idle",
        "bound": "2 s",
        "18.1: runs": "100",
        "18.1: p99": "99 ms",
        "18.1: worst": "100 ms",
        "15.14: runs": "1",
        "15.14: p99": "",
        "15.14: worst": "250 ms",
        "hours lost": "0",
        "hours doubled": "0",
    }


def test_fault_that_was_not_tried_on_a_server_has_empty_cells_there(measured: Timings) -> None:
    measured.server = "15.14"
    measured.record("read-only database", 5.0)
    cells = row(measured, "read-only database")
    assert [cells[f"18.1: {what}"] for what in ("runs", "p99", "worst")] == ["", "", ""]
    assert (cells["15.14: runs"], cells["15.14: worst"], cells["bound"]) == ("1", "5000 ms", "")


def test_two_servers_of_one_version_have_different_headings() -> None:
    timings = Timings()
    for version in ("18.4", "18.4 (Debian 18.4-1)"):
        timings.server = version
        timings.record("leader killed: idle", 1.0)
    assert len(set(timings.rows[0])) == len(timings.rows[0])


def test_servers_are_ordered_by_their_numbers() -> None:
    timings = Timings()
    for version in ("9.6", "18.4", "15.18 (Debian 15.18-1)", "15.9"):
        timings.server = version
        timings.record("leader killed: idle", 1.0)
    assert timings.servers == ["18.4", "15.18 (Debian 15.18-1)", "15.9", "9.6"]


def test_runs_without_a_wrong_hour_bound_their_rate_by_the_rule_of_three(measured: Timings) -> None:
    assert measured.proof == (
        "100 runs without a lost or doubled hour: with 95% confidence, fewer than 3.00% have one."
    )
    measured.record("leader killed: idle", 0.5, Verdict(1, 2))
    assert measured.proof == "101 runs, 3 hours lost or doubled."


def test_run_beyond_its_bound_fails_and_is_in_the_table(measured: Timings) -> None:
    with pytest.raises(AssertionError, match=r"leader killed: idle: 2\.100 s, and the bound is 2 s"):
        measured.record("leader killed: idle", 2.1, bound=2.0)
    assert row(measured, "leader killed: idle")["18.1: worst"] == "2100 ms"


def test_times_of_another_lane_are_added(measured: Timings) -> None:
    other = Timings()
    other.server = "18.1"
    other.record("leader killed: idle", 1.5, Verdict(1, 0), bound=3.0)
    other.server = "15.14"
    other.record("leader killed: idle", 0.5)
    measured.add(other.as_json())
    assert measured.servers == ["18.1", "15.14"]
    cells = row(measured, "leader killed: idle")
    assert (cells["18.1: runs"], cells["18.1: worst"], cells["15.14: runs"]) == ("101", "1500 ms", "1")
    assert (cells["bound"], cells["hours lost"]) == ("3 s", "1")


def test_document_keeps_the_text_around_the_table(measured: Timings, tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_report(document, measured)
    write_report(document, measured)
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert text.count("| leader killed: idle | 2 s | 100 |") == 1
    assert "PostgreSQL 18.1" in text


def test_missing_document_is_made(measured: Timings, tmp_path: Path) -> None:
    write_report(tmp_path / "new.md", measured)
    assert (tmp_path / "new.md").read_text(encoding="utf-8").count("| leader killed: idle | 2 s | 100 |") == 1


def test_document_of_the_repository_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "bench" / "results" / "faults.md").read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)


def test_document_without_markers_is_not_changed(measured: Timings, tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines"):
        write_report(document, measured)
    assert document.read_text(encoding="utf-8") == "nothing\n"
