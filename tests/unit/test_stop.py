"""The stop token withdraws permission in two steps, for good, and ends the waits that depend on it."""

from __future__ import annotations

import threading
import time

from controller.lifecycle.stop import StopToken


def permissions(stop: StopToken) -> tuple[bool, bool]:
    return stop.may_start_cycle(), stop.may_start_batch()


def test_new_token_permits_everything() -> None:
    assert permissions(StopToken()) == (True, True)


def test_stopping_cycles_lets_the_cycle_in_hand_start_its_batches() -> None:
    stop = StopToken()
    stop.stop_cycles()
    assert permissions(stop) == (False, True)


def test_stopping_batches_stops_cycles_too() -> None:
    stop = StopToken()
    stop.stop_batches()
    assert permissions(stop) == (False, False)


def test_stopping_twice_or_in_the_other_order_changes_nothing() -> None:
    stop = StopToken()
    stop.stop_batches()
    stop.stop_cycles()
    stop.stop_batches()
    assert permissions(stop) == (False, False)


def test_pause_ends_when_cycles_are_stopped() -> None:
    stop = StopToken()
    paused = threading.Thread(target=stop.pause, args=(60.0,))
    paused.start()
    stop.stop_cycles()
    paused.join(5)
    assert not paused.is_alive()


def test_callback_runs_once_however_often_cycles_are_stopped() -> None:
    stop, calls = StopToken(), list[str]()
    stop.on_stop_cycles(lambda: calls.append("called"))
    assert calls == []
    stop.stop_cycles()
    stop.stop_cycles()
    stop.stop_batches()
    assert calls == ["called"]


def test_callback_that_comes_too_late_runs_at_once() -> None:
    stop, calls = StopToken(), list[str]()
    stop.stop_cycles()
    stop.on_stop_cycles(lambda: calls.append("called"))
    assert calls == ["called"]


def test_wait_between_batches_ends_when_batches_stop_and_not_when_cycles_do() -> None:
    stop = StopToken()
    stop.stop_cycles()
    began = time.monotonic()
    stop.wait(0.05)
    assert time.monotonic() - began >= 0.05
    waiting = threading.Thread(target=stop.wait, args=(60.0,))
    waiting.start()
    stop.stop_batches()
    waiting.join(10)
    assert not waiting.is_alive()
