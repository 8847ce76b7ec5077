"""The verdict is OK only while customers are being billed, and otherwise gives the reasons."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from controller import answers, output, report
from controller.billing.other_billers import Notice
from controller.billing.verdict import Level, verdict
from controller.errors import DatabaseUnreachableError
from tests.statuses import NOW, status

MINUTE = timedelta(minutes=1)
OTHER = Notice("other_daemon", halts=True, since=NOW, message="another daemon bills")


def ended(outcome: str, **facts: Any) -> dict[str, Any]:  # noqa: ANN401 - columns of a run
    return {"last_run": {"id": 41, "outcome": outcome, **facts}}


@pytest.mark.parametrize(
    ("changes", "level", "reason"),
    [
        ({}, Level.OK, "host-1 leads, and everything due has been billed"),
        ({"last_run": None, "last_completed_at": None, "next_cycle_at": None}, Level.OK, "host-1 leads"),
        ({"leader": None}, Level.DOWN, "no replica leads"),
        (
            {"waiting_for": "nothing", "next_cycle_at": NOW - 6 * MINUTE},
            Level.DOWN,
            "the next cycle is 6 minutes overdue",
        ),
        ({"waiting_for": "nothing", "next_cycle_at": NOW - MINUTE}, Level.OK, "host-1 leads"),
        (ended("failed", cause="controller"), Level.DOWN, "cycle 41 failed as a whole"),
        (ended("failed", cause="organizations"), Level.DOWN, "cycle 41 failed for every instance that was due"),
        ({"notices": (OTHER,)}, Level.DOWN, "billing is halted: another daemon bills"),
        ({"notices": (replace(OTHER, halts=False),)}, Level.ATTENTION, "ATTENTION: another daemon bills"),
        ({"heartbeat_age_seconds": 5400.0}, Level.DOWN, "the application bills"),
        ({"heartbeat_age_seconds": 1200.0}, Level.ATTENTION, "the heartbeat is 20 minutes old"),
        ({"failures": 2}, Level.ATTENTION, "2 instances can't be charged"),
        (ended("completed", failures_by_reason={"missed": 1}), Level.ATTENTION, "cycle 41 missed 1 instance"),
        ({"suspended": 1}, Level.ATTENTION, "1 organization suspended"),
        (ended("abandoned"), Level.ATTENTION, "cycle 41 was abandoned"),
        ({"running_since": NOW - 61 * MINUTE}, Level.ATTENTION, "running for longer than the interval"),
        ({"checked_until": NOW - 41 * MINUTE}, Level.ATTENTION, "the guard has not checked"),
    ],
)
def test_verdict_names_its_reason(changes: dict[str, Any], level: Level, reason: str) -> None:
    judged = verdict(status(**changes))
    assert judged.level is level
    assert reason in judged.line
    assert judged.line.startswith(level.upper() + ": ")


def test_most_serious_reason_comes_first() -> None:
    judged = verdict(status(failures=2, leader=None))
    assert judged.reasons == ("no replica leads", "2 instances can't be charged")


def test_debts_alone_are_ok() -> None:
    assert verdict(status(debts=50)).level is Level.OK


def test_status_begins_with_the_verdict_and_fits_80_columns() -> None:
    shown = status(failures=2, last_run={**status().last_run, "failures_by_reason": {"wallet_missing": 2, "x": 3}})  # type: ignore[dict-item]
    lines = list(report.status(shown))
    assert lines[0] == verdict(shown).line
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for expected in (
        "leader      host-1, for 3 h 0 min",
        "standby     host-2, for 2 h 0 min",
        "next cycle  in 20 min",
        "the application bills in 1 h 29 min",
        "failures: x 3, wallet_missing 2",
    ):
        assert expected in text, text


def test_watch_goes_on_without_the_database_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    readings = iter([DatabaseUnreachableError("DATABASE_URL: refused"), status()])
    waits = iter([None, KeyboardInterrupt()])

    def read() -> Any:  # noqa: ANN401 - a Status
        reading = next(readings)
        if isinstance(reading, Exception):
            raise reading
        return reading

    def wait(_seconds: float) -> None:
        if ending := next(waits):
            raise ending

    answers.watch_status(read, lambda shown: output.line(verdict(shown).line), wait)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "DOWN: DATABASE_URL: refused"
    assert second.startswith("OK: ")
