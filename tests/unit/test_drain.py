"""A drain takes one path for every reason, ends the work before the leadership, and bounds every wait."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from controller.lifecycle.drain import GRACE_SECONDS, Drain, DrainOutcome, DrainSteps
from controller.lifecycle.stop import StopToken


@dataclass
class Replica:
    """A replica whose cycle ends after `work_seconds` and whose batch after `batch_seconds`, on a simulated clock."""

    work_seconds: float = 0.0
    batch_seconds: float = 0.0
    timeout_seconds: float = 270.0
    during_work: Callable[[], None] = lambda: None
    now: float = 1000.0
    did: list[str] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    woken: int = 0

    def __post_init__(self) -> None:
        self.ends_at = self.now + self.work_seconds
        self.stop = StopToken()
        steps = DrainSteps(announce=self._announce, wait_for_work=self._wait_for_work, resign=self._resign)
        self.drain = Drain(self.stop, steps, self.timeout_seconds, lambda: self.now, self._wake)

    def _announce(self, reason: str) -> None:
        self.did.append(f"announce {reason}")

    def _wait_for_work(self, seconds: float) -> bool:
        state = "finish batch" if not self.stop.may_start_batch() else "finish cycle"
        assert not self.stop.may_start_cycle()
        if state != self.did[-1]:
            self.did.append(state)
            if state == "finish batch":
                self.ends_at = min(self.ends_at, self.now + self.batch_seconds)
        self.waits.append(seconds)
        self.during_work()
        self.now = min(self.now + seconds, max(self.ends_at, self.now))
        return self.now >= self.ends_at

    def _resign(self, seconds: float) -> bool:
        self.did.append("resign")
        self.waits.append(seconds)
        return True

    def _wake(self) -> None:
        self.woken += 1


def test_work_ends_before_the_leadership_does() -> None:
    replica = Replica(work_seconds=60)
    replica.drain.request("SIGTERM")
    assert replica.drain.carry_out() is DrainOutcome.COMPLETED
    assert replica.did == ["announce SIGTERM", "finish cycle", "resign"]
    assert replica.stop.may_start_batch(), "the cycle in hand was not cut short"
    assert replica.now == pytest.approx(1060)


def test_deadline_stops_the_work_after_the_batch_in_hand() -> None:
    replica = Replica(work_seconds=600, batch_seconds=1, timeout_seconds=270)
    replica.drain.request("SIGTERM")
    assert replica.drain.carry_out() is DrainOutcome.TIMED_OUT
    assert replica.did == ["announce SIGTERM", "finish cycle", "finish batch", "resign"]
    assert replica.now == pytest.approx(1271)


@pytest.mark.parametrize("timeout_seconds", [0.0, 0.1, 270.0])
def test_whole_drain_is_bounded_even_when_nothing_ends(timeout_seconds: float) -> None:
    replica = Replica(work_seconds=1e9, batch_seconds=1e9, timeout_seconds=timeout_seconds)
    replica.drain.request("SIGTERM")
    replica.drain.carry_out()
    assert replica.did[-1] == "resign"
    assert replica.waits[-1] == GRACE_SECONDS
    assert replica.now - 1000 <= timeout_seconds + GRACE_SECONDS + 0.01


def test_drain_without_time_completes_if_the_work_has_ended() -> None:
    replica = Replica(timeout_seconds=0)
    replica.drain.request("SIGTERM")
    assert replica.drain.carry_out() is DrainOutcome.COMPLETED


def test_second_signal_stops_after_the_batch_in_hand() -> None:
    replica = Replica(work_seconds=60, batch_seconds=1)

    def cut_short() -> None:
        if replica.now > 1005:
            replica.drain.cut_short()

    replica.during_work = cut_short
    replica.drain.request("SIGTERM")
    assert replica.drain.carry_out() is DrainOutcome.TIMED_OUT
    assert 1005 < replica.now < 1008


def test_further_request_can_only_bring_the_deadline_forward() -> None:
    replica = Replica(work_seconds=600, timeout_seconds=270)

    def ask_again() -> None:
        replica.drain.request("drain command", 5)
        replica.drain.request("drain command", 3000)

    replica.during_work = ask_again
    replica.drain.request("SIGTERM")
    replica.drain.carry_out()
    assert 1005 <= replica.now < 1007


def test_request_without_a_timeout_takes_the_configured_one() -> None:
    replica = Replica(work_seconds=600, timeout_seconds=30)
    replica.drain.request("drain command", None)
    replica.drain.carry_out()
    assert replica.now == pytest.approx(1030)


def test_first_reason_stays_and_each_request_wakes_the_main_thread() -> None:
    replica = Replica()
    replica.drain.request("SIGTERM")
    replica.drain.request("drain command")
    assert replica.drain.reason == "SIGTERM"
    assert replica.drain.requested
    assert replica.woken == 2


def test_drain_is_done_only_after_resigning() -> None:
    replica = Replica()
    done_at_resigning: list[bool] = []
    assert not replica.drain.wait_until_done(0)
    replica.drain.request("SIGTERM")
    replica.during_work = lambda: done_at_resigning.append(replica.drain.wait_until_done(0))
    replica.drain.carry_out()
    assert done_at_resigning == [False]
    assert replica.drain.wait_until_done(0)


def test_waiting_for_a_drain_ends_with_it() -> None:
    replica = Replica()
    replica.drain.request("SIGTERM")
    ended: list[bool] = []
    waiting = threading.Thread(target=lambda: ended.append(replica.drain.wait_until_done(10)))
    waiting.start()
    replica.drain.carry_out()
    waiting.join(10)
    assert ended == [True]


def test_each_step_of_a_drain_is_logged_once() -> None:
    replica = Replica(work_seconds=600, batch_seconds=1, timeout_seconds=10)
    replica.drain.request("SIGTERM")
    with capture_logs() as logs:
        replica.drain.carry_out()
    assert [line["event"] for line in logs] == ["drain.started", "drain.timed_out", "drain.completed"]
    assert logs[0]["reason"] == "SIGTERM"
    assert logs[-1]["outcome"] == "timed_out"
