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
    timings.servers.add("18.1")
    for number in range(1, 101):
        timings.record("leader killed: idle", number / 1000, Verdict(0, 0), bound=2.0)
    return timings


def test_row_gives_percentiles_the_worst_and_the_bound(measured: Timings) -> None:
    headings, row = measured.rows
    assert dict(zip(headings, row, strict=True)) == {
        "fault": "leader killed: idle",
        "runs": "100",
        "p50": "50 ms",
        "p99": "99 ms",
        "worst": "100 ms",
        "bound": "2 s",
        "hours lost": "0",
        "hours doubled": "0",
    }


def test_row_of_fewer_than_100_runs_has_no_percentiles(measured: Timings) -> None:
    measured.record("read-only database", 5.0)
    assert measured.rows[2][1:5] == ("1", "", "", "5000 ms")


def test_runs_without_a_wrong_hour_bound_their_rate_by_the_rule_of_three(measured: Timings) -> None:
    assert measured.proof == (
        "100 runs without a lost or doubled hour: with 95% confidence, fewer than 3.00% have one."
    )
    measured.record("leader killed: idle", 0.5, Verdict(1, 2))
    assert measured.proof == "101 runs, 3 hours lost or doubled."


def test_run_beyond_its_bound_fails_and_is_in_the_table(measured: Timings) -> None:
    with pytest.raises(AssertionError, match=r"leader killed: idle: 2\.100 s, and the bound is 2 s"):
        measured.record("leader killed: idle", 2.1, bound=2.0)
    assert measured.rows[1][4] == "2100 ms"


def test_times_of_another_lane_are_added(measured: Timings) -> None:
    other = Timings()
    other.servers.add("15.14")
    other.record("leader killed: idle", 1.5, Verdict(1, 0))
    other.record("read-only database", 5.0)
    measured.add(other.as_json())
    assert measured.servers == {"15.14", "18.1"}
    killed, read_only = measured.rows[1:]
    assert (killed[1], killed[4], killed[5], killed[6]) == ("101", "1500 ms", "2 s", "1")
    assert read_only[0] == "read-only database"


def test_document_keeps_the_text_around_the_table(measured: Timings, tmp_path: Path) -> None:
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    write_report(document, measured)
    write_report(document, measured)
    text = document.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old" not in text
    assert text.count("| leader killed: idle | 100 |") == 1
    assert "PostgreSQL 18.1" in text


def test_missing_document_is_made(measured: Timings, tmp_path: Path) -> None:
    write_report(tmp_path / "new.md", measured)
    assert (tmp_path / "new.md").read_text(encoding="utf-8").count("| leader killed: idle | 100 |") == 1


def test_document_of_the_repository_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "bench" / "results" / "faults.md").read_text(encoding="utf-8")
    assert text.index(BEGIN) < text.index(END)


def test_document_without_markers_is_not_changed(measured: Timings, tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no lines"):
        write_report(document, measured)
    assert document.read_text(encoding="utf-8") == "nothing\n"
