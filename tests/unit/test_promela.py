"""The checker of the Promela models trusts only a complete search, and knows every mutant. `make model` checks them."""

from __future__ import annotations

import re

import pytest

from tests.promela import check

HELD = "State-vector 92 byte, depth reached 366, errors: 0\n  3964704 states, stored\n"
BROKEN = (
    "pan:1: assertion violated (mine==term) (at depth 40)\n\nWarning: Search not completed\n"
    "State-vector 92 byte, depth reached 41, errors: 1\n     9356 states, stored\n"
)


def test_every_mutant_of_a_model_is_checked() -> None:
    for model in ("fence", "bounds"):
        text = (check.FOLDER / f"{model}.pml").read_text("utf-8")
        conditions = "".join(re.findall(r"^#(?:if|ifdef|ifndef|elif)\b(.*)", text, re.MULTILINE))
        named = set(re.findall(r"\b[A-Z_]{4,}\b", conditions)) - {"LIVENESS"}
        assert named == {each.mutant for each in check.MUTANTS if each.model == model}


def test_models_are_short_enough_to_read() -> None:
    assert all(len(file.read_text("utf-8").splitlines()) <= 250 for file in check.FOLDER.glob("*.pml"))


@pytest.mark.parametrize(
    ("report", "complete", "steps"),
    [
        (HELD, True, None),
        (BROKEN, True, 40),
        (f"Warning: Search not completed\n{HELD}", False, None),
        (f"error: max search depth too small\n{HELD}", False, None),
        ("pan: reached -DMEMLIM bound\n", False, None),
    ],
    ids=["holds", "broken", "interrupted", "too deep", "no memory"],
)
def test_only_a_complete_search_counts(report: str, steps: int | None, *, complete: bool) -> None:
    outcome = check.parse(report, 0.0)
    assert (outcome.complete, outcome.steps) == (complete, steps)
