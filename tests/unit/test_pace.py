"""A paced cycle pauses between transactions, unless it is late, would take too long, or is being drained."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from controller.billing.pace import Pace, may_be_paced
from controller.lifecycle.stop import StopToken


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def pace(
    clock: Clock,
    *,
    share: float = 0.25,
    instances: int = 1000,
    seconds: float = 60,
    workers: int = 2,
    stop: StopToken | None = None,
) -> Pace:
    return Pace(
        share,
        workers=workers,
        instances=instances,
        seconds=seconds,
        guard_seconds=60,
        stop=stop or StopToken(),
        clock=clock,
    )


def test_worker_pauses_for_the_rest_of_its_time() -> None:
    assert pace(Clock()).pause_after(0.5, 100) == pytest.approx(1.5)


def test_cycle_that_would_take_too_long_runs_at_full_speed() -> None:
    """900 instances are left. At 5 ms each, paced, on two workers, they take 9 s."""
    assert pace(Clock(), seconds=9.1).pause_after(0.5, 100) > 0
    assert pace(Clock(), seconds=8.9).pause_after(0.5, 100) == 0


def test_end_is_judged_again_after_each_transaction() -> None:
    clock = Clock()
    paced = pace(clock, seconds=20)
    assert paced.pause_after(0.5, 100) > 0
    clock.now += 15
    assert paced.pause_after(0.5, 100) == 0
    assert paced.pause_after(0.5, 700) > 0, "the rest now ends in time"


def test_transaction_without_instances_says_nothing_about_the_rate() -> None:
    assert pace(Clock()).pause_after(0.5, 0) == 0


def test_drain_ends_the_pace() -> None:
    stop = StopToken()
    paced = pace(Clock(), stop=stop)
    stop.stop_cycles()
    assert paced.pause_after(0.5, 100) == 0


def meet(paced: Pace) -> bool:
    """Returns True if two workers can be in a transaction at the same time."""
    barrier = threading.Barrier(2)

    def work() -> bool:
        with paced.turn():
            try:
                barrier.wait(0.2)
            except threading.BrokenBarrierError:
                return False
            return True

    with ThreadPoolExecutor(2) as pool:
        return all(each.result() for each in [pool.submit(work), pool.submit(work)])


def test_workers_of_a_paced_cycle_take_turns() -> None:
    assert not meet(pace(Clock()))


def test_workers_work_at_the_same_time_once_the_cycle_is_late_or_drained() -> None:
    late = pace(Clock(), seconds=1)
    assert late.pause_after(0.5, 100) == 0
    assert meet(late)
    stop = StopToken()
    stop.stop_cycles()
    assert meet(pace(Clock(), stop=stop))


def test_pause_is_never_longer_than_five_seconds() -> None:
    assert pace(Clock(), share=0.01).pause_after(0.5, 100) == 5


def test_end_is_judged_by_the_pauses_that_are_made() -> None:
    """900 instances are left, in 9 transactions of 0.5 s with a pause of 5 s each, on two workers."""
    assert pace(Clock(), share=0.01, seconds=24.8).pause_after(0.5, 100) > 0
    assert pace(Clock(), share=0.01, seconds=24.7).pause_after(0.5, 100) == 0


def test_drain_does_not_wait_for_the_guard() -> None:
    clock, stop = Clock(), StopToken()
    paced = pace(clock, stop=stop)
    clock.now += 61
    assert paced.guard_due()
    stop.stop_cycles()
    assert not paced.guard_due()


def test_guard_is_due_once_a_minute() -> None:
    clock = Clock()
    paced = pace(clock)
    clock.now += 60
    assert not paced.guard_due()
    clock.now += 1
    assert paced.guard_due()
    clock.now += 5
    paced.guard_begins()
    assert not paced.guard_due()
    clock.now += 61
    assert paced.guard_due()


@pytest.mark.parametrize(
    ("late_seconds", "paced"),
    [(0.0, True), (60.0, True), (60.1, False), (3600.0, False), (-0.1, False), (-1800.0, False), (None, False)],
)
def test_only_a_cycle_that_begins_on_time_is_paced(late_seconds: float | None, paced: bool) -> None:  # noqa: FBT001
    assert may_be_paced(late_seconds) is paced
