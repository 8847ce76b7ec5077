"""The command and the page describe the next cycle in the same words."""

from datetime import timedelta
from typing import Any

import pytest

from controller.billing.status import Status
from controller.wording import NextCycle, duration, next_cycle
from tests.statuses import NOW, status

SOON = NOW + timedelta(minutes=20)
LATE = NOW - timedelta(hours=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"waiting_for": "interval"}, NextCycle("in 20 min 0 s", "2026-11-22 12:20:00 UTC")),
        ({"waiting_for": "takeover"}, NextCycle("in 20 min 0 s", "2026-11-22 12:20:00 UTC, after the takeover delay")),
        ({"waiting_for": "leader"}, NextCycle("waiting for a leader", "due at 2026-11-22 12:20:00 UTC")),
        (
            {"waiting_for": "leader", "next_cycle_at": LATE},
            NextCycle("waiting for a leader", "due since 2026-11-22 10:00:00 UTC"),
        ),
        (
            {"waiting_for": "leader", "next_cycle_at": None},
            NextCycle("waiting for a leader", "no cycle has completed yet"),
        ),
        (
            {"waiting_for": "running", "running_since": NOW - timedelta(seconds=70)},
            NextCycle("running", "for 1 min 10 s"),
        ),
        ({"waiting_for": "nothing", "next_cycle_at": LATE}, NextCycle("now", "due since 2026-11-22 10:00:00 UTC")),
        ({"waiting_for": "nothing", "next_cycle_at": None}, NextCycle("now", "no cycle has completed yet")),
    ],
)
def test_next_cycle_says_when_it_starts_or_what_it_waits_for(changes: dict[str, Any], words: NextCycle) -> None:
    shown: Status = status(**{"next_cycle_at": SOON, **changes})
    assert next_cycle(shown) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3600, "1 h 0 min"), (86399, "23 h 59 min"), (90000, "1 d 1 h")],
)
def test_duration_has_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
