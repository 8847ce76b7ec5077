"""Waiting ends with the condition or at the time limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.waiting import SCALE, TransientError, duration, eventually, throughout


class Clock:
    """A clock that advances only during pauses."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def check_with(*outcomes: object) -> Callable[[], Any]:
    """A check with these outcomes in turn. The last one repeats; exceptions are raised."""
    left = list(outcomes)

    def check() -> object:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return check


def test_first_truthy_result_ends_the_wait() -> None:
    clock = Clock()
    check = check_with(None, AssertionError("not yet"), TransientError("away"), "found")
    assert eventually(check, "it is there", 10, clock=clock, pause=clock.pause) == "found"
    assert clock.now == 101.5


def test_timed_out_wait_reports_the_last_result() -> None:
    clock = Clock()
    with pytest.raises(AssertionError, match=r"not within .* s: it is there; last result: 2 of 3"):
        eventually(check_with(None, AssertionError("2 of 3")), "it is there", 4, clock=clock, pause=clock.pause)
    assert clock.now == pytest.approx(100 + 4 * SCALE)


def test_other_exception_ends_the_wait_at_once() -> None:
    clock = Clock()
    with pytest.raises(ZeroDivisionError):
        eventually(check_with(ZeroDivisionError()), "it is there", 10, clock=clock, pause=clock.pause)
    assert clock.now == 100


def test_throughout_requires_every_result_but_ignores_transient_errors() -> None:
    clock = Clock()
    throughout(check_with(1, TransientError("away"), 1), "it stays", 5, clock=clock, pause=clock.pause)
    assert clock.now == 105
    with pytest.raises(AssertionError, match="not true throughout 5 s: it stays"):
        throughout(check_with(1, 1, 0), "it stays", 5, clock=clock, pause=clock.pause)


def test_durations_are_whole_seconds_and_at_least_one() -> None:
    assert duration(0.1 / SCALE) == "1s"
    assert duration(180 / SCALE) == "180s"
