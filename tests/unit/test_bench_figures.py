"""The benchmark's pure parts: what a figure says, what the guard decides, what goes into the document."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.check import Bounds, Measured, findings
from bench.figures import Aim, Figure, Section, percentile, plain, ratios
from bench.fingerprint import differences
from bench.report import UnknownPlaceError, as_text, filled

BOUNDS = Bounds(
    instances=1000,
    rounds=5,
    history_rows_an_instance=20,
    ratio_to_floor={"1": 0.9, "2": 1.2},
    nothing_due_seconds=0.25,
    rows_read_an_instance={"vps_billing_cycles": 3},
)
WELL = Measured({"1": 1.0, "2": 1.4}, 0.02, {"vps_billing_cycles": 2.0})
SECTION = Section("speed", "Speed", "As it goes.", (Figure("fast", "ms", (1.0, 3.0, 2.0), Aim(2.5)),))


def test_aim_held_every_time_is_missed_by_one_bad_round() -> None:
    rounds = (1.0, 1.1, 2.1)
    assert Aim(2.0).reached(rounds)
    assert not Aim(2.0, held="worst").reached(rounds)


def test_aim_from_below_is_held_against_the_lowest_round() -> None:
    assert Aim(1.4, at_least=True).reached((1.2, 1.4, 1.5))
    assert not Aim(1.4, at_least=True, held="worst").reached((1.2, 1.4, 1.5))


def test_figure_without_an_aim_is_neither_reached_nor_missed() -> None:
    assert Figure("cost", "µs", (1.0,)).reached is None


def test_ratios_compare_rounds_that_ran_in_turn() -> None:
    assert ratios((2.0, 6.0), (1.0, 2.0)) == (2.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratios((2.0, 6.0), (1.0,))


def test_percentile_is_a_value_that_was_measured() -> None:
    values = [float(each) for each in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (0.00123, "0.0012"), (0.0186, "0.0186"), (1.4142, "1.41"), (65.32, "65.3"), (17213.4, "17,213")],
)
def test_values_are_shown_with_the_digits_that_mean_something(value: float, shown: str) -> None:
    assert plain(value) == shown


def test_guard_is_silent_when_all_is_well() -> None:
    assert findings(WELL, BOUNDS) == []


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        (replace(WELL, ratio_to_floor={"1": 1.0, "2": 1.1}), "2 worker(s)"),
        (replace(WELL, ratio_to_floor={"1": 0.8, "2": 1.4}), "1 worker(s)"),
        (replace(WELL, nothing_due_seconds=0.3), "nothing due"),
        (replace(WELL, rows_read_an_instance={"vps_billing_cycles": 40.0}), "40.0 rows of vps_billing_cycles"),
    ],
)
def test_guard_names_what_has_become_worse(worse: Measured, said: str) -> None:
    (sentence,) = findings(worse, BOUNDS)
    assert said in sentence


def test_guard_has_a_bound_for_whatever_it_measures() -> None:
    bounds = Bounds.load()
    assert set(bounds.ratio_to_floor) == {"1", "2"}
    assert {"payment_transactions", "vps_billing_cycles", "vps_instances"} == set(bounds.rows_read_an_instance)


def test_differences_name_the_table_and_tell_missing_rows_from_other_contents() -> None:
    one = {"wallets": (3, 10), "vps_instances": (5, 7), "vps_billing_cycles": (5, 8)}
    other = {"wallets": (3, 11), "vps_instances": (4, 6), "vps_billing_cycles": (5, 8)}
    assert differences(one, other) == ["wallets: 3 and 3 rows, of other contents", "vps_instances: 5 and 4 rows"]


def test_table_has_minimum_median_and_maximum() -> None:
    (line,) = [line for line in as_text(SECTION).splitlines() if line.startswith("fast")]
    assert line.split() == ["fast,", "ms", "1.00", "2.00", "3.00", "3", "≤", "2.50", "reached"]


def test_document_keeps_what_people_wrote_and_takes_new_figures_twice() -> None:
    document = "# Title\n\n<!-- bench:speed -->\nold\n<!-- /bench:speed -->\n\nProse.\n"
    once = filled(document, [SECTION], {"date": "today"})
    assert once.startswith("# Title\n\n<!-- bench:speed -->\nAs it goes.\n")
    assert once.endswith("<!-- /bench:speed -->\n\nProse.\n")
    assert "old" not in once
    assert "| fast, ms | 1.00 | 2.00 | 3.00 | 3 | ≤ 2.50 | reached |" in once
    assert filled(once, [SECTION], {"date": "today"}) == once


def test_section_without_a_place_in_the_document_is_refused() -> None:
    with pytest.raises(UnknownPlaceError, match="bench:speed"):
        filled("nothing here", [SECTION], {})
