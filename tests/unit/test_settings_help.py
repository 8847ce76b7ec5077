"""Every setting is explained once, in controller/settings.py; the document and `--help` are generated from there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controller.settings import PLATFORM, Settings
from controller.settings_help import Setting, described, environment
from tests.support.configuration import DOCUMENT, written

SETTINGS = list(described())
MIN_DESCRIPTION_WORDS = 3


def rows() -> dict[str, list[str]]:
    """The document's table rows by variable: default, values, meaning."""
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in DOCUMENT.read_text("utf-8").splitlines()
        if line.startswith("| `")
    ]
    return {name.strip("`"): rest for name, *rest in cells}


def test_document_is_current() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert written(text) == text, "run `make docs`"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda each: each.name)
def test_setting_has_a_description_that_is_a_sentence_and_a_default(setting: Setting) -> None:
    assert len(setting.description.split()) >= MIN_DESCRIPTION_WORDS
    assert setting.description.endswith(".")
    assert setting.default not in {"", "None"}
    assert rows()[setting.name][0] == setting.default


@pytest.mark.parametrize(
    ("variable", "default", "values"),
    [
        ("DATABASE_URL", "required", ""),
        ("DATABASE_URL_FILE", "unset", "path"),
        ("BILLING_INTERVAL_MINUTES", "60", "more than 0, up to 10080"),
        ("BILLING_WORKERS", "2", "1 to 16"),
        ("BILLING_DEFAULT_HOURLY_RATE", "0.027", "0 to 100000"),
        ("BILLING_CURRENCY", "USD", "three capital letters"),
        ("BILLING_LOCK_NAME", "containerstacks-billing", "1 to 200 characters"),
        ("BILLING_EVICTION", "on", "`on`, `off`"),
        ("LOG_FORMAT", "console on a terminal, else json", "`json`, `console`"),
    ],
)
def test_document_shows_default_and_bounds(variable: str, default: str, values: str) -> None:
    assert rows()[variable][:2] == [default, values]


def test_every_bounded_setting_shows_its_bounds() -> None:
    unbounded = {name for name, (_, values, _) in rows().items() if not values}
    fields = {setting.name: field for setting, field in zip(SETTINGS, Settings.model_fields.values(), strict=True)}
    assert all("str" in str(fields[name].annotation).lower() for name in unbounded), unbounded


def test_groups_are_contiguous_so_that_each_heading_stands_once() -> None:
    headings = [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("### ")]
    assert len(headings) == len(set(headings)) == len({setting.group for setting in SETTINGS})


def test_help_has_a_line_for_each_setting_that_a_person_sets() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "controller", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert environment() in done.stdout
    lines = environment().splitlines()
    for setting in SETTINGS:
        shown = [line for line in lines if line.split()[:1] == [setting.name]]
        assert len(shown) == (setting.group != PLATFORM)
    assert max(map(len, lines)) <= 120
    assert "Exit status" in done.stdout
