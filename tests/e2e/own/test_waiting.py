"""The suite waits for what it looks for, and no longer than its bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.waiting import SCALE, TransientError, duration, eventually, throughout


class Clock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def looks(*outcomes: object) -> Callable[[], Any]:
    """A look that gives these one after the other, the last for ever; exceptions are raised."""
    left = list(outcomes)

    def look() -> object:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return look


def test_first_true_value_ends_the_wait() -> None:
    clock = Clock()
    look = looks(None, AssertionError("not yet"), TransientError("away"), "found")
    assert eventually(look, "it is there", 10, clock=clock, pause=clock.pause) == "found"
    assert clock.now == 101.5


def test_a_wait_that_is_over_says_what_was_seen_last() -> None:
    clock = Clock()
    with pytest.raises(AssertionError, match=r"not within .* s: it is there; last seen: 2 of 3"):
        eventually(looks(None, AssertionError("2 of 3")), "it is there", 4, clock=clock, pause=clock.pause)
    assert clock.now == pytest.approx(100 + 4 * SCALE)


def test_any_other_error_ends_the_wait_at_once() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError):
        eventually(looks(ZeroDivisionError()), "it is there", 10, clock=clock, pause=clock.pause)
    assert clock.now == 100


def test_throughout_needs_it_each_time_but_forgives_a_look_that_failed() -> None:
    clock = Clock()
    throughout(looks(1, TransientError("away"), 1), "it stays", 5, clock=clock, pause=clock.pause)
    assert clock.now == 105
    with pytest.raises(AssertionError, match="not throughout 5 s: it stays"):
        throughout(looks(1, 1, 0), "it stays", 5, clock=clock, pause=clock.pause)


def test_durations_are_whole_seconds_and_never_zero() -> None:
    assert duration(0.1 / SCALE) == "1s"
    assert duration(180 / SCALE) == "180s"
