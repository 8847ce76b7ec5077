"""The pure parts of the benchmark: measurements and aims, the findings of the regression check, and the tables."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.campaign import Step
from bench.campaign import run as campaign_run
from bench.check import Bounds, CheckResult, findings
from bench.fingerprint import differences
from bench.measurement import Aim, Measurement, Section, plain, ratios
from bench.record import Record
from bench.report import as_text, table, values, write_result
from bench.safeguards import variants
from bench.server import durable_servers
from controller import sql
from tests.support.timings import percentile

BOUNDS = Bounds(
    instances=1000,
    rounds=5,
    history_rows_per_instance=20,
    ratio_to_floor={"1": 0.9, "2": 1.2},
    nothing_due_seconds=0.25,
    rows_read_per_instance={"vps_billing_cycles": 3},
    kills=10,
    first_charge_to_grant=30,
)
GOOD = CheckResult({"1": 1.0, "2": 1.4}, 0.02, {"vps_billing_cycles": 2.0}, 25.0)
SECTION = Section("speed", "Speed", "In turn.", (Measurement("fast", "ms", (1.0, 3.0, 2.0), Aim(2.5)),))


def test_edits_of_the_safeguards_fit_the_statements() -> None:
    for variant in variants():
        statements = dict(sql.load())
        for name, old, new in variant.edits:
            assert old in statements[name], variant.name
            statements[name] = statements[name].replace(old, new)


def test_aim_judged_by_the_worst_round_is_missed_by_one_bad_round() -> None:
    rounds = (1.0, 1.1, 2.1)
    assert Aim(2.0).reached(rounds)
    assert not Aim(2.0, judged_by="worst").reached(rounds)


def test_worst_round_of_a_lower_bound_is_the_lowest() -> None:
    assert Aim(1.4, at_least=True).reached((1.2, 1.4, 1.5))
    assert not Aim(1.4, at_least=True, judged_by="worst").reached((1.2, 1.4, 1.5))


def test_p99_of_fewer_than_100_rounds_is_neither_judged_nor_shown() -> None:
    rounds = (*(float(each) for each in range(1, 100)), 500.0)
    many = Measurement("slow", "ms", rounds, Aim(99.0, judged_by="p99"))
    few = replace(many, values=rounds[1:])
    assert (many.reached, many.aim_text, values(many)) == (True, "≤ 99.0 at p99", "50.5 (1.00 to 500), p99 99.0")
    assert (few.reached, few.aim_text, values(few)) == (False, "≤ 99.0 every time", "51.0 (2.00 to 500)")


def test_measurement_without_an_aim_is_neither_reached_nor_missed() -> None:
    assert Measurement("cost", "µs", (1.0,)).reached is None


def test_ratios_compare_values_of_the_same_round() -> None:
    assert ratios((2.0, 6.0), (1.0, 2.0)) == (2.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratios((2.0, 6.0), (1.0,))


def test_percentile_is_a_measured_value() -> None:
    rounds = [float(each) for each in range(1, 101)]
    assert (percentile(rounds, 0.5), percentile(rounds, 0.99), percentile(rounds, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00123, "0.0012"), (0.0186, "0.0186"), (1.4142, "1.41"), (65.32, "65.3"), (17213.4, "17,213")],
)
def test_values_are_shown_with_significant_digits(value: float, shown: str) -> None:
    assert plain(value) == shown


def test_check_finds_nothing_within_the_bounds() -> None:
    assert findings(GOOD, BOUNDS) == []


@pytest.mark.parametrize(
    ("worse", "message"),
    [
        (replace(GOOD, ratio_to_floor={"1": 1.0, "2": 1.1}), "2 worker(s): 1.10 of the floor's rate"),
        (replace(GOOD, ratio_to_floor={"1": 0.8, "2": 1.4}), "1 worker(s): 0.80 of the floor's rate"),
        (replace(GOOD, nothing_due_seconds=0.3), "nothing due: 0.30 s"),
        (replace(GOOD, rows_read_per_instance={"vps_billing_cycles": 40.0}), "40.0 rows of vps_billing_cycles"),
        (replace(GOOD, first_charge_to_grant=31.0), "first charge: 31.0 times the server's own grant, bound 30"),
    ],
)
def test_check_names_each_broken_bound(worse: CheckResult, message: str) -> None:
    (finding,) = findings(worse, BOUNDS)
    assert message in finding


def test_check_has_a_bound_for_everything_that_it_measures() -> None:
    bounds = Bounds.load()
    assert set(bounds.ratio_to_floor) == {"1", "2"}
    assert set(bounds.rows_read_per_instance) == {"payment_transactions", "vps_billing_cycles", "vps_instances"}


def test_differences_tell_missing_rows_from_other_contents() -> None:
    one = {"wallets": (3, 10), "vps_instances": (5, 7), "vps_billing_cycles": (5, 8)}
    other = {"wallets": (3, 11), "vps_instances": (4, 6), "vps_billing_cycles": (5, 8)}
    assert differences(one, other) == ["wallets: 3 and 3 rows with different contents", "vps_instances: 5 and 4 rows"]


def test_table_has_minimum_median_and_maximum() -> None:
    (line,) = [line for line in as_text({"15": SECTION}).splitlines() if line.startswith("fast")]
    assert line.split() == ["fast,", "ms", "2.00", "(1.00", "to", "3.00)", "3", "≤", "2.50", "reached"]


def test_servers_stand_side_by_side_and_one_missed_aim_shows() -> None:
    slower = replace(
        SECTION, measurements=(replace(SECTION.measurements[0], values=(4.0,)), Measurement("other", "", (1.0,)))
    )
    assert table({"15": SECTION, "18": slower})[1:] == [
        ("fast, ms", "2.00 (1.00 to 3.00)", "4.00", "1/3", "≤ 2.50", "MISSED"),
        ("other", "", "1.00", "1", "", ""),
    ]


def test_recorded_runs_are_read_again_by_kind_and_server(tmp_path: Path) -> None:
    file = tmp_path / "new" / "runs.jsonl"
    Record(file, "15").add("killed", [(0.01, 0.1), (0.02, 0.2)])
    Record(file, "18").add("killed", [(0.03, 0.3)])
    record = Record(file, "15")
    record.add("stopped", [(14.0,)])
    record.add("killed", [(0.04, 0.4)])
    assert record.read("killed") == [(0.01, 0.1), (0.02, 0.2), (0.04, 0.4)]
    assert record.read("stopped") == [(14.0,)]


def test_runs_are_not_recorded_without_a_file() -> None:
    record = Record(None, "15")
    record.add("killed", [(0.01, 0.1)])
    assert record.read("killed") == []


def test_result_file_is_replaced_by_the_next_run(tmp_path: Path) -> None:
    write_result({"15": replace(SECTION, how="Before.")}, {"date": "yesterday"}, tmp_path)
    text = write_result({"15": SECTION}, {"date": "today"}, tmp_path).read_text("utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["speed.md"]
    assert text.startswith("# Speed\n\nIn turn. Values are medians")
    assert "| fast, ms | 2.00 (1.00 to 3.00) | 3 | ≤ 2.50 | reached |" in text
    assert "today" in text
    assert "yesterday" not in text


def test_campaign_skips_a_step_that_has_ended_and_repeats_a_failed_one(tmp_path: Path) -> None:
    count = "import sys; open(sys.argv[1], 'a').write('{runs},')"
    counted, failing = tmp_path / "counted", tmp_path / "failing"
    good = Step("good", (sys.executable, "-c", count, str(counted)))
    bad = Step("bad", (sys.executable, "-c", f"{count}; sys.exit(1)", str(failing)))
    for _ in range(3):
        assert campaign_run(good, tmp_path, 7)
        assert not campaign_run(bad, tmp_path, 7)
    assert (counted.read_text("utf-8"), failing.read_text("utf-8")) == ("7,", "7,7,7,")


def test_campaign_takes_the_users_environment_over_a_steps_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_REPEATS", "9")
    code = "import os, sys; sys.exit(os.environ['FAULT_REPEATS'] != '9' or os.environ['OTHER'] != '1')"
    assert campaign_run(
        Step("repeats", (sys.executable, "-c", code), {"FAULT_REPEATS": "4", "OTHER": "1"}), tmp_path, 1
    )


def test_benchmark_without_a_server_names_what_it_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.server.installation_of", lambda _origin: None)
    with pytest.raises(SystemExit, match="no installed PostgreSQL was found"):
        durable_servers("installed")
    with pytest.raises(SystemExit, match="no installed or embedded PostgreSQL was found"):
        durable_servers(None)
